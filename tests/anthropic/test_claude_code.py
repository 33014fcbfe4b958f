"""A session of Claude Code, under the templates of models that it meets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.beta import BetaMessage, BetaMessageTokensCount, BetaRawMessageStreamEvent
from pydantic import TypeAdapter

from tests.support.claude_code import session
from tests.support.served_models import serve_templates

MESSAGES = "/v1/messages"
COUNT = f"{MESSAGES}/count_tokens"
# What the client sends and this machine does without; the effort too, where the template knows none.
LEFT_OUT = ["context_management"]
IMAGE = "messages[5].content[0].content[0]"
_EVENT: TypeAdapter[Any] = TypeAdapter(BetaRawMessageStreamEvent)


def events(raw: bytes) -> list[Any]:
    """Return the events of a stream, as the SDK's types have them."""
    data = [line.removeprefix("data: ") for line in raw.decode().splitlines() if line.startswith("data: ")]
    parsed = [json.loads(each) for each in data]
    return [_EVENT.validate_python(each) for each in parsed if each["type"] != "ping"]


@pytest.mark.parametrize("template", ["qwen", "gpt-oss", "llama", "gemma", "mistral", "plain"])
async def test_a_session_is_answered_under_every_template(template: str, tmp_path: Path) -> None:
    """Streamed, whole and counted, and a deferred tool that is found leaves what was read in the prompt cache."""
    read: list[int] = []
    async with serve_templates(tmp_path, template, context=8192) as served:
        for number, body in enumerate(session()):
            asked = {**body, "model": template}
            status, headers, raw = await served.post(f"{MESSAGES}?beta=true", {**asked, "stream": True})
            assert status == 200, raw
            named = headers["x-mlxd-ignored-fields"].split(", ")
            assert [name for name in named if name != "output_config.effort"] == LEFT_OUT + [IMAGE] * (number > 0)
            told = events(raw)
            assert (told[0].type, told[-1].type) == ("message_start", "message_stop")
            used = told[0].message.usage
            cached, total = used.cache_read_input_tokens, used.cache_read_input_tokens + used.input_tokens
            assert number < 2 or cached > 0.9 * read[-1]
            read.append(total)
            status, _, raw = await served.post(f"{MESSAGES}?beta=true", asked)
            assert status == 200, raw
            assert BetaMessage.model_validate_json(raw).usage.cache_read_input_tokens is not None
            status, _, raw = await served.post(f"{COUNT}?beta=true", asked)
            assert (status, BetaMessageTokensCount.model_validate_json(raw).input_tokens) == (200, total)
