"""Answers that come in every chunking there is, read as a model's answers are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_tokenizer

from mlxd.engine.answer.registry import adopt_format
from mlxd.engine.base import PreparedPrompt, TextKind
from mlxd.engine.output import Markup
from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.engine.tool_reader import Piece
from tests.support.calls import whole_calls

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER_TOOL = {"type": "function", "function": {"name": "weather", "description": "Say it.", "parameters": WEATHER}}
TOOLS = ToolUse((WEATHER_TOOL,))
# A kind and its text; of calls their names and arguments, in order.
Said = tuple[str, str] | tuple[str, str, str]


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model that knows how it answers."""
    tokenizer = load_tokenizer(folder)
    adopt_format(tokenizer)
    return tokenizer


class _Chunks:
    """A detokenizer whose tokens are texts."""

    def __init__(self) -> None:
        self.last_segment = ""

    def add_token(self, text: str) -> None:
        self.last_segment = text

    def finalize(self) -> None:
        self.last_segment = ""


def said_in_every_chunking(tokenizer: Any, text: str, use: ToolUse | None = TOOLS) -> list[Said]:
    """Return what comes out for *text*; whole, by characters, and cut at each place it is the same."""
    cuts = [[text], list(text), *([text[:place], text[place:]] for place in range(1, len(text)))]
    first, *others = (said(tokenizer, chunks, use) for chunks in cuts)
    for cut, other in zip(cuts[1:], others, strict=True):
        assert first == other, cut
    return first


def said(tokenizer: Any, chunks: Sequence[str], use: ToolUse | None = TOOLS) -> list[Said]:
    """Return what comes out for the chunks, neighbours of one kind joined."""
    out = Markup(tokenizer).output(PreparedPrompt((1,), 1, tools=use), ())
    out._detokenizer = _Chunks()
    pieces: list[Piece] = []
    for chunk in chunks:
        pieces += out.push(chunk)  # type: ignore[arg-type]
        if out.stopped:
            break
    return _joined(pieces + out.finish())


def _joined(pieces: list[Piece]) -> list[Said]:
    whole: list[Said] = []
    calls: list[CallPiece] = []
    for piece in pieces:
        calls += piece.calls
        if calls and calls[-1].is_last:
            whole += [("call", str(call.name), _spaced(call.arguments)) for call in whole_calls(calls)]
            calls = []
        elif piece.kind is TextKind.TOOL:
            continue
        elif piece.text and whole and whole[-1][0] == piece.kind.value:
            whole[-1] = (piece.kind.value, whole[-1][1] + piece.text)
        elif piece.text:
            whole.append((piece.kind.value, piece.text))
    assert not calls
    return whole


def _spaced(arguments: str) -> str:
    """Return JSON as Python writes it; what is none as it is."""
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except json.JSONDecodeError:
        return arguments
