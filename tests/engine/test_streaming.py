"""However an answer is cut into tokens, the same text, reasoning and calls come out of it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

from mlxd.engine.base import PreparedPrompt, TextKind
from mlxd.engine.output import Markup
from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.engine.tool_reader import Piece
from tests.engine.bench import WriteModel
from tests.support.calls import whole_calls
from tests.support.cut import ANSWERS, cut

USE = ToolUse(({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},))
USES = st.sampled_from([None, USE, ToolUse(USE.tools, parallel=False)])
KINDS = st.sampled_from([TextKind.CONTENT, TextKind.REASONING])
STOPS = st.lists(st.sampled_from(["\n\n", "END", "</", "😀", "tool", "}"]), max_size=2, unique=True).map(tuple)
Whole = list[tuple[TextKind, str, tuple[CallPiece, ...]]]


class Chunks:
    """A detokenizer whose n-th token is the n-th piece of a text."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces
        self.last_segment = ""

    def add_token(self, token: int) -> None:
        self.last_segment = self._pieces[token]

    def finalize(self) -> None:
        self.last_segment = ""


class CutTokenizer:
    """A tokenizer whose detokenizer hands out pieces that a test chose."""

    def __init__(self, tokenizer: Any, pieces: list[str]) -> None:
        self._tokenizer = tokenizer
        self.detokenizer = Chunks(pieces)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture(scope="module")
def tokenizer(write_model: WriteModel) -> Any:
    """Thinking and tool tags are declared."""
    return load_tokenizer(write_model(all_bytes=True, thinking=True, tools=True))


def read(
    tokenizer: Any, pieces: list[str], use: ToolUse | None, kind: TextKind, stop: tuple[str, ...]
) -> tuple[Whole, str | None]:
    """Return what comes out, neighbours of one kind joined, and the stop string that ended it."""
    prompt = PreparedPrompt((1,), 1, kind, is_continuation=False, tools=use)
    out = Markup(CutTokenizer(tokenizer, pieces)).output(prompt, stop)
    said: list[Piece] = []
    for token in range(len(pieces)):
        said += out.push(token)
        if out.stopped:
            break
    whole: Whole = []
    written = [piece for piece in [*said, *out.finish()] if piece.text or piece.calls]
    for same, group in itertools.groupby(written, key=lambda piece: piece.kind):
        members = list(group)
        text = "".join(piece.text for piece in members)
        whole.append((same, text, tuple(whole_calls(call for piece in members for call in piece.calls))))
    return whole, out.stopped_by


@settings(max_examples=200)
@given(ANSWERS, st.integers(0, 2**32), USES, KINDS, STOPS)
def test_cuts_change_nothing(
    tokenizer: Any, text: str, seed: int, use: ToolUse | None, kind: TextKind, stop: tuple[str, ...]
) -> None:
    """In one piece, letter by letter, or cut anywhere: the same comes out, in the same order."""
    whole = read(tokenizer, [text], use, kind, stop)

    assert read(tokenizer, list(text), use, kind, stop) == whole
    assert read(tokenizer, cut(text, seed), use, kind, stop) == whole


@settings(max_examples=100)
@given(ANSWERS, st.integers(0, 2**32), KINDS)
def test_nothing_is_lost_and_nothing_is_made_up(tokenizer: Any, text: str, seed: int, kind: TextKind) -> None:
    """With tools all that was written comes out, but for the tags of thinking and white space around calls."""
    whole, _ = read(tokenizer, cut(text, seed), USE, kind, ())

    got = "".join(text for _, text, _ in whole)
    assert _bare(got) == _bare(text)


def _bare(text: str) -> str:
    """Return *text* without the tags of thinking, wherever they stand, and without white space."""
    return "".join(text.replace("<think>", "").replace("</think>", "").split())


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"a": "\\ud83d\\ude00"}', {"a": "😀"}),
        ('{"a": "\\ud83d"}', {"a": "\ufffd"}),
        ('{"\\udc00": 1}', {"\ufffd": 1}),
        ('{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
    ],
)
def test_arguments_are_text_that_can_be_sent(tokenizer: Any, written: str, arguments: dict[str, Any]) -> None:
    """Halves of a character, which JSON can spell and UTF-8 cannot, are replaced as broken bytes are."""
    text = f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>'
    ((_, _, (call,)),), _ = read(tokenizer, [text], USE, TextKind.CONTENT, ())

    assert json.loads(call.arguments.encode()) == arguments


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_number_that_json_does_not_have_is_no_argument(tokenizer: Any, number: str) -> None:
    """A call that is read whole comes out as text then: no client could read its arguments."""
    text = f'<tool_call>{{"arguments": {{"a": {number}}}, "name": "f"}}</tool_call>'

    assert read(tokenizer, [text], USE, TextKind.CONTENT, ())[0] == [(TextKind.CONTENT, text, ())]
