"""How a random model is made to call tools."""

from __future__ import annotations

from typing import Any

import pytest

from tests.agents.proxy import Call, Proxy

_CALL = Call("read", {"path": "a.png"})
_ONLY = {
    "type": "object",
    "properties": {"path": {"type": "string", "enum": ["a.png"]}},
    "required": ["path"],
    "additionalProperties": False,
}
_ANY = {"type": "object"}


def chat(*results: dict[str, Any]) -> dict[str, Any]:
    """Return a body of Chat Completions."""
    return {"messages": [*results], "tools": [{"type": "function", "function": {"name": "read", "parameters": _ANY}}]}


def messages(*results: dict[str, Any]) -> dict[str, Any]:
    """Return a body of Messages."""
    return {"messages": [{"role": "user", "content": [*results]}], "tools": [{"name": "read", "input_schema": _ANY}]}


def responses(*results: dict[str, Any]) -> dict[str, Any]:
    """Return a body of Responses, with the tool in a namespace."""
    tool = {"type": "function", "name": "read", "parameters": _ANY, "strict": False}
    return {"input": [*results], "tools": [{"type": "namespace", "name": "files", "tools": [tool]}]}


RESULTS = {
    chat: {"role": "tool", "content": "x"},
    messages: {"type": "tool_result", "content": "x"},
    responses: {"type": "function_call_output", "output": "x"},
}


@pytest.mark.parametrize("body", RESULTS)
def test_a_step_calls_its_tools_in_turn(body: Any) -> None:
    """The tool is named until its result is there; what the conversation had before the step does not count."""
    proxy, result = Proxy(""), RESULTS[body]
    proxy.begin("step", [_CALL], ["read"])

    first, retry, after = (proxy.changed(body(*[result] * count)) for count in (1, 1, 2))

    assert "tool_choice" in first
    assert retry == first
    assert "tool_choice" not in after
    assert proxy.called == 1


@pytest.mark.parametrize("body", RESULTS)
def test_a_tool_is_narrowed_in_every_request(body: Any) -> None:
    """The schema allows the wanted arguments only, also where the tool is not called: prompts stay alike."""
    proxy = Proxy("")
    proxy.begin("step", [_CALL], [])

    changed = proxy.changed(body())

    assert _ONLY in _schemas(changed["tools"])
    assert "tool_choice" not in changed


def test_a_custom_tool_is_bound_by_a_regular_expression() -> None:
    """Its only argument is its input; it may stand in an item of the input, and in a namespace."""
    proxy = Proxy("")
    proxy.begin("step", [Call("run", {"input": "f(1)"})], ["run"])
    space = {"type": "namespace", "name": "shell", "tools": [{"type": "custom", "name": "run"}]}

    changed = proxy.changed({"input": [{"type": "additional_tools", "tools": [space]}]})

    [tool] = changed["input"][0]["tools"][0]["tools"]
    assert tool["format"] == {"type": "grammar", "syntax": "regex", "definition": r"f\(1\)"}
    assert changed["tool_choice"] == {"type": "custom", "name": "run", "namespace": "shell"}


def _schemas(tools: list[dict[str, Any]]) -> list[Any]:
    [tool] = tools
    inner = tool.get("function") or (tool["tools"][0] if "tools" in tool else tool)
    return [inner.get("parameters", inner.get("input_schema"))]
