"""The description of one format of answers: plain data and pure functions, no mlx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from mlxd.engine.base import ChatPrompt
from mlxd.engine.lark import Lark
from mlxd.engine.tool import ToolUse
from mlxd.engine.tool_stream import JsonFormat, TaggedFormat

Segment = tuple[str, str]  # a state ("normal", "reasoning", "tool", or another, whose text is dropped) and its text


class CallShape(NamedTuple):
    """How calls are written, and read.

    Attributes:
        call: writes one call: what stands between the tags, or between separators.
        separator: what stands between the calls of one pair of tags; None where each call has its own.
        before: what stands between the first tag and the first call.
        after: what stands between the last call and the last tag.
        stream: how their arguments are read while they are written; None where a call is read whole.
    """

    call: Callable[[Lark, Mapping[str, Any]], str]
    separator: str | None = None
    before: str = ""
    after: str = ""
    stream: JsonFormat | TaggedFormat | None = None


class Splitter(Protocol):
    """Splits the text of one answer as it comes."""

    def split(self, text: str) -> list[Segment]:
        """Return what *text* makes known; what may be the beginning of markup is held back."""

    def flush(self) -> list[Segment]:
        """Return what was held back, at the end of the answer."""


# Returns a call, or a list of calls, each with `name` and `arguments`; raises anything at what is none.
Parse = Callable[[str, list[Mapping[str, Any]]], Any]
# Returns the body of a grammar's first rule from those of a document and of a call, either of which may be None.
Frame = Callable[[Lark, str | None, str | None], str]


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """One format. What is None is as mlx-lm has it.

    Attributes:
        name: for people.
        is_of: whether a model writes so, by its chat templates and its vocabulary.
        thinking: the tags around thoughts.
        tags: those around calls; the second is empty where the end of the answer is the end of its calls.
        parser: the parser of mlx-lm that reads what stands between the tags, and whose grammar enforces it; or
        parse: a function that reads it, or all of a segment "tool" where *splitter* is given.
        markers: tags that say nothing that a client wants to know.
        ends: tokens that end an answer, whatever the model's configuration says.
        splitter: what splits an answer where tags do not do; None for a request without tools.
        shape: how calls are enforced, and read as they are written, that *parse* reads whole.
        frame: how an answer is enforced that has more around it than the tags of calls.
        free: what a text is that is no call: a regular expression of llguidance's Lark.
        adapt: returns the messages, and the tools, as the chat template of the model wants them.
    """

    name: str
    is_of: Callable[[str, Mapping[str, int]], bool]
    thinking: tuple[str, str] | None = None
    tags: tuple[str, str] | None = None
    parser: str | None = None
    parse: Parse | None = None
    markers: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    splitter: Callable[[ToolUse | None], Splitter] | None = None
    shape: CallShape | None = None
    frame: Frame | None = None
    free: str = "/(?s:.*)/"
    adapt: Callable[[ChatPrompt], ChatPrompt] | None = None


def format_of(tokenizer: Any) -> AnswerFormat | None:
    """Return the format that mlx-lm's `TokenizerWrapper` was given at the load; None where mlx-lm knows all of it."""
    found = getattr(tokenizer, "answer_format", None)
    return found if isinstance(found, AnswerFormat) else None
