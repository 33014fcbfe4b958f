"""Calls of Llama 3 and 4: bare JSON, `{"name": "f", "parameters": {…}}`, sometimes after `<|python_tag|>`.

There are no tags, so an answer that is JSON looks like a call until its first words are known. It is one where tools
are offered, where it is all of the answer or follows another call, and where it names one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlxd.engine.answer.format import AnswerFormat, CallShape, Segment
from mlxd.engine.answer.history import Message, one_call_each
from mlxd.engine.base import ChatPrompt
from mlxd.engine.lark import Lark, call_schema
from mlxd.engine.tool import ToolUse
from mlxd.engine.tool_stream import JsonFormat

_TAGS = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
_TAG = re.compile("|".join(map(re.escape, _TAGS)))
_LONGEST = max(map(len, _TAGS))
# What models write between calls.
_BETWEEN = re.compile(r"\s*[;,]?\s*")
_PART = re.compile(r'[^"{}]+|["{}]')
_IN_STRING = re.compile(r'[^"\\]+|"|\\.?', re.DOTALL)
_MEMBERS = frozenset({"type", "name", "parameters", "arguments"})


class LlamaSplitter:
    """Tells calls from text by how they begin."""

    def __init__(self, use: ToolUse | None) -> None:
        """Take what may be called; without tools all is text."""
        names = [] if use is None else [json.dumps(tool["function"]["name"]) for tool in use.tools]
        self._heads = [f'{{"{lead}name":{name}' for lead in ("", 'type":"function","') for name in names]
        self._held = ""
        self._read = self._beginning if names else self._text
        self._has_called = False
        self._depth = 0
        self._is_string = False

    def split(self, text: str) -> list[Segment]:
        """Return what *text* makes known."""
        self._held += text
        segments: list[Segment] = []
        while self._read(segments):
            pass
        return segments

    def flush(self) -> list[Segment]:
        """Return what was held back."""
        rest, self._held = self._held, ""
        state = "tool" if self._read == self._call else "normal"
        return [(state, rest)] if rest else []

    def _beginning(self, segments: list[Segment]) -> bool:
        """Decide whether a call stands here."""
        start = 0
        if self._has_called and (between := _BETWEEN.match(self._held)) is not None:
            start = between.end()
        rest = self._held[start:]
        bare = rest.lstrip()
        tag = next((tag for tag in _TAGS if bare.startswith(tag)), "")
        head = "".join(bare.removeprefix(tag).split())
        if any(known.startswith(head) for known in self._heads) or any(known.startswith(bare) for known in _TAGS):
            return False
        if any(head.startswith(known) for known in self._heads):
            self._held, self._read = rest, self._call
            return True
        if tag:  # no call follows it, and it would be read again
            place = len(self._held) - len(bare) + len(tag)
            segments.append(("normal", self._held[:place]))
            self._held = self._held[place:]
        self._read = self._text
        return True

    def _text(self, segments: list[Segment]) -> bool:
        found = _TAG.search(self._held) if self._heads else None
        if found is not None:
            segments.append(("normal", self._held[: found.start()]))
            self._held, self._read = self._held[found.start() :], self._beginning
            return True
        place = self._held.rfind("<", max(0, len(self._held) - _LONGEST)) if self._heads else -1
        is_held = place >= 0 and any(tag.startswith(self._held[place:]) for tag in _TAGS)
        kept = len(self._held) - place if is_held else 0
        text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        if text:
            segments.append(("normal", text))
        return False

    def _call(self, segments: list[Segment]) -> bool:
        """Read up to the end of the JSON object."""
        at = 0
        while at < len(self._held):
            match = (_IN_STRING if self._is_string else _PART).match(self._held, at)
            part = match[0] if match else self._held[at]
            if self._is_string and part == "\\":
                break  # what it escapes is not there yet
            at += len(part)
            if part == '"':
                self._is_string = not self._is_string
            elif not self._is_string and part in {"{", "}"}:
                self._depth += 1 if part == "{" else -1
                if self._depth == 0:
                    segments += [("tool", self._held[:at]), ("between", "")]
                    self._held, self._read, self._has_called = self._held[at:], self._beginning, True
                    return True
        if at:
            segments.append(("tool", self._held[:at]))
            self._held = self._held[at:]
        return False


def parse(text: str, tools: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the call that a JSON object makes.

    Raises:
        ValueError: it is none, has other members, or names no function.
    """
    call = json.loads(_TAG.sub("", text, count=1))
    if not set(call) <= _MEMBERS or call["name"] not in {tool["function"]["name"] for tool in tools}:
        raise ValueError("no call")
    return {"name": call["name"], "arguments": call["parameters"] if "parameters" in call else call["arguments"]}


def _call(lark: Lark, function: Mapping[str, Any]) -> str:
    return lark.json(call_schema(function, arguments="parameters"))


def frame(lark: Lark, document: str | None, call: str | None) -> str:
    """Return the document or the call, and nothing with it."""
    return lark.choice(filter(None, [document, call]))


def adapt(prompt: ChatPrompt) -> ChatPrompt:
    """Return the prompt with no more than one call in a message, and no text beside it: the template drops that."""
    messages: list[Message] = []
    for message in one_call_each(prompt.messages):
        if message.get("tool_calls") and message.get("content"):
            messages += [{"role": message["role"], "content": message["content"]}, {**message, "content": ""}]
        else:
            messages.append(message)
    return replace(prompt, messages=tuple(messages))


_HEAD = re.compile(
    r'\s*(?:<\|python_\w+\|>)?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]+)"'
    r'\s*,\s*"(?:parameters|arguments)"\s*:\s*(?=\{)'
)
LLAMA = AnswerFormat(
    name="llama",
    # One that thinks is split by its tags, and calls in the generic format.
    is_of=lambda template, vocabulary: (
        '"parameters": ' in template and bool(set(_TAGS) & vocabulary.keys()) and "<think>" not in vocabulary
    ),
    tags=("", ""),
    parse=parse,
    ends=("<|eom_id|>", "<|eot_id|>", "<|eom|>", "<|eot|>"),
    splitter=LlamaSplitter,
    shape=CallShape(_call, stream=JsonFormat(_HEAD)),
    frame=frame,
    free=r'/(?s:.*)/ & ~/\s*\{\s*"(name|type)"(?s:.*)/',
    adapt=adapt,
)
