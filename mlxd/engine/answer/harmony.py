"""Harmony, the format of gpt-oss: messages with headers, in channels (openai/harmony, `docs/format.md`).

An answer goes on after `<|start|>assistant`:

    <|channel|>analysis<|message|>thoughts<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>
    <|start|>assistant<|channel|>final<|message|>text<|return|>

The recipient may stand before the channel. A message in `commentary` without one is for the user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlxd.engine.answer.format import AnswerFormat, CallShape, Segment
from mlxd.engine.answer.history import one_call_each
from mlxd.engine.base import ChatPrompt
from mlxd.engine.lark import Lark, literal, parameters_of
from mlxd.engine.tool import ToolUse
from mlxd.engine.tool_stream import JsonFormat

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_TAG = re.compile("|".join(map(re.escape, (*_ENDS, _START, _CHANNEL))))
_LONGEST = max(map(len, (*_ENDS, _START, _CHANNEL)))
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_NAMESPACE = "functions."
# A header, or what may become one: the role and the recipient are letters.
_MAY_BE_HEADER = re.compile(r"(?:assistant\s*)?(?:to=[^\s<]*\s*\w*\s*)?(<.*)?", re.DOTALL)
_MOST_HEADER = 300
_IN_CHANNEL = f"{_CHANNEL}analysis{_MESSAGE}"
_RAISED = (_IN_CHANNEL, f"{_CHANNEL}final{_MESSAGE}")


class HarmonySplitter:
    """Reads messages one after the other. Text without a header is content: a model may leave it out."""

    def __init__(self, _: ToolUse | None = None) -> None:
        """Begin in a header, whose first part stands in the prompt."""
        self._held = ""
        self._kind: str | None = None  # of the message; None in a header
        self._written: set[str] = set()  # kinds that have text
        self._is_new = False  # this message has none yet

    def split(self, text: str) -> list[Segment]:
        """Return what *text* makes known."""
        self._held += text
        segments: list[Segment] = []
        while self._header(segments) if self._kind is None else self._body(segments):
            pass
        return segments

    def flush(self) -> list[Segment]:
        """Return what was held back; the beginning of a header is none of the answer's text."""
        rest, self._held = self._held, ""
        if self._kind is None:
            is_markup = rest.lstrip().startswith((_START, _CHANNEL)) or (self._written and not rest.strip())
            return [] if is_markup else [("normal", rest)]
        return self._said(rest)

    def _header(self, segments: list[Segment]) -> bool:
        text = self._held.lstrip()
        if not _may_be_header(text):
            self._begin("normal")
            found = _TAG.match(text)  # a tag that is none, and would be read again
            if found is not None:
                self._held = text[found.end() :]
                segments += self._said(found[0])
            return True
        header, tag, rest = text.partition(_MESSAGE)
        if not tag:
            return False
        recipient = _RECIPIENT.search(header)
        self._held = rest
        if recipient is not None and recipient[1] not in {"user", "all", "assistant"}:
            self._begin("tool")
            segments.append(("tool", header + tag))
        else:
            self._begin("reasoning" if f"{_CHANNEL}analysis" in header else "normal")
        return True

    def _begin(self, kind: str) -> None:
        self._kind, self._is_new = kind, True

    def _body(self, segments: list[Segment]) -> bool:
        tag = _TAG.search(self._held)
        if tag is None:
            kept = _beginning_of_tag(self._held)
            text, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
            segments += self._said(text)
            return False
        segments += self._said(self._held[: tag.start()])
        segments.append(("header", ""))
        self._held = self._held[tag.end() if tag[0] in _ENDS else tag.start() :]
        self._kind = None
        return True

    def _said(self, text: str) -> list[Segment]:
        """Return a piece of the message; two messages of one kind are two paragraphs."""
        kind = self._kind or "normal"
        if not text:
            return []
        if self._is_new and kind in self._written and kind != "tool":
            text = "\n\n" + text
        self._is_new = False
        self._written.add(kind)
        return [(kind, text)]


def _may_be_header(text: str) -> bool:
    """Whether *text*, without white space before it, is the beginning of a header."""
    if len(text) > _MOST_HEADER:
        return _MESSAGE in text[:_MOST_HEADER]
    if "assistant".startswith(text) or "to=".startswith(text.removeprefix("assistant").lstrip()):
        return True
    header = text.partition(_MESSAGE)[0]
    match = _MAY_BE_HEADER.fullmatch(header)
    if match is None:
        return False
    if match[1] is None:
        return True
    return any(match[1].startswith(tag) or tag.startswith(match[1]) for tag in (_START, _CHANNEL, _CONSTRAIN, _MESSAGE))


def _beginning_of_tag(text: str) -> int:
    """Return how many characters at the end of *text* may be the beginning of a tag."""
    place = text.rfind("<", max(0, len(text) - _LONGEST))
    rest = text[place:] if place >= 0 else ""
    return len(rest) if rest and any(tag.startswith(rest) for tag in (*_ENDS, _START, _CHANNEL)) else 0


def parse(text: str, tools: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the call that a message makes.

    Raises:
        ValueError: it is addressed to none of the functions, or holds no JSON.
    """
    header, _, body = text.partition(_MESSAGE)
    recipient = _RECIPIENT.search(header)
    named = "" if recipient is None else recipient[1]
    name = named.removeprefix(_NAMESPACE)
    if name == named and name not in {tool["function"]["name"] for tool in tools}:
        raise ValueError(f"no function {named!r}")
    return {"name": name, "arguments": json.loads(body) if body.strip() else {}}


def _call(lark: Lark, function: Mapping[str, Any]) -> str:
    """Return one call from behind the role on, in both orders of its header."""
    to = f" to={_NAMESPACE}{function['name']}"
    kind = f'(" " ({lark.tag(_CONSTRAIN)})? "json")?'
    in_channel = f"{lark.tag(_CHANNEL)} {literal('commentary')}"
    header = lark.rule(f"{in_channel} {literal(to)} {kind} | {literal(to)} {in_channel} {kind}")
    return f"{header} {lark.tag(_MESSAGE)} {lark.json(parameters_of(function))}"


def frame(lark: Lark, document: str | None, call: str | None) -> str:
    """Return thoughts, and preambles where calls are not all that may be, before the document or the call."""
    channels = lark.choice(map(literal, ["analysis", "commentary"] if document and call else ["analysis"]))
    message, channel = lark.tag(_MESSAGE), lark.tag(_CHANNEL)
    before = f"{channel} {channels} {message} {lark.terminal('/(?s:.*)/')} {lark.tag(_ENDS[0])} {lark.tag(_START)}"
    thoughts = lark.rule(f'({before} "assistant")*')
    answers = [] if document is None else [f"{channel} {literal('final')} {message} {document}"]
    answers += [] if call is None else [call]
    # A client that has begun the answer has ended its header.
    begun = "" if document is None else f" | {document}"
    return f"{thoughts} {lark.choice(answers)}{begun}"


def adapt(prompt: ChatPrompt) -> ChatPrompt:
    """Return the prompt with what the template of gpt-oss wants: `thinking`, one call each, and no tags in contents."""
    messages = [_adapted(message) if message.get("role") == "assistant" else message for message in prompt.messages]
    return replace(prompt, messages=one_call_each(messages))


def _adapted(message: Mapping[str, Any]) -> dict[str, Any]:
    adapted = dict(message)
    content = adapted.get("content") or ""
    thoughts = [adapted.pop("reasoning_content", None), adapted.pop("thinking", None)]
    if any(tags in content for tags in _RAISED):  # of a server that does not split answers
        split = _split(content)
        content = split.get("normal", "") + split.get("tool", "")
        thoughts.append(split.get("reasoning"))
    if adapted.get("tool_calls") and any(thoughts):  # the template takes one of both, for thoughts
        thoughts.append(content)
        content = ""
    adapted["content"] = content
    thinking = "\n\n".join(filter(None, thoughts))
    for tags in _RAISED:
        thinking = thinking.replace(tags, "")
    if thinking:
        adapted["thinking"] = thinking
    return adapted


def _split(text: str) -> dict[str, str]:
    splitter = HarmonySplitter()
    found: dict[str, str] = {}
    for kind, part in splitter.split(text.removeprefix(_START + "assistant")) + splitter.flush():
        found[kind] = found.get(kind, "") + part
    return found


_ADDRESSED = re.compile(r"\s*[^{]*?\bto=(?:functions\.)?([^\s<]+)[^{]*?<\|message\|>\s*(?=\{)")
HARMONY = AnswerFormat(
    name="harmony",
    is_of=lambda template, vocabulary: (
        {_START, _CHANNEL, _MESSAGE, *_ENDS[:2]} <= vocabulary.keys() and f"{_CHANNEL}final{_MESSAGE}" in template
    ),
    thinking=(_IN_CHANNEL, _ENDS[0]),
    tags=("", ""),
    parse=parse,
    ends=("<|return|>", "<|call|>"),
    splitter=HarmonySplitter,
    shape=CallShape(_call, stream=JsonFormat(_ADDRESSED)),
    frame=frame,
    adapt=adapt,
)
