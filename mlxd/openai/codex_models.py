"""The list of models as Codex reads it: without one it takes each model for another, of 272,000 tokens.

Seen with codex 0.171: an entry without one of these members fails the whole list, and `base_instructions` take the
place of the program's own, so they are written here for models that run on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_INSTRUCTIONS = """\
You are a coding agent in a terminal. You and the user share a workspace: your tools read its files and run commands.

- Look before you act: read the files that a task is about, and those that use what you change.
- Work until the task is done. Ask only what the workspace cannot tell you, or before you destroy something.
- Change as little as the task needs, in the style of the code around it. Never undo changes that you did not make.
- Follow AGENTS.md files: each is for its folder and all below, and a deeper one goes first. The user's words go before.
- Search with rg where it is there. Read long files in parts.
- Run the tests or the program where you can. Never claim a result that you did not see.
- Commit only when you are asked to.
- When a command fails, read its output and try another way.
- End with a short answer in plain words: what you found or changed, in which files, and what is left to do.
"""


def codex_models(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return those of OpenAI's model objects that can chat, as Codex describes models."""
    chatting = [model for model in models if model.get("kind", "text") == "text"]
    return [_model(model, place) for place, model in enumerate(chatting)]


def _model(model: Mapping[str, Any], place: int) -> dict[str, Any]:
    context = model.get("context_length")
    known = {} if context is None else {"context_window": context, "max_context_window": context}
    return {
        "slug": model["id"],
        "display_name": model["id"],
        "description": f"Served by mlxd ({model['state']}).",
        "supported_reasoning_levels": [],
        "shell_type": "default",
        "visibility": "list",
        "supported_in_api": True,
        "priority": place,
        "availability_nux": None,
        "upgrade": None,
        "base_instructions": _INSTRUCTIONS,
        "supports_reasoning_summaries": True,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": None,
        "truncation_policy": {"mode": "bytes", "limit": 10_000},
        "supports_parallel_tool_calls": True,
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
        **known,
    }
