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
