"""Chat messages → the maps that a chat template wants. No word of a user is ever changed or left out.

What clients add for their own accounting is removed (`mlxd/http/noise.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta

from mlxd.engine.tool import INVALID
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.http.schema import Habit, Object, Text, checked, omitted, read, wrong
from mlxd.openai.content import texts
from mlxd.openai.tool import CUSTOM_INPUT
from mlxd.protocol.errors import UnsupportedParameter
from mlxd.protocol.quote import shown


class _Message(msgspec.Struct, kw_only=True):
    role: str
    content: Any = None
    name: str = ""


class _Result(_Message, kw_only=True):
    tool_call_id: Text


class _FunctionResult(_Message, kw_only=True):
    """A result of the time before there were tools, when calls had no id."""

    name: Text


class _Function(msgspec.Struct, kw_only=True):
    name: Text
    arguments: Annotated[str | Object, Meta(title="a JSON object, or a text that holds one")] = "{}"


class _Custom(msgspec.Struct, kw_only=True):
    name: Text
    input: str


class _Call(msgspec.Struct, kw_only=True):
    id: Text
    type: str = "function"
    index: Habit = None


class _FunctionCall(_Call, kw_only=True):
    function: _Function


class _CustomCall(_Call, kw_only=True):
    custom: _Custom


class _Answer(_Message, kw_only=True):
    """What SDKs send back of an earlier answer."""

    reasoning_content: str = ""
    reasoning: str = ""  # as OpenRouter and vLLM call it
    refusal: str | None = None
    audio: Annotated[Any, omitted([], "")] = None
    annotations: Annotated[Any, omitted([], "")] = None
    tool_calls: list[Any] = []
    function_call: _Function | None = None


_SHAPES: Mapping[str, type[_Message]] = {
    "system": _Message,
    "developer": _Message,
    "user": _Message,
    "assistant": _Answer,
    "tool": _Result,
    "function": _FunctionResult,
}
_TEMPLATE_ROLES = {"developer": "system", "function": "tool"}


def parse_messages(messages: list[Any], omissions: Omissions, noise: NoiseFilter) -> tuple[Mapping[str, Any], ...]:
    """Return the messages with text content; `developer` becomes `system`, the arguments of calls become objects.

    Raises:
        UnsupportedParameter: calls of what is no function; images, audio and files where `http.media` refuses them.
        InvalidRequest: a message without a known role or without content, a result without its call's id.
    """
    parsed = (_parse(index, message, omissions, noise) for index, message in enumerate(messages))
    return tuple(message for message in parsed if message is not None)


def _parse(index: int, given: Any, omissions: Omissions, noise: NoiseFilter) -> Mapping[str, Any] | None:
    """Return a message; None where it was noise."""
    path = f"messages[{index}]"
    role = checked(Object, path, given).get("role")
    if not isinstance(role, str) or role not in _SHAPES:
        raise wrong(f"{path}.role", role, "system, developer, user, assistant or tool")
    message = read(_SHAPES[role], given, omissions, path)
    if isinstance(message, _Answer):
        parsed = _answer(path, message, omissions)
    else:
        parsed = {"role": _TEMPLATE_ROLES.get(role, role)}
        is_result = isinstance(message, _Result | _FunctionResult)
        if message.content in (None, []) and not is_result:
            raise wrong(f"{path}.content", message.content, "a text or a list of parts")
        said = texts(f"{path}.content", message.content, omissions) or [""]  # many tools have nothing to say
        kept = noise.keep(parsed["role"], said, is_first=index == 0)
        if not kept:
            return None
        parsed["content"] = "".join(kept)
    if isinstance(message, _Result):
        parsed["tool_call_id"] = message.tool_call_id
    if isinstance(message, _FunctionResult):
        parsed["tool_call_id"] = _legacy_id(message.name)
    return parsed | ({"name": message.name} if message.name else {})


def _answer(path: str, message: _Answer, omissions: Omissions) -> dict[str, Any]:
    said = texts(f"{path}.content", message.content, omissions)
    parsed: dict[str, Any] = {"role": "assistant", "content": "".join(said or [message.refusal or ""])}
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        parsed["tool_calls"] = [_call(f"{path}.tool_calls[{place}]", call, omissions) for place, call in calls]
    elif message.function_call is not None:
        function = _function(message.function_call)
        parsed["tool_calls"] = [{"id": _legacy_id(function["name"]), "type": "function", "function": function}]
    if message.reasoning_content or message.reasoning:
        parsed["reasoning_content"] = message.reasoning_content or message.reasoning
    return parsed


def _call(path: str, given: Any, omissions: Omissions) -> dict[str, Any]:
    """Return a call that an earlier answer made, with its arguments as templates want them: an object."""
    call: _FunctionCall | _CustomCall
    match checked(Object, path, given).get("type", "function"):
        case "function":
            call = read(_FunctionCall, given, omissions, path)
            function = _function(call.function)
        case "custom":
            call = read(_CustomCall, given, omissions, path)
            function = {"name": call.custom.name, "arguments": {CUSTOM_INPUT: call.custom.input}}
        case kind:
            message = f"{path}.type {shown(kind)} is not supported, only 'function' and 'custom'"
            raise UnsupportedParameter(message, param=f"{path}.type")
    return {"id": call.id, "type": "function", "function": function}


def _legacy_id(name: str) -> str:
    return f"call_{name}"


def _function(function: _Function) -> dict[str, Any]:
    arguments = function.arguments
    return {
        "name": function.name,
        "arguments": call_arguments(arguments) if isinstance(arguments, str) else arguments,
    }


def call_arguments(arguments: str) -> dict[str, Any]:
    """Return the arguments of a call as templates want them, an object.

    A model may have failed to write one: some templates refuse a text, and every later request with it.
    """
    try:
        value = orjson.loads(arguments) if arguments else {}
    except orjson.JSONDecodeError:
        return {INVALID: arguments}
    return value if isinstance(value, dict) else {INVALID: arguments}
