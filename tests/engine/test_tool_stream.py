"""Arguments of calls that come out while they are written, in each format that is read so."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.engine.answer import deepseek, harmony, listed, llama
from mlxd.engine.answer.format import CallShape
from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.engine.tool_grammar import FORMATS as SHAPES
from mlxd.engine.tool_stream import CallStream
from tests.support.calls import whole_calls
from tests.support.cut import cut

PARAMETERS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "n": {"type": "integer"}, "list": {"type": "array"}, "any": {}},
}
USE = ToolUse(tuple({"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("f", "g")))
# What a tag is made of, and what the formats put between tags and texts.
TEXTS = st.text(st.sampled_from('abn </>\n"\\{}[]ü😀'), max_size=30) | st.text(max_size=12)
ARGUMENTS = st.fixed_dictionaries(
    {}, optional={"text": TEXTS, "n": st.integers(-5, 10**20), "list": st.lists(TEXTS | st.booleans(), max_size=3)}
)


def _qwen3_coder(name: str, arguments: Mapping[str, Any]) -> str:
    written = "".join(f"<parameter={key}>\n{_plain(value)}\n</parameter>\n" for key, value in arguments.items())
    return f"\n<function={name}>\n{written}</function>\n"


def _glm47(name: str, arguments: Mapping[str, Any]) -> str:
    items = arguments.items()
    return name + "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{_plain(value)}</arg_value>\n" for key, value in items)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _minimax_m2(name: str, arguments: Mapping[str, Any]) -> str:
    items = arguments.items()
    written = "".join(f'<parameter name="{key}">{_plain(value)}</parameter>\n' for key, value in items)
    return f'\n<invoke name="{name}">\n{written}</invoke>\n'


def _deepseek(name: str, arguments: Mapping[str, Any]) -> str:
    written = f"{name}\n```json\n{json.dumps(arguments)}\n```"
    return f"<\uff5ctool▁call▁begin\uff5c>function<\uff5ctool▁sep\uff5c>{written}<\uff5ctool▁call▁end\uff5c>"


WRITE: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
    "deepseek": _deepseek,
    "harmony": lambda name, arguments: (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{json.dumps(arguments)}"
    ),
    "json_tools": lambda name, arguments: json.dumps({"name": name, "arguments": arguments}, indent=1),
    "listed": lambda name, arguments: json.dumps([{"tool_call_id": "0", "tool_name": name, "parameters": arguments}]),
    "llama": lambda name, arguments: json.dumps({"name": name, "parameters": arguments}),
    "mistral": lambda name, arguments: f"{name}[ARGS]{json.dumps(arguments, ensure_ascii=False)}",
    "kimi_k2": lambda name, arguments: (
        f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{json.dumps(arguments)}<|tool_call_end|>"
    ),
    "qwen3_coder": _qwen3_coder,
    "glm47": _glm47,
    "minimax_m2": _minimax_m2,
}
FORMATS = sorted(WRITE)


def parser(name: str) -> Any:
    """Return the parser of a format."""
    own: dict[str, Any] = {
        "deepseek": deepseek.parse, "harmony": harmony.parse, "listed": listed.parse, "llama": llama.parse,
    }  # fmt: skip
    return own.get(name) or importlib.import_module(f"mlx_lm.tool_parsers.{name}").parse_tool_call


OWN = {
    "deepseek": deepseek.DEEPSEEK[0],
    "harmony": harmony.HARMONY,
    "listed": listed.LISTED[0],
    "llama": llama.LLAMA,
}


def call_stream(name: str, use: ToolUse) -> CallStream:
    """Return a reader of a format."""
    shape: CallShape | None = OWN[name].shape if name in OWN else SHAPES[name]
    assert shape is not None
    assert shape.stream is not None
    return CallStream(shape.stream, parser(name), use)


def read(name: str, pieces: list[str], use: ToolUse = USE, *, is_whole: bool = True) -> list[CallPiece]:
    """Return what comes out of a text that comes in pieces."""
    stream = call_stream(name, use)
    calls = [call for piece in pieces for call in stream.take(piece)]
    assert stream.has_begun or not calls
    return calls + stream.close(is_whole=is_whole)


def test_every_format_is_tested() -> None:
    """A format that is read as it is written has a writer here."""
    assert sorted({*OWN, *(name for name, shape in SHAPES.items() if shape.stream is not None)}) == FORMATS


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60)
@given(arguments=ARGUMENTS, seed=st.integers(0, 2**32))
def test_arguments_are_those_that_the_parser_reads(name: str, arguments: dict[str, Any], seed: int) -> None:
    """However a call is cut, its arguments are what the parser reads in it when it is whole."""
    text = WRITE[name]("f", arguments)
    calls = whole_calls(read(name, cut(text, seed)))

    assert calls == whole_calls(read(name, [text])) == whole_calls(read(name, list(text)))
    if not calls:  # no argument follows the name
        assert name == "glm47"
        return
    parsed = parser(name)(text, list(USE.tools))
    (expected,) = parsed if isinstance(parsed, list) else [parsed]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("f", expected["arguments"])]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60)
@given(arguments=ARGUMENTS, length=st.integers(0, 200), junk=st.text('"}]x\n</>', max_size=4), seed=st.integers(0, 99))
def test_calls_that_fail_end_alike_however_they_are_cut(
    name: str, arguments: dict[str, Any], length: int, junk: str, seed: int
) -> None:
    """A call that is cut off, or goes wrong, ends with what was written; equal texts end equally."""
    text = WRITE[name]("f", arguments)[:length] + junk
    for is_whole in (True, False):
        calls = whole_calls(read(name, [text], is_whole=is_whole))
        assert whole_calls(read(name, list(text), is_whole=is_whole)) == calls
        assert whole_calls(read(name, cut(text, seed), is_whole=is_whole)) == calls


@pytest.mark.parametrize("name", FORMATS)
def test_a_long_text_comes_as_it_is_written(name: str) -> None:
    """The name comes before the text, and of the text no more is held back than may be a tag."""
    long = "word " * 400 + "end"
    text = WRITE[name]("f", {"n": 1, "text": long})
    stream = call_stream(name, USE)
    said, most_held = "", 0
    for place, letter in enumerate(text):
        calls = stream.take(letter)
        assert all(call.name == (None if said else "f") for call in calls[:1])
        said += "".join(call.arguments for call in calls)
        if stream.has_begun and text.index("word") <= place < text.index("end"):
            most_held = max(most_held, place - text.index("word") - (len(said) - said.find("word")))
    assert most_held < 16
    assert said.count("word") == 400


@pytest.mark.parametrize("name", FORMATS)
def test_arguments_that_were_cut_off_are_no_object(name: str) -> None:
    """No JSON parser takes them for whole, wherever they end, so nobody acts on half of a text."""
    text = WRITE[name]("f", {"text": "rm -rf /tmp/x", "n": 12})
    begin = min(place for place in range(len(text)) if read(name, [text[:place]], is_whole=False))
    end = text.rindex("2")
    for place in range(begin, end):
        (call,) = whole_calls(read(name, [text[:place]], is_whole=False))
        with pytest.raises(json.JSONDecodeError):
            json.loads(call.arguments)


@pytest.mark.parametrize("name", FORMATS)
def test_unknown_function_is_not_streamed(name: str) -> None:
    """It may be no call at all: that is decided when it is whole."""
    assert read(name, [WRITE[name]("h", {"n": 1})]) == []


@pytest.mark.parametrize("name", ["deepseek", "kimi_k2", "listed", "minimax_m2", "mistral"])
@pytest.mark.parametrize("parallel", [True, False])
def test_several_calls_of_one_text(name: str, parallel: bool) -> None:
    """Each is a call of its own; only the first counts where one is allowed."""
    text = "\n".join(WRITE[name](function, {"text": function}) for function in ("f", "g"))
    calls = whole_calls(read(name, list(text), ToolUse(USE.tools, parallel)))

    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("f", {"text": "f"}), ("g", {"text": "g"}),
    ][: 2 if parallel else 1]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('{"text": "a\nb\tc"}', {"text": "a\nb\tc"}),
        ('{"text": "\\ud83d\\ude00"}', {"text": "😀"}),
        ('{"text": "\\ud83d"}', {"text": "\ufffd"}),
        ('{"text": "\\ud83d\\ud83d\\ude00"}', {"text": "\ufffd😀"}),
        ('{"text": "\\\\ud83d"}', {"text": "\\ud83d"}),
        ('{"\\udc00": "}"}', {"\ufffd": "}"}),
    ],
)
def test_strings_are_made_sendable(written: str, arguments: dict[str, Any]) -> None:
    """A control character is escaped, and half a character is replaced, in any cut."""
    for pieces in ([written], list(written)):
        (call,) = whole_calls(read("mistral", ["f[ARGS]", *pieces]))
        assert json.loads(call.arguments.encode()) == arguments


def test_value_that_does_not_fit_its_type_is_a_text() -> None:
    """The function's own check names it to the model; the rest of the call is not lost."""
    text = "<function=f>\n<parameter=n>\nmany\n</parameter>\n<parameter=text>\nnull\n</parameter>\n</function>"
    (call,) = whole_calls(read("qwen3_coder", list(text)))

    assert json.loads(call.arguments) == {"n": "many", "text": None}
