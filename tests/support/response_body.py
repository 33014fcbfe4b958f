"""Bodies of /v1/responses as a test sends them, and what is read of each."""

from __future__ import annotations

import typing
from typing import Any

import pytest

from mlxd.engine.base import ChatPrompt
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.openai.response_schema import ParsedResponse, parse_response
from mlxd.openai.response_store import ResponseStore
from mlxd.protocol.errors import InvalidRequest, MlxdError
from tests.support.http_server import settings_of

TOOL: dict[str, Any] = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}


def response(omitted: Omissions | None = None, **fields: Any) -> ParsedResponse:
    """Parse a body with these fields."""
    store = ResponseStore(lambda: settings_of().http)
    body = {"model": "m", "input": "hi"} | fields
    return parse_response(body, store, None, NoiseFilter(), omitted or Omissions("m"))


def left_out(**fields: Any) -> list[str]:
    """Parse a body with these fields; return what is left out of it."""
    omitted = Omissions("m")
    response(omitted, **fields)
    return list(omitted.names)


def refusal(**fields: Any) -> MlxdError:
    """Return the error of a body with these fields."""
    with pytest.raises(InvalidRequest) as error:
        response(**fields)
    return error.value


def messages(*items: Any, **fields: Any) -> Any:
    """Return what the template is shown of these items."""
    prompt = response(input=list(items), **fields).request.prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages


def types_of(union: Any) -> set[str]:
    """Return the values of `type` of all TypedDicts of a union."""
    found = set()
    for member in typing.get_args(union):
        hint = typing.get_type_hints(member).get("type")
        for part in (hint, *typing.get_args(hint)):
            if typing.get_origin(part) is typing.Literal:
                found |= {value for value in typing.get_args(part) if isinstance(value, str)}
            found |= {part} if isinstance(part, str) else set()
    return found
