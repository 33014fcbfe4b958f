"""Tools that Anthropic defines and the client runs: the body has their type alone, and a model needs a schema."""

from __future__ import annotations

import re
from typing import Any

_TYPE = re.compile(r"(bash|text_editor|memory)_([0-9]{8})")
# From this version of the editor on, what is inserted has a name of its own, and nothing is undone.
_EDITOR_INSERT_TEXT = "20250429"

_BASH = "Run a command in a bash shell. Its state lasts from one call to the next."
_EDITOR = "View, create and edit text files. The state of the files lasts from one call to the next."
_MEMORY = (
    "Keep notes in files under /memories, which last beyond this conversation. View that directory before you begin, "
    "and write down there what will be needed later: the conversation may end at any time."
)
_PATH = "Absolute path of a file or directory."
_VIEW_RANGE = "For view: the first and the last line to show, from 1 on; a last line of -1 is the end of the file."


def client_tool(kind: str) -> dict[str, Any] | None:
    """Return name, description and input schema of the tool of type *kind*; None where no client runs it."""
    matched = _TYPE.fullmatch(kind)
    if matched is None:
        return None
    family, version = matched.groups()
    if family == "bash":
        properties: dict[str, Any] = {
            "command": _text("The command to run; not needed for a restart."),
            "restart": {"type": "boolean", "description": "True starts the shell anew."},
        }
        return _tool("bash", _BASH, properties, ())
    if family == "memory":
        commands = ("view", "create", "str_replace", "insert", "delete", "rename")
        properties = _file_properties(commands, "insert_text") | {
            "old_path": _text("For rename: the path as it is."),
            "new_path": _text("For rename: the path as it is to be."),
        }
        return _tool("memory", _MEMORY, properties, ("command",))
    if version >= _EDITOR_INSERT_TEXT:
        properties = _file_properties(("view", "create", "str_replace", "insert"), "insert_text")
        return _tool("str_replace_based_edit_tool", _EDITOR, properties, ("command", "path"))
    properties = _file_properties(("view", "create", "str_replace", "insert", "undo_edit"), "new_str")
    return _tool("str_replace_editor", _EDITOR, properties, ("command", "path"))


def _file_properties(commands: tuple[str, ...], inserted: str) -> dict[str, Any]:
    properties = {
        "command": {"type": "string", "enum": list(commands), "description": "What to do."},
        "path": _text(_PATH),
        "view_range": {"type": "array", "items": {"type": "integer"}, "description": _VIEW_RANGE},
        "file_text": _text("For create: the content of the file."),
        "old_str": _text("For str_replace: the text to replace; it must be in the file exactly once."),
        "new_str": _text("For str_replace: the text in its place."),
        "insert_line": {"type": "integer", "description": "For insert: the line after which to insert; 0 is the top."},
    }
    if inserted == "new_str":
        properties["new_str"] = _text("For str_replace: the text in its place. For insert: the text to insert.")
    else:
        properties[inserted] = _text("For insert: the text to insert.")
    return properties


def _text(description: str) -> dict[str, str]:
    return {"type": "string", "description": description}


def _tool(name: str, description: str, properties: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"name": name, "description": description, "input_schema": schema}
