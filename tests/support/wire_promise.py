"""What the control protocol has promised: the params of every operation and the types of every field of its reply.

`tests/protocol/wire_promise.json` holds what was promised. A field may come, and is written down by

    python -m tests.support.wire_promise

which adds and never changes: a field that is gone or of another type is a broken promise, and the test says so.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxd.protocol.operations import OPERATIONS
from mlxd.protocol.paths import Home
from tests.support.control import running_plane
from tests.support.operation_example import collect_replies
from tests.support.transcript import ANY_TYPE

PATH = Path(__file__).parent.parent / "protocol" / "wire_promise.json"
_NAMES = {bool: "boolean", int: "integer", float: "number", str: "text", list: "list", dict: "map", type(None): "null"}

Shape = dict[str, list[str]]  # path of a field → the types that it was seen with
Promises = dict[str, dict[str, Any]]


def read_promises() -> Promises:
    """Return what was promised."""
    promises: Promises = json.loads(PATH.read_text())
    return promises


def params_now() -> dict[str, dict[str, Any]]:
    """Return operation → param → its type, and whether it must be given."""
    return {
        operation.name: {
            name: {"type": param.type.name, "required": param.required} for name, param in operation.params.items()
        }
        for operation in OPERATIONS.values()
    }


async def shapes_now() -> dict[str, Shape]:
    """Return operation → the shape of its replies, as examples show it."""
    with tempfile.TemporaryDirectory(prefix="mlxd-") as root:
        async with running_plane(Home(Path(root))) as plane:
            replies = await collect_replies(plane)
    shapes: dict[str, Shape] = {}
    for name, examples in replies.items():
        types: dict[str, set[str]] = {}
        for reply in examples:
            for path, word in _fields(reply):
                types.setdefault(path, set()).add(word)
        shapes[name] = {path: sorted(words) for path, words in sorted(types.items())}
    return shapes


def _fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            where = f"{path}.{name}" if path else name
            yield where, "any" if name in ANY_TYPE else _NAMES[type(item)]
            if name not in ANY_TYPE:
                yield from _fields(item, where)
    elif isinstance(value, list):
        for item in value:
            yield f"{path}[]", _NAMES[type(item)]
            yield from _fields(item, f"{path}[]")


def broken_params(promised: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield what a client that sends the params as *promised* would be refused for."""
    for name, param in promised.items():
        if name not in now:
            yield f"{name} is gone"
        elif now[name]["type"] != param["type"]:
            yield f"{name} was {param['type']} and is {now[name]['type']}"
    for name, param in now.items():
        if param["required"] and not promised.get(name, {"required": False})["required"]:
            yield f"{name} must be given now"


def broken_fields(promised: Shape, now: Shape) -> Iterator[str]:
    """Yield the fields that are gone or of a type that they never had; null is of any type."""
    for path, types in promised.items():
        if path not in now:
            yield f"{path} is gone"
            continue
        before, after = set(types) - {"null"}, set(now[path]) - {"null"}
        if before and not after <= before:
            yield f"{path} was {' or '.join(sorted(before))} and is {' or '.join(sorted(after))}"


def write_promises() -> None:
    """Add what is new to what was promised."""
    promises: Promises = read_promises() if PATH.exists() else {}
    shapes = asyncio.run(shapes_now())
    for name, params in params_now().items():
        entry = promises.setdefault(name, {"params": {}, "reply": {}})
        entry["params"] = {**params, **entry["params"]}
        for path, types in shapes[name].items():
            entry["reply"][path] = sorted({*entry["reply"].get(path, []), *types})
        entry["reply"] = dict(sorted(entry["reply"].items()))
    PATH.write_text(json.dumps(dict(sorted(promises.items())), indent=1) + "\n")


if __name__ == "__main__":
    write_promises()
