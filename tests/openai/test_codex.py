"""What Codex sends, on MLX under the templates of models that it meets, and the list of models that it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.support.codex import RESUMED, TURNS, codex_body
from tests.support.served_models import ServeModels, serve_templates
from tests.support.templates import TEMPLATES

PATH = "/v1/responses"
NO_EFFORT = {"gemma", "llama", "mistral", "plain"}  # their templates have no variable for it
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
on_device = pytest.mark.parametrize("serve_models", ["device"], indirect=True)


def events_of(stream: bytes) -> list[Any]:
    """Return the events of a stream, each of which a type of the official client takes whole."""
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n") if line.startswith("data: ")]
    return [EVENT.validate_python(json.loads(line)) for line in lines]


def said(response: Any) -> list[Any]:
    """Return what an answer says, without its ids and times."""
    skipped = {"id", "call_id"}
    return [{name: value for name, value in item.items() if name not in skipped} for item in response["output"]]


@pytest.mark.parametrize("template", sorted(TEMPLATES))
async def test_no_turn_of_codex_is_refused(tmp_path: Path, template: str) -> None:
    """Whatever a template refuses or knows; the stream is of the client's types and makes up the whole answer."""
    async with serve_templates(tmp_path, template, context=8192) as served:
        for turn in TURNS:
            body = codex_body(template, turn)
            status, headers, raw = await served.post(PATH, body)
            assert status == 200, raw
            whole = json.loads(raw)
            Response.model_validate(whole)
            _, _, stream = await served.post(PATH, body | {"stream": True})
            last = events_of(stream)[-1].response.model_dump(by_alias=True, exclude_unset=True)
            assert said(last) == said(whole)
            ignored = headers["x-mlxd-ignored-fields"]
            assert "tools[3].web_search" in ignored
            assert ("reasoning.effort" in ignored, "reasoning_effort" in ignored) == (template in NO_EFFORT, False)
            assert ("output[0]" in ignored) == (turn in ("seen", "resumed"))


@on_device
@pytest.mark.parametrize(
    ("choice", "kind", "names"),
    [
        ({"type": "custom", "name": "say"}, "custom_tool_call", ("say", None)),
        ({"type": "function", "name": "close", "namespace": "agents"}, "function_call", ("close", "agents")),
    ],
)
async def test_a_call_comes_back_as_it_was_offered(
    serve_models: ServeModels, choice: dict[str, Any], kind: str, names: tuple[str, str | None]
) -> None:
    """Streamed and whole alike; with its result it is a turn that the prompt cache knows."""
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    close = {"type": "function", "name": "close", "parameters": schema}
    tools = [
        {"type": "custom", "name": "say", "format": {"type": "grammar", "syntax": "regex", "definition": "[a-c]{2}"}},
        {"type": "namespace", "name": "agents", "description": "d", "tools": [close]},
    ]
    fields = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False, "max_output_tokens": 300}
    body = codex_body("caller", "first", **fields)
    async with serve_models() as served:
        status, _, raw = await served.post(PATH, body)
        assert status == 200, raw
        whole = json.loads(raw)
        _, _, stream = await served.post(PATH, body | {"stream": True})
        events = events_of(stream)
        call = whole["output"][-1]
        result = {"type": f"{kind}_output", "call_id": call["call_id"], "output": "ok"}
        items = [*body["input"], *whole["output"], result, RESUMED[-1]]
        status, _, raw = await served.post(PATH, body | {"input": items, "tool_choice": "auto", "max_output_tokens": 4})
        assert status == 200, raw
    assert (call["type"], call["status"]) == (kind, "completed")
    assert (call["name"], call.get("namespace")) == names
    says = call.get("input", call.get("arguments"))
    assert says == "".join(event.delta for event in events if event.type.endswith(("input.delta", "arguments.delta")))
    assert len(says) == 2 if kind == "custom_tool_call" else json.loads(says)["a"] in (1, 2)
    assert said(events[-1].response.model_dump(by_alias=True, exclude_unset=True)) == said(whole)
    usage = json.loads(raw)["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] > 0.8 * whole["usage"]["input_tokens"]


@pytest.mark.parametrize("serve_models", ["fake"], indirect=True)
async def test_codex_is_told_of_models_as_it_describes_them(serve_models: ServeModels) -> None:
    """Beside OpenAI's list, and only where it tells its version: with each context, and no media."""
    async with serve_models(models={"tiny": {"context_length": 512}}) as served:
        plain = json.loads((await served.get("/v1/models"))[2])
        asked = json.loads((await served.get("/v1/models?client_version=0.171.0"))[2])
    assert set(plain) == {"object", "data"}
    assert asked["data"] == plain["data"]
    assert [model["slug"] for model in asked["models"]] == [model["id"] for model in plain["data"]]
    (tiny,) = (model for model in asked["models"] if model["slug"] == "tiny")
    assert (tiny["context_window"], tiny["input_modalities"], tiny["visibility"]) == (512, ["text"], "list")
    # It takes no list whose entries lack one of these.
    needed = {
        *(
            "slug",
            "display_name",
            "supported_reasoning_levels",
            "shell_type",
            "visibility",
            "supported_in_api",
            "priority",
        ),
        *("base_instructions", "supports_reasoning_summaries", "support_verbosity", "truncation_policy"),
        *("supports_parallel_tool_calls", "experimental_supported_tools"),
    }
    assert needed <= set(tiny)
    assert tiny["base_instructions"]
