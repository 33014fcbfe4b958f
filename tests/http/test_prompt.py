"""What agents send of system messages, effort and `max_tokens`, on all surfaces, to models with strict templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.served_models import serve_templates

CONTEXT = 500
# By template, and whether an effort changes anything.
MODELS = {"qwen": True, "gpt-oss": True, "llama": False, "gemma": False, "mistral": False, "plain": False}
LATE = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "system", "content": "It is late."},
    {"role": "user", "content": "Bye."},
]
LEADING = [{"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Be kind."}]
SURFACES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": LEADING + LATE, "max_tokens": 32_000, "reasoning_effort": "high"},
    "/v1/responses": {"input": LEADING + LATE, "max_output_tokens": 32_000, "reasoning": {"effort": "high"}},
    "/v1/messages": {
        "system": "Be brief.\n\nBe kind.",
        "messages": LATE,
        "max_tokens": 32_000,
        "thinking": {"type": "enabled", "budget_tokens": 31_999},
        "output_config": {"effort": "high"},
    },
}
# What each calls the effort.
EFFORT = dict(zip(SURFACES, ("reasoning_effort", "reasoning.effort", "output_config.effort"), strict=True))


@pytest.mark.parametrize("stream", [False, True])
async def test_what_agents_send_is_answered_on_every_surface(tmp_path: Path, stream: bool) -> None:
    """Merged messages, mapped words and reduced bounds are no 4xx, and an effort is named where it changes nothing."""
    reads: dict[str, set[int]] = {}
    async with serve_templates(tmp_path, *MODELS, context=CONTEXT) as served:
        for path, body in SURFACES.items():
            for model, reasons in MODELS.items():
                # The bound is reduced for one of them; the others need not talk until their context is full.
                bound = {} if model == "qwen" else {name: 4 for name in body if name.startswith("max_")}
                asked = {"model": model, "stream": stream, **body, **bound}
                status, headers, raw = await served.post(path, asked)
                assert status == 200, raw
                assert headers.get("x-mlxd-ignored-fields") == (None if reasons else EFFORT[path])
                if not stream:
                    usage = json.loads(raw)["usage"]
                    inputs = [usage.get(name) or 0 for name in ("prompt_tokens", "input_tokens")]
                    reads.setdefault(model, set()).add(sum(inputs) + usage.get("cache_read_input_tokens", 0))
    # The same messages are the same prompt.
    assert all(len(lengths) == 1 for lengths in reads.values())


async def test_a_call_that_is_no_json_does_not_end_the_session(tmp_path: Path) -> None:
    """A client sends back what a model was cut off in; a template that lists arguments is given an object."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": "x'}}
    messages = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "The arguments are no JSON."},
    ]
    async with serve_templates(tmp_path, "qwen", context=CONTEXT) as served:
        body = {"model": "qwen", "messages": messages, "max_tokens": 2}
        status, _, raw = await served.post("/v1/chat/completions", body)
    assert status == 200, raw
