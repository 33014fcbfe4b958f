"""The text of a change that was made or is planned: settings, models that go and come, what goes on after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlxctl.call import Call, Document
from mlxctl.output import format_pairs, show_duration, show_size
from mlxd.protocol.units import count

_DRY_RUN = "dry run: nothing was changed"
_WHEN = {"idle": "when it is idle", "now": "after its running requests", "next-load": "when it is asked for next"}


_FITS = {
    "fits": "now",
    "freeing": "when what is named here has given way",
    "blocked": "not while other models are busy",
    "never": "never under this limit",
}
_SOURCES = {
    "measured": "measured at a load",
    "header": "computed from the files",
    "guess": "a guess: the config does not tell",
}


def show_change(call: Call, document: Document) -> None:
    """Print the reply to a change; its warnings go to stderr."""
    if not call.options.json:
        for warning in document.get("warnings", []):
            call.note(f"warning: {warning}")
    call.show(document, lambda shown: "\n".join(_lines(shown, is_dry=call.options.dry_run)))


def show_value(value: object) -> str:
    """Return a setting's value as `config set` takes it."""
    if value is None:
        return "(unset)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value) or "(empty)"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {show_value(item)}" for key, item in value.items()) + " }"
    return str(value)


def show_difference(change: Mapping[str, Any]) -> str:
    """Return one {key, old, new} as a line."""
    return f"{change['key']}: {show_value(change.get('old'))} -> {show_value(change.get('new'))}"


def _lines(document: Mapping[str, Any], *, is_dry: bool) -> Iterator[str]:
    changed = document.get("changed", [])
    if not changed:
        yield "no setting in force changes, the file does" if document.get("rewritten") else "unchanged"
    for change in changed:
        yield show_difference(change)
    memory = document.get("memory")
    if memory is not None and "pool.memory" in {change["key"] for change in changed}:
        yield f"limit {show_size(memory['limit_bytes'])}, {show_size(memory['reserved_bytes'])} reserved"
    if document.get("listening") is not None:
        yield f"listening on {document['listening']}"
    yield from effect_lines(document)
    if is_dry:
        yield _DRY_RUN
    elif "gen" in document:
        note = ", runtime-only: lost when the daemon ends" if changed and document.get("runtime_only") else ""
        yield f"generation {document['gen']}{note}"


def effect_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the change moves: a line for each model, what it leads to, and how to watch it."""
    for name, words in _MOVED_BYTES.items():
        if name == "evicting" and "unloading" in document:
            continue  # an unload says the same under both names: 0.1.0 reads this one
        for victim in document.get(name, []):
            yield f"{words} {victim['id']}: {show_size(victim['bytes'])}"
    for model in document.get("draining", []):
        yield f"draining {model['id']}: {show_size(model['bytes'])}, {count(model['requests'], 'request')} to end"
    for model in document.get("loading", []):
        yield f"loading {model}"
    yield from _outlook_lines(document)
    if "operation" in document:
        yield f"done ({document['op']})"
    elif document.get("op") is not None:
        yield f"{document['op']} goes on: mlxctl op wait {document['op']}"


_MOVED_BYTES = {
    "evicting": "evicting",
    "unloading": "unloading",
    "aborting": "stopping the load of",
    "trimming": "trimming the prompt cache of",
    "evicting_later": "then evicting",
}


def _outlook_lines(document: Mapping[str, Any]) -> Iterator[str]:
    for model in document.get("stale", []):
        yield f"{model['id']} is loaded again {_WHEN.get(model['reload'], model['reload'])}: {model['reason']}"
    for model in document.get("deferred", []):
        yield f"deferred {model['id']}: {model['reason']}"
    if document.get("waiting"):
        yield f"waiting: {document['waiting']}"
    if document.get("drain_after_s") is not None:
        yield f"busy models begin to drain after {show_duration(document['drain_after_s'])}"
    if document.get("over_limit"):
        yield f"over limit: {document['over_limit']}"


def format_estimate(document: Mapping[str, Any]) -> str:
    """Return `mlxctl model estimate`."""
    sequences = f"{document['parallel']} x {document['context_tokens']} tokens"
    base = document.get("base")
    lines = [
        format_pairs(
            [
                ("model", f"{document['model']}, {document['state']}"),
                ("weights", f"{show_size(document['weights_bytes'])}, {_SOURCES[document['weights_confidence']]}"),
                ("KV", f"{show_size(document['kv_bytes'])} for {sequences}, {_SOURCES[document['kv_confidence']]}"),
                ("margin", show_size(document["margin_bytes"])),
                ("total", show_size(document["total_bytes"])),
                ("base", None if base is None else f"{base}, {show_size(document['base_bytes'])}"),
                ("to load it", show_size(document["load_bytes"])),
                ("limit", f"{show_size(document['limit_bytes'])}, {show_size(document['free_bytes'])} free"),
                ("fits", _FITS.get(document["fits"], document["fits"])),
            ]
        ),
        *(
            f"would {line.replace('evicting', 'evict', 1).replace('trimming', 'trim', 1)}"
            for line in effect_lines(document)
        ),
    ]
    return "\n".join(lines)


def format_simulation(document: Mapping[str, Any]) -> str:
    """Return `mlxctl pool simulate`."""
    lines = [f"{change['key']}: {change.get('old')} -> {change.get('new')}" for change in document.get("changed", [])]
    lines += [f"would be refused: {reason}" for reason in document.get("refused", [])]
    lines += effect_lines(document)
    memory = document.get("memory")
    if memory is not None:
        lines.append(f"limit {show_size(memory['limit_bytes'])}, {show_size(memory['reserved_bytes'])} reserved now")
    return "\n".join([*(lines or ["nothing would move"]), "simulated: nothing was changed"])


def format_evicted(document: Mapping[str, Any]) -> str:
    """Return `mlxctl pool evict`."""
    model = document.get("model")
    lines = list(effect_lines(document)) or ["no model is idle" if model is None else f"{model} is not loaded"]
    lines += [f"stays: {kept['reason']}" for kept in document.get("kept", []) if model is None]
    return "\n".join([*lines, *([_DRY_RUN] if document.get("dry_run") else [])])
