"""THE table of control operations: what a `req` frame may ask for, with which params.

The server takes its checks from here, and mlxctl its names. A result is a plain map. `force` passes a check that says
so; `dry` and `if_gen` are keys of the frame, for every operation that changes settings. An operation that goes on after
its reply puts the id of what goes on into the reply's `op`, for `op.wait`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from mlxd.protocol.errors import InvalidRequest, NotFound


class ParamType(Enum):
    """What a param may hold; the value is how it is called in messages."""

    TEXT = "a text that is not empty"
    COUNT = "a whole number of at least 0"
    INTEGER = "a whole number"
    BOOLEAN = "true or false"
    TEXTS = "a list of texts"
    CHANGES = "a map of settings to values"

    def accepts(self, value: object) -> bool:
        """Tell whether *value* is of this type."""
        match self:
            case ParamType.TEXT:
                return isinstance(value, str) and value != ""
            case ParamType.COUNT:
                return isinstance(value, int) and not isinstance(value, bool) and value >= 0
            case ParamType.INTEGER:
                return isinstance(value, int) and not isinstance(value, bool)
            case ParamType.BOOLEAN:
                return isinstance(value, bool)
            case ParamType.TEXTS:
                return isinstance(value, list) and all(isinstance(item, str) and item for item in value)
            case ParamType.CHANGES:
                return isinstance(value, dict) and bool(value)


@dataclass(frozen=True, slots=True)
class Param:
    """One param of an operation."""

    type: ParamType
    help: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    Attributes:
        name: what `m` holds.
        help: one sentence.
        params: name → type.
        mutates: True when it changes something; such operations run one at a time, in the order of their arrival.
        commits: True when it changes settings; such operations take `dry` and `if_gen`.
    """

    name: str
    help: str
    params: Mapping[str, Param] = field(default_factory=dict)
    mutates: bool = False
    commits: bool = False


def _text(help_text: str, *, required: bool = True) -> Param:
    return Param(ParamType.TEXT, help_text, required)


def _flag(help_text: str) -> Param:
    return Param(ParamType.BOOLEAN, help_text, required=False)


def _count(help_text: str) -> Param:
    return Param(ParamType.COUNT, help_text, required=False)


_MODEL = _text("Model id.")
_FORCE = _flag("Pass the checks that guard against too little memory.")

_TABLE = (
    Operation("ping", "Answer at once."),
    Operation("status", "Everything at a glance: memory, models, queue, settings, sockets."),
    Operation("ps", "The loaded models and the running requests."),
    Operation("pool.show", "Memory, limits, residents and the queue."),
    Operation("settings.get", "One setting: value, what stands in the file, default.", {"key": _text("Dotted key.")}),
    Operation("settings.list", "All settings as settings.get gives them."),
    Operation(
        "settings.set",
        "Change settings, all or none.",
        {"changes": Param(ParamType.CHANGES, "Key → value; null unsets it."), "force": _FORCE},
        mutates=True,
        commits=True,
    ),
    Operation(
        "settings.validate",
        "Check a settings file, the one on disk unless its text is given.",
        {"text": Param(ParamType.TEXT, "TOML.", required=False)},
    ),
    Operation("settings.path", "Where the settings file is."),
    Operation("settings.reload", "Read the settings file now.", mutates=True),
    Operation("model.list", "All models on disk with their state."),
    Operation("model.show", "One model.", {"model": _MODEL}),
    Operation(
        "model.load",
        "Load a model.",
        {"model": _MODEL, "force": _flag("Load it although the estimate says that it does not fit.")},
        mutates=True,
    ),
    Operation(
        "model.unload",
        "Unload a model once its requests have ended.",
        {"model": _MODEL, "force": _flag("End its requests with an error instead of waiting for them.")},
        mutates=True,
    ),
    Operation("model.pin", "Never evict the model.", {"model": _MODEL, "force": _FORCE}, mutates=True, commits=True),
    Operation("model.unpin", "Make the model ordinary again.", {"model": _MODEL}, mutates=True, commits=True),
    Operation("model.remove", "Delete the model's files under MLXD_HOME/models.", {"model": _MODEL}, mutates=True),
    Operation("catalog.rescan", "Look for models on disk now.", mutates=True),
    Operation("preload.list", "The models that are kept loaded, with their state."),
    Operation(
        "preload.add",
        "Keep a model loaded.",
        {"model": _MODEL, "at": _count("Place in the list, from 0; the end when left out."), "force": _FORCE},
        mutates=True,
        commits=True,
    ),
    Operation(
        "preload.remove",
        "Take a model off the list.",
        {"model": _MODEL, "unload": _flag("Unload it as well.")},
        mutates=True,
        commits=True,
    ),
    Operation(
        "preload.set",
        "Replace the list.",
        {"models": Param(ParamType.TEXTS, "Model ids in order."), "force": _FORCE},
        mutates=True,
        commits=True,
    ),
    Operation("cloud.show", "Providers and rules, and whether the cloud is on."),
    Operation("cloud.enable", "Let rules send requests to providers.", mutates=True, commits=True),
    Operation("cloud.disable", "Send nothing to providers from now on.", mutates=True, commits=True),
    Operation(
        "cloud.provider.add",
        "Add an upstream server.",
        {
            "id": _text("Name of the provider."),
            "base_url": _text("Address up to and including /v1."),
            "kind": _text("Wire protocol: openai.", required=False),
            "auth_env": _text("Environment variable of the daemon that holds the key.", required=False),
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.provider.list", "The upstream servers."),
    Operation(
        "cloud.provider.remove",
        "Remove an upstream server that no rule uses.",
        {"id": _text("Its name.")},
        mutates=True,
        commits=True,
    ),
    Operation(
        "cloud.rule.add",
        "Add a routing rule.",
        {
            "id": _text("Name of the rule; made from the match when left out.", required=False),
            "match": _text("exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN."),
            "mode": _text("always or never."),
            "to": Param(ParamType.TEXTS, "PROVIDER/MODEL; one for always, none for never.", required=False),
            "priority": Param(ParamType.INTEGER, "Higher goes first; 100 when left out.", required=False),
        },
        mutates=True,
        commits=True,
    ),
    Operation("cloud.rule.list", "The rules in the order in which they are tried."),
    Operation("cloud.rule.remove", "Remove a rule.", {"id": _text("Its name.")}, mutates=True, commits=True),
    Operation(
        "cloud.rule.explain",
        "Say where a request for a name would go, and why.",
        {"model": _text("The name asked for.")},
    ),
    Operation("op.list", "Operations that run, and the last that ended."),
    Operation("op.show", "One operation.", {"op": _text("Operation id.")}),
    Operation(
        "op.wait",
        "Answer when the operation has ended or the timeout has passed, with `prog` frames until then.",
        {"op": _text("Operation id."), "timeout_ms": _count("Longest wait; without end when left out.")},
    ),
    Operation("op.cancel", "Give an operation up.", {"op": _text("Operation id.")}),
    Operation(
        "daemon.stop",
        "End the daemon once running requests have ended.",
        {"now": _flag("Cancel the running requests.")},
    ),
)

OPERATIONS: Mapping[str, Operation] = MappingProxyType({operation.name: operation for operation in _TABLE})


def find_operation(name: object) -> Operation:
    """Return the operation called *name*.

    Raises:
        NotFound: there is none; the message names the nearest.
    """
    operation = OPERATIONS.get(name) if isinstance(name, str) else None
    if operation is not None:
        return operation
    near = difflib.get_close_matches(str(name), OPERATIONS, n=1)
    msg = f"there is no operation {name!r}" + (f"; the nearest is {near[0]!r}" if near else "")
    raise NotFound(msg, hint="a newer mlxctl than the running mlxd? mlxctl restart")


def check_params(operation: Operation, params: object) -> tuple[dict[str, Any], list[str]]:
    """Return the params that the operation knows, without those that are null, and the names of those it does not know.

    Raises:
        InvalidRequest: a param is missing or of the wrong type; `param` names it.
    """
    if not isinstance(params, dict):
        raise InvalidRequest(f"the params of {operation.name} must be a map")
    given = {name: value for name, value in params.items() if value is not None}
    for name, param in operation.params.items():
        if name not in given:
            if param.required:
                raise InvalidRequest(f"{operation.name} needs {name!r}: {param.help}", param=name)
        elif not param.type.accepts(given[name]):
            raise InvalidRequest(f"{name!r} of {operation.name} must be {param.type.value}", param=name)
    known = {name: value for name, value in given.items() if name in operation.params}
    return known, sorted(set(given) - set(known))
