"""From tokens to pieces of text: detokenizing, stop strings, and the split into content, reasoning and tool calls.

Stop strings and tags are matched in the text, across token borders, by mlx-lm's state machines; what may be the
beginning of one is held back until it is decided. At the end all that is held back comes out: no text is lost.
"""

from __future__ import annotations

from typing import Any

from mlx_lm.generate import TextStateMachine, make_text_state_machine

from mlxd.engine.answer.format import Segment, Splitter, format_of
from mlxd.engine.base import PreparedPrompt, TextKind
from mlxd.engine.tool_reader import Piece, ToolReader

_STOPPED = "stopped by "


class Markup:
    """The tags that one model's tokenizer declares."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        own = format_of(tokenizer)
        self._splitter = None if own is None else own.splitter
        declares = tokenizer.has_thinking or tokenizer.has_tool_calling or tokenizer.response_transitions
        self._machine = make_text_state_machine(tokenizer) if declares or tokenizer.structural_markers else None

    def output(self, prompt: PreparedPrompt, stop: tuple[str, ...]) -> Output:
        """Return the output of a new sequence."""
        splitter: Splitter | None = None
        if self._splitter is not None:
            splitter = self._splitter(prompt.tools)
        elif self._machine is not None:
            first = self._tokenizer.response_initial_state or "normal"
            is_thinking = prompt.initial_kind is TextKind.REASONING
            splitter = _Tags(self._machine.make_state("reasoning" if is_thinking else first))
        stops = None
        if stop:
            # A state for each, so that it is known which was met.
            edges: dict[str, list[tuple[str, str]]] = {_STOPPED + text: [] for text in stop}
            stops = TextStateMachine({"normal": [(text, _STOPPED + text) for text in stop], **edges}).make_state()
        detokenizer = self._tokenizer.detokenizer
        if prompt.is_continuation and "text" in vars(detokenizer):
            # It strips a leading space from the first text it makes; this is not the first.
            detokenizer.text = "\n"
            detokenizer.offset = 1
        return Output(detokenizer, stops, splitter, ToolReader(self._tokenizer, prompt.tools))


class _Tags:
    """Splits where tags are. Implements `Splitter`."""

    __slots__ = ("_state",)

    def __init__(self, state: Any) -> None:
        self._state = state

    def split(self, text: str) -> list[Segment]:
        """Return what *text* makes known."""
        self._state, segments = TextStateMachine.split(self._state, text)
        return list(segments)

    def flush(self) -> list[Segment]:
        """Return what was held back."""
        self._state, rest, state = TextStateMachine.flush(self._state)
        return [(state, rest)]


class Output:
    """The text of one sequence, as it comes."""

    __slots__ = ("_detokenizer", "_splitter", "_stops", "_tools", "stopped", "stopped_by")

    def __init__(self, detokenizer: Any, stops: Any, splitter: Splitter | None, tools: ToolReader) -> None:
        self._detokenizer = detokenizer
        self._stops = stops
        self._splitter = splitter
        self._tools = tools
        self.stopped_by: str | None = None  # the stop string that was matched
        self.stopped = False  # a stop string was matched, or the last call allowed was made; nothing comes after it

    def push(self, token: int) -> list[Piece]:
        """Return the text that *token* makes known; at least one piece, which may be empty."""
        self._detokenizer.add_token(token)
        return self._split(self._detokenizer.last_segment) or [Piece(TextKind.CONTENT, "")]

    def finish(self) -> list[Piece]:
        """Return what was held back, without empty pieces."""
        pieces = []
        if not self.stopped:
            self._detokenizer.finalize()
            pieces = self._split(self._detokenizer.last_segment)
            if self._stops is not None and not self.stopped:
                self._stops, rest, _ = TextStateMachine.flush(self._stops)
                pieces += self._tagged(rest)
        if self._splitter is not None and not self._tools.is_done:
            pieces += self._tools.read(self._splitter.flush())
        if not self._tools.is_done:
            pieces += self._tools.finish()
        return [piece for piece in pieces if piece.text or piece.calls]

    def _split(self, text: str) -> list[Piece]:
        if self._stops is None:
            return self._tagged(text)
        self._stops, segments = TextStateMachine.split(self._stops, text)
        pieces = self._tagged("".join(text for state, text in segments if state == "normal"))
        state = self._stops[0]
        if state != "normal" and not self._tools.is_done:  # the last call came before it
            self.stopped, self.stopped_by = True, state.removeprefix(_STOPPED)
        return pieces

    def _tagged(self, text: str) -> list[Piece]:
        if self._splitter is None:
            return [Piece(TextKind.CONTENT, text)]
        pieces = self._tools.read(self._splitter.split(text))
        self.stopped = self.stopped or self._tools.is_done
        return pieces
