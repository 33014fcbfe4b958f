"""From the bodies of all three protocols to prompts: an agent's next request leaves the last one at a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlxd.anthropic.schema import parse_message_body
from mlxd.engine.base import GenerationRequest
from mlxd.http.noise import NoiseFilter
from mlxd.http.omissions import Omissions
from mlxd.openai.response_schema import parse_response
from mlxd.openai.response_store import ResponseStore
from mlxd.openai.schema import parse_chat
from tests.support.chat_template import REAL
from tests.support.chat_tokenizer import byte_level
from tests.support.http_server import settings_of
from tests.support.prompt import renderer_of, shared_tokens

SYSTEM = "You are a careful agent. Say what you do before you do it, and stop when you are done."
QUESTION, NEXT, OTHER = "Which files are there?", "Delete the largest, please.", "\nTranslate the title."
THOUGHT, SAID, FOUND = "I should list them first.", "There are two.", "a.txt 12\nb.txt 7"
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}


def chat(question: str, *more: str) -> GenerationRequest:
    """Return a request of /v1/chat/completions: *question*, and where there is *more*, a tool loop and the next one."""
    function = {"name": "bash", "description": "Run a command.", "parameters": SCHEMA}
    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
    system: dict[str, Any] = {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    messages = [system, {"role": "user", "content": [{"type": "text", "text": question}]}]
    if more:
        messages.append({"role": "assistant", "content": None, "reasoning_content": THOUGHT, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": "c1", "content": more[0]})
    for text in more[1:]:
        messages += [{"role": "assistant", "content": SAID}, {"role": "user", "content": text}]
    body = {"model": "m", "messages": messages, "tools": [{"type": "function", "function": function}]}
    (request,) = parse_chat(body, NoiseFilter(), Omissions("m", rejects_fields=True)).requests
    return request


def message(question: str, *more: str) -> GenerationRequest:
    """Return the same of /v1/messages."""
    call = {"type": "tool_use", "id": "c1", "name": "bash", "input": {"command": "ls"}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": question}]}]
    if more:
        thought = {"type": "thinking", "thinking": THOUGHT, "signature": ""}
        found = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": more[0]}]}
        messages += [{"role": "assistant", "content": [thought, call]}, {"role": "user", "content": [found]}]
    for text in more[1:]:
        messages += [{"role": "assistant", "content": SAID}, {"role": "user", "content": text}]
    body = {
        "model": "m",
        "max_tokens": 100,
        "system": [{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}],
        "messages": messages,
        "tools": [{"name": "bash", "description": "Run a command.", "input_schema": SCHEMA}],
    }
    return parse_message_body(body, NoiseFilter(), Omissions("m", rejects_fields=True)).request


def response(question: str, *more: str) -> GenerationRequest:
    """Return the same of /v1/responses."""
    items: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "input_text", "text": question}]}]
    if more:
        thought = [{"type": "reasoning_text", "text": THOUGHT}]
        items.append({"type": "reasoning", "id": "r1", "summary": [], "content": thought})
        items.append({"type": "function_call", "call_id": "c1", "name": "bash", "arguments": '{"command": "ls"}'})
        items.append({"type": "function_call_output", "call_id": "c1", "output": more[0]})
    for text in more[1:]:
        items += [{"role": "assistant", "content": SAID}, {"role": "user", "content": text}]
    body = {
        "model": "m",
        "instructions": SYSTEM,
        "input": items,
        "tools": [{"type": "function", "name": "bash", "description": "Run a command.", "parameters": SCHEMA}],
    }
    store = ResponseStore(lambda: settings_of().http)
    return parse_response(body, store, None, NoiseFilter(), Omissions("m", rejects_fields=True)).request


@pytest.mark.parametrize("asked", [chat, message, response])
@pytest.mark.parametrize("template", ["qwen 3", "harmony"])
def test_requests_of_an_agent_leave_each_other_at_checkpoints(
    asked: Callable[..., GenerationRequest], template: str
) -> None:
    """Tool rounds, the next turn without its reasoning, another session, and a last message that was edited."""
    tokenizer = byte_level()
    tokenizer.chat_template = REAL[template]
    renderer = renderer_of(tokenizer)
    loop = (QUESTION, FOUND)
    for one, other in [
        ((QUESTION,), loop),
        ((QUESTION, ""), (QUESTION, "", NEXT)),
        (loop, (*loop, NEXT)),
        (loop, (OTHER,)),
        ((*loop, NEXT), (*loop, OTHER)),
        ((*loop, NEXT), (*loop, NEXT, OTHER)),
    ]:
        first, second = (renderer.prepare(asked(*texts)) for texts in (one, other))
        common = shared_tokens(first, second)
        assert max(k for k in first.checkpoints if k <= common) >= common - 12, (one, other)
