"""Bodies of POST /v1/messages as Claude Code sends them, with and without what its noise rules remove."""

from __future__ import annotations

from typing import Any

AGENT = "You are a Claude agent, built on Anthropic's Claude Agent SDK."
HEAD = f"\nYou are an interactive agent that helps with software tasks.\n\n{'Read before you edit. ' * 20}"
REMINDER = "<system-reminder>\n# currentDate\nToday's date is 2026-11-28.\n</system-reminder>\n"
AGENTS = "Available agent types for the Agent tool:\n- claude: Catch-all for any task that needs no other agent."


def billing(suffix: str = "3e1", more: str = "") -> str:
    """Return the line of one session, or of one request."""
    return f"x-anthropic-billing-header: cc_version=2.1.197.{suffix}; cc_entrypoint=sdk-cli;{more}"


def left(tokens: int) -> str:
    """Return the note of one request."""
    return f"<total_tokens>{tokens} tokens left</total_tokens>"


def text(*texts: str) -> list[dict[str, Any]]:
    """Return text blocks."""
    return [{"type": "text", "text": each} for each in texts]


def body(*lines: str, notes: tuple[int, ...] = (), asks: str = "read main.py") -> dict[str, Any]:
    """Return a conversation of one tool round, as its second request has it.

    Args:
        lines: system blocks before the others.
        notes: what the notes after the user's turns say; none when left out.
        asks: what the user wants.
    """
    notes_of_turns = [[{"role": "system", "content": left(tokens)}] for tokens in notes] or [[], []]
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {"command": "cat main.py"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": 'print("hello")', "is_error": False}
    return {
        "model": "m",
        "max_tokens": 9,
        "system": text(*lines, AGENT, HEAD),
        "messages": [
            {"role": "user", "content": text(REMINDER, asks)},
            {"role": "system", "content": AGENTS},
            *notes_of_turns[0],
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
            *notes_of_turns[1],
        ],
    }


NAMES = "Agent Bash Edit ListAgents Read ReportFindings Skill ToolSearch Workflow mcp__x.y__z Write"


def session() -> list[dict[str, Any]]:
    """Return the bodies of one session in turn, each of which has all of the one before.

    A question; a result of a tool, a failed one and one with an image; a tool that is found and was deferred.
    """
    tools = [_tool(name) for name in NAMES.split()]
    placeholder = {**_tool("DeferredToolPlaceholder"), "defer_loading": True}
    asked: list[dict[str, Any]] = [
        {"role": "user", "content": [*text(REMINDER), _marked("what does main.py say?")]},
        {"role": "system", "content": [_marked(AGENTS)]},
    ]
    # In later requests both are plain texts.
    told: list[dict[str, Any]] = [
        {"role": "user", "content": text(REMINDER, "what does main.py say?")},
        {"role": "system", "content": AGENTS},
    ]
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    worked = [
        *told,
        *_round(1, "Bash", "no such file", is_error=True),
        *_round(2, "Read", [image], is_error=False),
    ]
    thought = {"type": "thinking", "thinking": "", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}
    worked[2]["content"].insert(0, thought)
    searched = [*worked, *_round(3, "ToolSearch", [{"type": "tool_reference", "tool_name": "WebFetch"}])]
    late = {**_tool("WebFetch"), "defer_loading": True}
    return [
        _whole(asked, [*tools, placeholder]),
        _whole(worked, [*tools, placeholder]),
        _whole(searched, [*tools[:8], late, *tools[8:], placeholder]),
    ]


def _whole(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "max_tokens": 4,
        "system": [*text(billing()), _marked(AGENT), _marked("\nBe an agent.\n")],
        "messages": messages,
        "tools": tools,
        "thinking": {"type": "adaptive", "display": "omitted"},
        "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "u"},
    }


def _marked(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words, "cache_control": {"type": "ephemeral"}}


def _tool(name: str) -> dict[str, Any]:
    return {"name": name, "description": "", "input_schema": {"type": "object"}}


def _round(number: int, name: str, content: Any, **more: bool) -> list[dict[str, Any]]:
    """Return a call and its result."""
    result = {"tool_use_id": f"toolu_{number}", "type": "tool_result", "content": content, **more}
    call = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {"a": number}}
    return [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
