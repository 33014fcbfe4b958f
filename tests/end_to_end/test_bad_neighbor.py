"""A model whose chat template never ends, and schemas over all limits, beside a model that answers."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from openai import APIError, BadRequestError, InternalServerError, OpenAI

from tests.support.daemon import RealDaemon
from tests.support.streaming import ask

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}" + "{% endfor %}" * 3
BAD = "{% if messages[0].content == 'hello' %}" + LOOPS + "{% else %}{{ 'a' * 10 ** 10 }}{% endif %}"


def test_a_model_beside_bad_ones_answers(home: Path, daemon: RealDaemon) -> None:
    """While prompts of b never end, a answers; b's errors have a code, and its requests can be ended."""
    config = home / "models" / "b" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": BAD}))
    client = daemon.client()
    ask(client, "a")
    with pytest.raises(InternalServerError, match="takes more than 1GiB of memory") as failed:
        client.chat.completions.create(model="b", messages=[{"role": "user", "content": "more"}])
    assert failed.value.code == "template_failed"

    errors: list[APIError] = []
    askers = [threading.Thread(target=fail, args=(client, errors)) for _ in range(3)]
    for asker in askers:
        asker.start()
    while len(running := daemon.ask("request", "list")["requests"]) < 3:
        pass
    assert len(ask(client, "a")) == 8
    with pytest.raises(BadRequestError, match="max is 2000"):
        ask(client, "a", response_format=schema(3000))
    assert len(ask(client, "a")) == 8
    assert daemon.mlxctl("status", "--check", check=False).returncode == 0
    for request in running:
        daemon.mlxctl("request", "cancel", request["id"])
    for asker in askers:
        asker.join()
    assert [error.code for error in errors] == ["cancelled"] * 3
    daemon.mlxctl("model", "unload", "b", "--wait")
    assert [model["id"] for model in daemon.ask("pool", "show")["models"]] == ["a"]


def fail(client: OpenAI, errors: list[APIError]) -> None:
    """Ask b."""
    try:
        ask(client, "b")
    except APIError as error:
        errors.append(error)


def schema(properties: int) -> dict[str, object]:
    """Return a response format of so many optional properties."""
    names = {f"p{number}": {"type": "string"} for number in range(properties)}
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object", "properties": names}}}
