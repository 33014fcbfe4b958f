"""Names that the running daemon knows, for shell completion: asked for in 150 ms, or not at all. Starts nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxctl.client import Client
from mlxd.protocol.errors import ControlError

# A key press waits for this.
CAP_S = 0.15
_LOADED = frozenset({"loading", "ready", "draining"})

# name and what it is
Names = list[tuple[str, str]]
Map = Mapping[str, Any]


def ask_names(kind: str, verb: str, socket: Path, cap_s: float = CAP_S) -> Names:
    """Return the names of this *kind* that make sense for the verb; none when the daemon does not answer in time.

    Args:
        kind: how the help calls it: MODEL, OP, REQUEST, RULE, PROVIDER, TARGET, APIKEY, KEY, GEN; or ENDED, a
            request of the log.
        verb: the whole verb, such as `model unload`.
        socket: the control socket.
        cap_s: how long all of it may take.
    """
    source = _SOURCES.get(kind)
    if source is None:
        return []
    operation, read = source
    deadline_s = time.monotonic() + cap_s
    try:
        with Client(socket, cap_s) as client:
            left_s = max(0.001, deadline_s - time.monotonic())
            return list(read(client.request(operation, timeout_s=left_s).result, verb))
    except (ControlError, KeyError, TypeError):  # an older daemon's answer is of no use, and nothing to complain about
        return []


def _read_models(document: Map, verb: str) -> Iterable[tuple[str, str]]:
    for model in document["models"]:
        if verb == "model unload" and model.get("state") not in _LOADED:
            continue
        if verb == "model unpin" and not model.get("pinned"):
            continue
        if verb == "preload remove" and not model.get("preload"):
            continue
        yield model["id"], str(model.get("state") or model.get("problem") or "model")
        for alias in model.get("aliases") or ():
            yield alias, f"alias of {model['id']}"


def _read_operations(document: Map, verb: str) -> Iterable[tuple[str, str]]:
    for operation in document["operations"]:
        if verb in {"op wait", "op cancel"} and operation["state"] != "running":
            continue
        yield operation["op"], f"{operation['kind']} {' '.join(operation['models'])}, {operation['state']}"


def _read_requests(document: Map, _: str) -> Iterable[tuple[str, str]]:
    return [(request["id"], f"{request['model']}, {request['state']}") for request in document["requests"]]


def _read_ended(document: Map, _: str) -> Iterable[tuple[str, str]]:
    return [(row["request"], f"{row['model'] or 'no model'}, {row['status']}") for row in document["requests"]]


def _read_rules(document: Map, _: str) -> Iterable[tuple[str, str]]:
    return [(rule["id"], f"{rule['mode']} {rule['match']}") for rule in document["rules"]]


def _read_providers(document: Map, _: str) -> Iterable[tuple[str, str]]:
    return [(provider["id"], str(provider["base_url"])) for provider in document["providers"]]


def _read_api_keys(document: Map, _: str) -> Iterable[tuple[str, str]]:
    return [(key["name"], ", ".join(key["models"]) or "all models") for key in document["keys"]]


def _read_targets(document: Map, _: str) -> Iterable[tuple[str, str]]:
    targets: dict[str, str] = {}
    for rule in document["rules"]:
        for target in rule["to"]:
            targets.setdefault(target, f"of rule {rule['id']}")
    return targets.items()


def _read_keys(document: Map, _: str) -> Iterable[tuple[str, str]]:
    return [(setting["key"], str(setting["help"])) for setting in document["settings"]]


def _read_generations(document: Map, _: str) -> Iterable[tuple[str, str]]:
    for line in document["generations"]:
        if not line["runtime_only"]:  # that has no file to compare or to go back to
            yield str(line["gen"]), f"{line['source'] or 'unknown'}: {', '.join(line['changed']) or 'comments'}"


_SOURCES: dict[str, tuple[str, Callable[[Map, str], Iterable[tuple[str, str]]]]] = {
    "MODEL": ("model.list", _read_models),
    "OP": ("op.list", _read_operations),
    "REQUEST": ("ps", _read_requests),
    "ENDED": ("audit.list", _read_ended),
    "RULE": ("cloud.rule.list", _read_rules),
    "PROVIDER": ("cloud.provider.list", _read_providers),
    "APIKEY": ("apikey.list", _read_api_keys),
    "TARGET": ("cloud.rule.list", _read_targets),
    "KEY": ("settings.list", _read_keys),
    "GEN": ("settings.history", _read_generations),
}
