"""Calls of tools as items of /v1/responses, one shape per kind of tool: made of what a model calls, and read back."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from mlxd.engine.tool import is_object
from mlxd.openai.message import call_arguments
from mlxd.openai.tool import CUSTOM_INPUT, custom_input
from mlxd.openai.tool_name import Callee, ToolNames

_SHELL_NUMBERS = ("timeout_ms", "max_output_length")
_PREFIXES = {"function_call": "fc", "custom_tool_call": "ctc", "shell_call": "sh", "apply_patch_call": "apc"}
CALLS = frozenset(_PREFIXES)
_TYPES = {"custom": "custom_tool_call", "shell": "shell_call", "apply_patch": "apply_patch_call"}
_INPUT = re.compile(rf'\s*\{{\s*"{CUSTOM_INPUT}"\s*:\s*"')
_MOST_BEFORE_INPUT = 256
# Whole characters of a JSON text: an escape is not cut, nor is a pair of surrogates.
_CHARACTERS = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*'
)


class GrowingCall:
    """A call as it is written: what it says by now, and its item.

    The item of a function or of a custom tool is there from the beginning; that of another has its shape at the end.
    """

    def __init__(self, callee: Callee, new_id: Callable[[str], str]) -> None:
        """Begin a call of *callee*; *new_id* makes ids."""
        self._callee = callee
        self._new_id = new_id
        self._pieces: list[str] = []
        self._said: list[str] = []
        self._input = _InputReader() if callee.kind == "custom" else None
        kind = _TYPES.get(callee.kind, "function_call")
        shape = {"type": kind, "call_id": new_id("call")}
        if kind in ("function_call", "custom_tool_call"):
            shape = {**call_item(callee, shape["call_id"], ""), "arguments" if self._input is None else "input": ""}
        self.item: dict[str, Any] = _with_id(shape, new_id, "in_progress")

    def take(self, arguments: str) -> str:
        """Add a piece of its arguments; return what the call says more by it."""
        self._pieces.append(arguments)
        if self.item["type"] not in ("function_call", "custom_tool_call"):
            return ""
        text = arguments if self._input is None else self._input.take(arguments)
        self._said.append(text)
        return text

    def now(self) -> list[dict[str, Any]]:
        """Return its item as it is now; none where it has no shape yet."""
        match self.item["type"]:
            case "function_call":
                return [{**self.item, "arguments": "".join(self._said)}]
            case "custom_tool_call":
                return [{**self.item, "input": "".join(self._said)}]
        return []

    def finish(self, status: str) -> str:
        """Make its item final, incomplete where no JSON parser takes its arguments; return what it says at last."""
        arguments = "".join(self._pieces)
        status = status if is_object(arguments) else "incomplete"
        rest = ""
        if self.item["type"] == "custom_tool_call" and self._input is not None:
            rest = self._input.rest(arguments)
            self.item |= {"input": "".join((*self._said, rest)), "status": status}
        elif self.item["type"] == "function_call":
            self.item |= {"arguments": arguments, "status": status}
        else:
            self.item = _with_id(call_item(self._callee, self.item["call_id"], arguments), self._new_id, status)
        return rest


class _InputReader:
    """Reads the one text of a custom tool's arguments while it is written."""

    def __init__(self) -> None:
        self._unread = ""
        self._is_inside = False
        self._has_ended = False

    def take(self, piece: str) -> str:
        """Return what *piece* adds to the text; nothing where the arguments begin in another way."""
        if self._has_ended or (not self._is_inside and len(self._unread) > _MOST_BEFORE_INPUT):
            return ""
        self._unread += piece
        if not self._is_inside:
            start = _INPUT.match(self._unread)
            if start is None:
                return ""
            self._is_inside = True
            self._unread = self._unread[start.end() :]
        whole = _CHARACTERS.match(self._unread)
        raw = "" if whole is None else whole.group()
        self._unread = self._unread[len(raw) :]
        self._has_ended = self._unread.startswith('"')
        text: str = json.loads(f'"{raw}"', strict=False)
        return text

    def rest(self, arguments: str) -> str:
        """Return what was not said of all *arguments*: a text that was cut off loses nothing."""
        if not self._is_inside:
            return custom_input(arguments)
        return "" if self._has_ended else self._unread


def _with_id(shape: Mapping[str, Any], new_id: Callable[[str], str], status: str) -> dict[str, Any]:
    return {"id": new_id(_PREFIXES[shape["type"]]), "type": shape["type"], "status": status, **shape}


def call_item(callee: Callee, call_id: str, arguments: str) -> dict[str, Any]:
    """Return a call without its id and status; one of a shell or a patch that cannot be shown so is of a function."""
    ours: dict[str, Any] = {"call_id": call_id, "name": callee.name}
    if callee.namespace is not None:
        ours["namespace"] = callee.namespace
    if callee.kind == "custom":
        return {"type": "custom_tool_call", **ours, "input": custom_input(arguments)}
    if callee.kind == "shell":
        action = shell_action(call_arguments(arguments))
        if action is not None:
            return {"type": "shell_call", "call_id": call_id, "action": action}
    if callee.kind == "apply_patch":
        given = call_arguments(arguments)
        operation = patch_operation(given.get("operation"))
        if operation is not None:
            return {"type": "apply_patch_call", "call_id": call_id, "operation": operation}
    return {"type": "function_call", **ours, "arguments": arguments}


def called(item: Mapping[str, Any], names: ToolNames) -> dict[str, Any]:
    """Return the function of a call as chat templates want it: what the model calls it, and with which arguments."""
    match item["type"]:
        case "custom_tool_call":
            arguments: Any = {CUSTOM_INPUT: item["input"]}
        case "shell_call":
            return {"name": names.name(None, "shell"), "arguments": item["action"]}
        case "apply_patch_call":
            return {"name": names.name(None, "apply_patch"), "arguments": {"operation": item["operation"]}}
        case _:
            arguments = call_arguments(item["arguments"])
    return {"name": names.name(item.get("namespace"), item["name"]), "arguments": arguments}


def shell_action(given: Any) -> dict[str, Any] | None:
    """Return the commands of a shell's call with their limits; None where there are none."""
    commands = given.get("commands") if isinstance(given, dict) else None
    if not isinstance(commands, list) or not commands or not all(isinstance(command, str) for command in commands):
        return None
    limits = {name: given[name] for name in _SHELL_NUMBERS if type(given.get(name)) is int}
    return {"commands": commands, **limits}


def patch_operation(given: Any) -> dict[str, str] | None:
    """Return what a patch does to one file; None where it says no such thing."""
    if not isinstance(given, dict):
        return None
    needed = ("type", "path") if given.get("type") == "delete_file" else ("type", "path", "diff")
    if given.get("type") not in ("create_file", "update_file", "delete_file"):
        return None
    operation = {name: given.get(name) for name in needed}
    return operation if all(isinstance(value, str) for value in operation.values()) else None  # type: ignore[return-value]
