"""What a model takes and what would give way, as text: estimates, simulations, evictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlxctl.change import effect_lines
from mlxctl.output import format_pairs, show_size

Map = Mapping[str, Any]

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


def format_estimate(document: Map) -> str:
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


def format_simulation(document: Map) -> str:
    """Return `mlxctl pool simulate`."""
    lines = [f"{change['key']}: {change.get('old')} -> {change.get('new')}" for change in document.get("changed", [])]
    lines += [f"would be refused: {reason}" for reason in document.get("refused", [])]
    lines += effect_lines(document)
    memory = document.get("memory")
    if memory is not None:
        lines.append(f"limit {show_size(memory['limit_bytes'])}, {show_size(memory['reserved_bytes'])} reserved now")
    return "\n".join([*(lines or ["nothing would move"]), "simulated: nothing was changed"])


def format_evicted(document: Map) -> str:
    """Return `mlxctl pool evict`."""
    return "\n".join(_evicted(document))


def _evicted(document: Map) -> Iterator[str]:
    moved = list(effect_lines(document))
    yield from moved
    is_all = document.get("model") is None
    if not moved:
        yield "no model is idle" if is_all else f"{document['model']} is not loaded"
    for kept in document.get("kept", []) if is_all else []:
        yield f"stays: {kept['reason']}"
    if document.get("dry_run"):
        yield "dry run: nothing was changed"
