"""Arguments of a call while the model still writes them, in the formats that write the name first. Pure.

What comes out depends on the text alone and not on how it is cut. A call is streamed once its name is a known one and
its arguments have begun; from then on it is a call, whatever follows: if the model fails to write a JSON object, or is
cut off, its arguments end as they were written, and no JSON parser takes them for whole. What does not begin so is for
the parser of the format, at its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.engine.tool_json import JsonFormat, JsonStream
from mlxd.engine.tool_tagged import Parse, TaggedFormat, TaggedStream


class CallStream(Protocol):
    """Reads what stands between one pair of tags, piece by piece."""

    has_begun: bool  # a call has, and all of this text is read here

    def take(self, text: str) -> list[CallPiece]:
        """Return what *text* makes known."""

    def close(self, *, is_whole: bool) -> list[CallPiece]:
        """End with the text, which *is_whole* unless it was cut off; the last piece of each call has been returned."""


def call_stream(parse: Parse, use: ToolUse) -> CallStream | None:
    """Return a reader for the format of a parser; None for a format that is read whole."""
    name = getattr(parse, "__name__", "")
    make = None if name not in {"parse", "parse_tool_call"} else STREAMS.get(parse.__module__.rpartition(".")[2])
    return None if make is None else make(parse, use)


_NAMED = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_BARE = re.compile(
    r'\s*(?:<\|python_\w+\|>)?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]+)"'
    r'\s*,\s*"(?:parameters|arguments)"\s*:\s*(?=\{)'
)
_HEADED = r"([\w-]+)\s*\[ARGS\]\s*(?=\{)"
_NUMBERED = r"<\|tool_call_begin\|>\s*(?:functions\.)?([^<>]+?):\d+\s*<\|tool_call_argument_begin\|>\s*(?=\{)"
_LISTED = (
    r'\{\s*(?:"tool_call_id"\s*:\s*"[^"\\]*"\s*,\s*)?"(?:tool_)?name"\s*:\s*"([^"\\]+)"'
    r'\s*,\s*"(?:parameters|arguments)"\s*:\s*(?=\{)'
)
_SEPARATED = (
    "<\uff5ctool▁call▁begin\uff5c>(?:function<\uff5ctool▁sep\uff5c>)?([\\w.-]+)\\s*"
    "(?:<\uff5ctool▁sep\uff5c>|```(?:json)?)\\s*(?=\\{)"
)
_ADDRESSED = r"\s*[^{]*?\bto=(?:functions\.)?([^\s<]+)[^{]*?<\|message\|>\s*(?=\{)"

# The module of a parser, mlx-lm's or ours → what reads its format as it is written.
STREAMS: Mapping[str, Callable[[Parse, ToolUse], CallStream]] = {
    "deepseek": partial(JsonStream, JsonFormat(re.compile(r"\s*" + _SEPARATED), re.compile(_SEPARATED))),
    "harmony": partial(JsonStream, JsonFormat(re.compile(_ADDRESSED))),
    "json_tools": partial(JsonStream, JsonFormat(_NAMED)),
    "listed": partial(JsonStream, JsonFormat(re.compile(r"\s*(?:functools)?\s*\[?\s*" + _LISTED), re.compile(_LISTED))),
    "llama": partial(JsonStream, JsonFormat(_BARE)),
    "mistral": partial(JsonStream, JsonFormat(re.compile(r"\s*" + _HEADED), re.compile(_HEADED))),
    "kimi_k2": partial(JsonStream, JsonFormat(re.compile(r"\s*" + _NUMBERED), re.compile(_NUMBERED))),
    "qwen3_coder": partial(
        TaggedStream,
        TaggedFormat(
            head=re.compile(r"\s*<function=\s*([^\s<>]+)>?\s*(?=<parameter=|</function>)"),
            opening="<parameter=",
            argument=re.compile(r"<parameter=\s*([^\s<>]+)(?:>|(?=[\s<]))"),
            end="</parameter>",
            last="</function>",
            is_line=True,
            call="<function={function}>\n<parameter={name}>{value}</parameter>\n</function>",
        ),
    ),
    "glm47": partial(
        TaggedStream,
        TaggedFormat(
            head=re.compile(r"\s*([^\s<>]+)\s*(?=<arg_key>)"),
            opening="<arg_key>",
            argument=re.compile(r"<arg_key>((?s:.*?))</arg_key>(?:\\n|\s)*<arg_value>"),
            end="</arg_value>",
            last=None,
            is_line=False,
            call="{function}<arg_key>{name}</arg_key><arg_value>{value}</arg_value>",
        ),
    ),
    "minimax_m2": partial(
        TaggedStream,
        TaggedFormat(
            head=re.compile(r"\s*<invoke name=[\"']?([^\"'<>]+)[\"']?>\s*(?=<parameter name=|</invoke>)"),
            opening="<parameter name=",
            argument=re.compile(r"<parameter name=[\"']?([^\"'<>]+)[\"']?>"),
            end="</parameter>",
            last="</invoke>",
            is_line=False,
            call='<invoke name="{function}"><parameter name="{name}">{value}</parameter></invoke>',
            has_more=True,
        ),
    ),
}
