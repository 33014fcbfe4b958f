"""THE table of control operations: what a `req` frame may ask for, with which params, and the verbs of mlxctl.

A row is written once: the server takes its checks from here, and mlxctl the verb with its arguments, options and help;
`RESOURCES` are rows that follow from the settings table. A result is a plain map. `force` passes a check that says so;
`idem` and `if_gen` are keys of the frame, for every operation that changes something, `dry` and `persist` for those
that change settings. An operation that goes on after its reply puts the id of what goes on into the reply's `op`, for
`op.wait`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from mlxd.protocol.errors import NotFound
from mlxd.protocol.operation import PAGE, Operation, Param, ParamType, argument, count, flag, text
from mlxd.protocol.resource import RESOURCES
from mlxd.protocol.table import rows

_MODEL = argument("Model id, as `mlxctl model list` shows it, or an alias.")
_MODEL_KEYS = ", ".join(path[-1] for path, _ in rows() if path[:2] == ("models", "*"))
_FORCE = flag("Pass the checks that guard against too little memory.")
_OP = argument("Operation id, as `mlxctl op list` shows it.")
_REQUEST = argument("Request id, as `mlxctl request list` shows it; a client may have used one for several.")
_KEY = argument("Name of the key, such as the provider's.")

_DAEMON = (
    Operation("ping", "Answer at once."),
    Operation("status", "Everything at a glance: memory, models, queue, settings, sockets."),
    Operation("ps", "The loaded models and the running requests."),
    Operation("daemon.show", "The daemon's process: its files, its limits, and what it sees of the environment."),
    Operation(
        "daemon.stop",
        "End the daemon once running requests have ended.",
        {"now": flag("Cancel the running requests.")},
        at_once=True,
    ),
)
_POOL = (
    Operation("pool.show", "Memory, limits, loaded models and the queue."),
    Operation(
        "pool.simulate",
        "What a load, or another limit, would do; nothing is changed.",
        {
            "load": text("Load this model.", "MODEL"),
            "memory": text("Set pool.memory to this.", "SIZE"),
            "max_models": text("Set pool.max_models to this.", "N"),
        },
    ),
    Operation(
        "pool.evict",
        "Let a model go, or all idle ones, as if another needed the memory: what waits for it is loaded again.",
        {
            "model": argument("The model that goes; all idle ones when left out.", required=False),
            "force": flag("Let a busy model go as well, when its requests have ended."),
        },
        plans=True,
    ),
    Operation(
        "queue.show",
        "Every request that has not started: its place, how long it has waited, and for what.",
        {**PAGE, "limit": count("Most requests to list, oldest first; 500 when left out.")},
    ),
    Operation("preload.list", "The list, with the state of each model."),
    Operation(
        "preload.add",
        "Keep a model loaded.",
        {"model": _MODEL, "at": count("Place in the list, from 0; the end when left out."), "force": _FORCE},
        commits=True,
    ),
    Operation(
        "preload.remove",
        "Take a model off the list; it stays loaded until it is idle or evicted.",
        {"model": _MODEL, "unload": flag("Unload it as well.")},
        commits=True,
    ),
    Operation(
        "preload.set",
        "Replace the list.",
        {
            "models": Param(
                ParamType.TEXTS,
                "Model ids in order; none empties the list.",
                required=True,
                word="MODEL",
                is_argument=True,
            ),
            "force": _FORCE,
        },
        commits=True,
    ),
)
_SETTINGS = (
    Operation(
        "settings.get",
        "One setting: value, where it comes from, default.",
        {"key": argument("Dotted key.")},
        verb="config.get",
    ),
    Operation("settings.list", "All settings as settings.get gives them.", PAGE, verb="config.list"),
    Operation(
        "settings.set",
        "Change settings, all or none.",
        {"changes": Param(ParamType.CHANGES, "Key → value; null unsets it.", required=True), "force": _FORCE},
        verb="config.set",
        commits=True,
    ),
    Operation(
        "settings.validate",
        "Check a settings file, the one on disk unless its text is given.",
        {"text": Param(ParamType.TOML, "TOML."), "name": text("What errors call the text.")},
        verb="config.validate",
    ),
    Operation("settings.path", "Where the settings file is.", verb="config.path"),
    Operation("settings.read", "The settings file as it is on the disk, and its SHA-256."),
    Operation(
        "settings.reload",
        "Take the settings file up now.\n\nThe daemon does so by itself, seconds after it was edited.",
        verb="config.reload",
        commits=True,
        is_about_file=True,
    ),
    Operation(
        "settings.apply",
        "Take a text for the whole settings file.",
        {
            "text": Param(ParamType.TOML, "TOML.", required=True),
            "name": text("What errors call the text."),
            "base": text("SHA-256 of the file that the text was made of; refused when it is another."),
            "force": flag("Pass the checks that guard against too little memory; replace a file that is not valid."),
        },
        verb="config.apply",
        commits=True,
    ),
    Operation("settings.history", "Past generations: when, by what, what changed.", verb="config.history"),
    Operation(
        "settings.rollback",
        "Go back to the file of an earlier generation.\n\nIt is a change like any other, and can be undone alike. A"
        " settings file that is not valid is kept aside. API keys and secrets are not touched.",
        {
            "gen": Param(
                ParamType.COUNT, "Generation, as `config history` lists them.", required=True, is_argument=True
            ),
            "force": _FORCE,
        },
        verb="config.rollback",
        commits=True,
    ),
    Operation(
        "settings.diff",
        "What differs: between the file and what is in force, or between two generations of the file.",
        {"old": count("A generation."), "new": count("Another; the file as it is now when left out.")},
        verb="config.diff",
    ),
)
_MODELS = (
    Operation("model.list", "All models on disk with their state.", PAGE, lists="models"),
    Operation("model.show", "One model: where it lies, what it needs, its state.", {"model": _MODEL}),
    Operation(
        "model.estimate",
        "What a model takes, where the numbers come from, whether it fits, and what would give way for it.",
        {
            "model": _MODEL,
            "context": count("Tokens of each sequence, from 1; 4096 or the model's context when left out."),
            "parallel": count("Sequences at a time, from 1; 1 when left out."),
        },
    ),
    Operation(
        "model.load",
        "Load a model now.",
        {"model": _MODEL, "force": flag("Load it although the estimate says that it does not fit.")},
        plans=True,
    ),
    Operation(
        "model.unload",
        "Unload a model once its requests have ended.",
        {"model": _MODEL, "force": flag("End its requests with an error instead of waiting for them.")},
        plans=True,
    ),
    Operation(
        "model.pin",
        "Never evict the model and never unload it when idle.",
        {"model": _MODEL, "force": _FORCE},
        commits=True,
    ),
    Operation("model.unpin", "Make the model ordinary again.", {"model": _MODEL}, commits=True),
    Operation(
        "model.set",
        f"Change settings of a model: all or none.\n\nKEY is one of {_MODEL_KEYS}. `inherit` takes a value back;"
        " `mlxctl config list` explains them.",
        {
            "model": _MODEL,
            "changes": Param(
                ParamType.CHANGES,
                "Settings of the model; all or none are changed.",
                word="KEY=VALUE",
                is_argument=True,
            ),
            "reload": text(
                "When a loaded model takes the change up, for this once; its setting `reload` when left out.",
                "idle|now|next-load",
            ),
            "force": flag("Take a context length or an adapter that does not fit the model, and warn."),
        },
        commits=True,
    ),
    Operation(
        "catalog.rescan",
        "Look for models on disk now: what was copied there, changed or deleted.",
        verb="model.rescan",
        changes=True,
    ),
    Operation(
        "model.reset",
        "Forget that loads of a model failed, or killed the daemon: it may be loaded again at once.",
        {"model": _MODEL},
        changes=True,
    ),
    Operation("model.remove", "Delete a model's files.", {"model": _MODEL}, changes=True),
    Operation("model.alias.list", "All aliases and their models."),
    Operation(
        "model.alias.add",
        "Give a model another name.",
        {"model": _MODEL, "alias": argument("The other name.")},
        commits=True,
    ),
    Operation("model.alias.remove", "Take another name away.", {"alias": argument("The other name.")}, commits=True),
)
_CLOUD = (
    Operation(
        "cache.rules",
        "The noise rules: what each removes from prompts, and which are on.\n\n"
        "Some clients add notes for their own accounting to a prompt, other ones each time, so that no prompt begins as"
        " the one before it. A rule removes one kind of note from the requests that this machine answers; what goes to"
        " a cloud keeps all of them. `mlxctl audit show` says what was removed from a request, --json here has the"
        " patterns.\n\n"
        "To turn rules off: mlxctl config set http.noise_rules_off=NAME,NAME. To have all on again: mlxctl config unset"
        " http.noise_rules_off.",
        PAGE,
        lists="rules",
    ),
    Operation("cloud.show", "Whether the cloud is on, providers, rules, budget and breakers."),
    Operation("cloud.enable", "Let rules send requests to providers.", commits=True),
    Operation(
        "cloud.disable",
        "Send nothing to providers from now on; answers that have begun end as they would have.",
        commits=True,
    ),
    Operation(
        "cloud.breaker.list",
        "The targets that were tried in the last minute or are left alone.",
        PAGE,
        lists="breakers",
    ),
    Operation(
        "cloud.breaker.reset",
        "Ask a target again at once, or all.",
        {"target": argument("The target, as rules name it; all when left out.", "PROVIDER/MODEL", required=False)},
        changes=True,
    ),
    Operation("cloud.budget.show", "What today may cost, and what it has cost."),
    Operation(
        "cloud.budget.set",
        "Bound what a day may cost; under a bound of money, targets without a price are not asked.",
        {
            "usd_per_day": text("Most US dollars that a day (UTC) may cost.", "USD|none"),
            "requests_per_day": text("Most requests that a day (UTC) may send out.", "N|none"),
        },
        commits=True,
    ),
)
_KEYS = (
    Operation(
        "key.set",
        "Keep a key, asked for without echo or read from stdin: in the keychain, else in a file of mode 0600.",
        {
            "name": _KEY,
            "secret": text("The key.", required=True),
            "provider": text("Have this provider use it from now on.", "ID"),
        },
        commits=True,
    ),
    Operation(
        "key.list", "Where the keys of providers are, and who uses them; never what they are.", PAGE, lists="keys"
    ),
    Operation(
        "key.remove",
        "Forget a key that was kept.",
        {"name": _KEY, "force": flag("Also while a provider uses it.")},
        plans=True,
    ),
    Operation(
        "apikey.create",
        "Make a key and print it: it is shown this once, and kept as a hash.\n\nFrom the first key on, every HTTP"
        " request needs one, but /health and /ready.",
        {
            "name": argument("Name of the key, such as the client's."),
            "models": Param(ParamType.TEXTS, "Models it may use, such as org/*,tiny; all when left out.", word="GLOBS"),
            "rate": text("Requests it may send: 5/s, 60/min, 1000/h or 9000/d.", "N/PERIOD"),
        },
        changes=True,
        secrets=frozenset({"key"}),
    ),
    Operation("apikey.list", "The keys, without what is secret.", PAGE, lists="keys"),
    Operation(
        "apikey.revoke",
        "Refuse a key from now on; requests that it has begun run on.",
        {"name": argument("Name of the key, as `mlxctl apikey list` shows it.", "APIKEY")},
        changes=True,
    ),
)
_RUNNING = (
    Operation("op.list", "Operations that run, and the last that ended.", PAGE, lists="operations"),
    Operation("op.show", "One operation: how far it is, or how it ended.", {"op": _OP}),
    Operation(
        "op.wait",
        "Answer when the operation has ended or the timeout has passed, with `prog` frames until then.",
        {"op": _OP, "timeout_ms": count("Longest wait; without end when left out.")},
    ),
    Operation("op.cancel", "Give it up; a load or unload that has begun comes to its end.", {"op": _OP}, at_once=True),
    Operation("request.list", "Every request that is being answered, oldest first.", PAGE, lists="requests"),
    Operation("request.show", "One request, and what it waits for.", {"request": _REQUEST}),
    Operation(
        "request.cancel",
        "End a request: its client gets an error, in the stream when that has begun.",
        {"request": _REQUEST},
        at_once=True,
    ),
)

_TIMES = {
    "since_ms": count("Begun at this time or later, unix time."),
    "until_ms": count("Begun before this time, unix time."),
}
_FILTERS = {
    "model": text("That answered, or was asked last."),
    "asked": text("As the client called the model.", "NAME"),
    "route": text("Where it was answered.", "local|cloud"),
    "status": text("How it ended.", "ok|error|cancelled|timeout"),
    "code": text("Code of the error, such as queue_full."),
    "endpoint": text("Under /v1: chat/completions.", "PATH"),
    "target": text("The cloud's target.", "PROVIDER/MODEL"),
    "key": text("Id of the client's API key.", "ID"),
    "request": text("Id of the request."),
    **_TIMES,
}
_ROWS = {
    **PAGE,
    "limit": count("Most rows to answer with, from 1 to 1000; 100 when left out."),
    "oldest_first": flag("The oldest first instead of the newest."),
}
_AUDIT = (
    Operation("audit.list", "Requests that have ended.", {**_FILTERS, **_ROWS}),
    Operation("audit.changes", "Changes of settings and of what runs.", {**_TIMES, **_ROWS}),
    Operation("audit.stats", "How many requests ended how, how long they took, what they used.", _FILTERS),
)

_TABLE = (*_DAEMON, *_POOL, *_SETTINGS, *_MODELS, *_CLOUD, *_KEYS, *_RUNNING, *_AUDIT)
OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {row.name: row for rows in (_TABLE, *(resource.operations() for resource in RESOURCES.values())) for row in rows}
)


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
