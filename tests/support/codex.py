"""Small bodies as Codex sends them to /v1/responses: a first turn, results of calls, an image, a resumed session."""

from __future__ import annotations

from typing import Any

_SCHEMA = {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "name": "exec_command", "description": "Run.", "strict": False, "parameters": _SCHEMA},
    {
        "type": "custom", "name": "apply_patch", "description": "Edit files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch"'},
    },
    {
        "type": "namespace", "name": "multi_agent_v1", "description": "Manage agents.",
        "tools": [{"type": "function", "name": "close_agent", "strict": False, "parameters": _SCHEMA}],
    },
    {"type": "web_search", "external_web_access": False},
]  # fmt: skip
START: list[dict[str, Any]] = [
    {"type": "message", "id": "msg_1", "role": "developer", "content": [{"type": "input_text", "text": "You code."}]},
    {"type": "message", "id": "msg_2", "role": "developer", "content": [{"type": "input_text", "text": "No skills."}]},
    {"type": "message", "id": "msg_3", "role": "user", "content": [{"type": "input_text", "text": "<cwd>/w</cwd>"}]},
    {"type": "message", "id": "msg_4", "role": "user", "content": [{"type": "input_text", "text": "read main.py"}]},
]
CALLED: list[dict[str, Any]] = [
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAABother"},
    {"type": "function_call", "id": "fc_1", "name": "exec_command", "arguments": '{"cmd": "ls"}', "call_id": "c1"},
    {"type": "function_call_output", "id": "fco_1", "call_id": "c1", "output": "main.py"},
    {"type": "custom_tool_call", "id": "ctc_1", "name": "apply_patch", "input": "*** Begin Patch", "call_id": "c2"},
    {"type": "custom_tool_call_output", "id": "cto_1", "call_id": "c2", "output": "Done!"},
    {
        "type": "function_call", "id": "fc_2", "name": "close_agent", "namespace": "multi_agent_v1", "call_id": "c3",
        "arguments": '{"cmd": "x"}',
    },
    {"type": "function_call_output", "id": "fco_2", "call_id": "c3", "output": "closed"},
]  # fmt: skip
SEEN: list[dict[str, Any]] = [
    {"type": "function_call", "id": "fc_3", "name": "view_image", "arguments": '{"path": "a.png"}', "call_id": "c4"},
    {
        "type": "function_call_output", "id": "fco_3", "call_id": "c4",
        "output": [{"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "high"}],
    },
]  # fmt: skip
RESUMED: list[dict[str, Any]] = [
    {
        "type": "message", "id": "msg_5", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "It is read.", "annotations": [], "logprobs": []}],
    },
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "The model has changed."}]},
    {"type": "message", "id": "msg_6", "role": "user", "content": [{"type": "input_text", "text": "and again"}]},
]  # fmt: skip
TURNS = {
    "first": START,
    "called": START + CALLED,
    "seen": START + CALLED + SEEN,
    "resumed": START + CALLED + SEEN + RESUMED,
}


def codex_body(model: str, turn: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a turn, short of `stream`."""
    return {
        "model": model,
        "input": TURNS[turn],
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "xhigh", "summary": "auto"},
        "text": {"verbosity": "low"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01a21fba",
        "client_metadata": {"thread_id": "01a21fba", "x-codex-turn-metadata": "{}"},
        "temperature": 0,
        "max_output_tokens": 12,
        **fields,
    }
