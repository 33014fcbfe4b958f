"""The errors of bodies word for word: each names the field, what it must be and what it was.

The golden file has the route, fields that are wrong, the code of the error, its field and its message.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxd.anthropic.schema import parse_message_body
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.openai.embeddings import parse_embedding
from mlxd.openai.response_schema import parse_response
from mlxd.openai.response_store import ResponseStore
from mlxd.openai.schema import parse_chat, parse_completion
from mlxd.protocol.errors import InvalidRequest
from tests.support.http_server import settings_of

GOLDEN = json.loads(Path(__file__).with_name("body_errors.json").read_text(encoding="utf-8"))
MESSAGES = [{"role": "user", "content": "hi"}]
WHOLE: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": MESSAGES},
    "completions": {"model": "m", "prompt": "hi"},
    "embeddings": {"model": "m", "input": "hi"},
    "responses": {"model": "m", "input": "hi"},
    "messages": {"model": "m", "max_tokens": 9, "messages": MESSAGES},
}
PARSE: dict[str, Callable[[dict[str, Any]], object]] = {
    "chat": lambda body: parse_chat(body, NoiseFilter(), Omissions("m")),
    "completions": lambda body: parse_completion(body, Omissions("m")),
    "embeddings": lambda body: parse_embedding(body, Omissions("m")),
    "responses": lambda body: parse_response(
        body, ResponseStore(lambda: settings_of().http), None, NoiseFilter(), Omissions("m")
    ),
    "messages": lambda body: parse_message_body(body, NoiseFilter(), Omissions("m")),
}


@pytest.mark.parametrize(
    ("route", "fields", "code", "param", "message"), GOLDEN, ids=[f"{row[0]}-{row[-1][:60]}" for row in GOLDEN]
)
def test_an_error_says_which_field_and_what_it_must_be(
    route: str, fields: dict[str, Any], code: str, param: str, message: str
) -> None:
    """The first error of a body is told."""
    with pytest.raises(InvalidRequest) as error:
        PARSE[route](WHOLE[route] | fields)
    assert (error.value.code, error.value.param, error.value.message) == (code, param, message)
