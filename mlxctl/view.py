"""The pool, its models and the running requests as text: what status, ps, pool and model show."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlxctl.activity import format_requests, format_running_operations, format_waits
from mlxctl.output import format_fields, format_pairs, format_table, show_duration, show_path, show_size
from mlxd.protocol.units import count

Map = Mapping[str, Any]


def format_status(document: Map) -> str:
    """Return `mlxctl status`."""
    pool, http, config = document["pool"], document["http"], document["config"]
    requests = document.get("requests", [])
    cloud = document.get("cloud")
    lines = [
        f"mlxd {document['version']}, pid {document['pid']}, up {show_duration(document['uptime_ms'] / 1000)}",
        "",
        format_pairs(
            [
                ("http", f"{http['url']}/v1" if http["url"] is not None else "not listening"),
                ("memory", _format_memory(pool)),
                ("models", _format_counts(pool)),
                ("requests", f"{len(requests)} running, {pool.get('waiting', len(pool['queue']))} waiting"),
                ("cloud", None if cloud is None else _format_cloud(cloud)),
                ("request log", _format_log(document.get("audit"))),
                ("crashes", _format_crashes(document.get("crashes"))),
                ("settings", f"{show_path(config['path'])}, generation {document['gen']}"),
                ("runtime-only", ", ".join(config.get("overlay", [])) or None),
            ]
        ),
        *(f"problem: {problem}" for problem in document.get("problems", [])),
    ]
    if pool["models"]:
        lines += ["", _format_residents(pool["models"])]
    return "\n".join(lines)


def format_ps(document: Map) -> str:
    """Return `mlxctl ps`."""
    parts = [_format_residents(document["models"]) if document["models"] else "no model is loaded"]
    if document.get("requests"):
        parts.append(format_requests(document["requests"], document.get("queue", [])))
    if document.get("queue"):
        parts.append(format_waits(document["queue"]))
    if document.get("operations"):
        parts.append(format_running_operations(document["operations"]))
    return "\n\n".join(parts)


def format_pool(document: Map) -> str:
    """Return `mlxctl pool show`."""
    memory = document["memory"]
    parts = [
        format_pairs(
            [
                ("limit", show_size(memory["limit_bytes"])),
                ("reserved", show_size(memory["reserved_bytes"])),
                ("  weights", show_size(memory["weights_bytes"])),
                ("  KV", show_size(memory["kv_bytes"])),
                ("  prompt caches", show_size(memory["prompt_cache_bytes"])),
                ("  grammars", show_size(memory.get("grammar_bytes", 0))),
                ("  loading", show_size(memory["loading_bytes"])),
                ("  margin", show_size(memory["margin_bytes"])),
                ("free", show_size(memory["free_bytes"])),
                ("pinned", show_size(memory["pinned_bytes"])),
                *_format_device(document.get("device")),
                ("over limit", document.get("over_limit")),
                ("models", _format_counts(document)),
                ("waiting", count(len(document["queue"]), "request")),
            ]
        )
    ]
    if document["models"]:
        parts.append(_format_residents(document["models"]))
    held = [model for model in document["models"] if model.get("reserved_bytes")]
    if held:
        parts.append(_format_ledger(held))
    if document["queue"]:
        parts.append(format_waits(document["queue"]))
    return "\n\n".join(parts)


def _format_device(device: Map | None) -> list[tuple[str, str | None]]:
    """Return MLX's own counters; active + unused = reserved + unexplained."""
    if device is None:
        return []
    return [
        ("MLX active", show_size(device["active_bytes"])),
        ("  unused", show_size(device["unused_bytes"])),
        ("  unexplained", show_size(device["unexplained_bytes"])),
        ("MLX free buffers", show_size(device["free_buffers_bytes"])),
    ]


def _format_ledger(models: Sequence[Map]) -> str:
    """Return what is reserved for each model, a row each; the last column adds up to the pool's sum."""
    return format_table(
        [
            ("MODEL", "id"),
            ("WEIGHTS", "weights_bytes"),
            ("FROM", lambda model: "header" if model["estimated"] else "measured"),
            ("KV", "kv_bytes"),
            ("KV FROM", "kv_confidence"),
            ("PROMPT CACHE", "prompt_cache_bytes"),
            ("GRAMMARS", lambda model: show_size(model.get("grammar_bytes", 0))),
            ("MARGIN", "margin_bytes"),
            ("RESERVED", "reserved_bytes"),
        ],
        models,
        optional=("KV FROM", "FROM", "MARGIN", "GRAMMARS", "PROMPT CACHE", "KV"),
    )


def format_models(document: Map) -> str:
    """Return `mlxctl model list`."""
    if not document["models"]:
        return "no model on this disk; mlxctl model pull starter"
    return format_table(
        [
            ("MODEL", "id"),
            ("STATE", "state"),
            ("KIND", "kind"),
            ("WEIGHTS", "weights_bytes"),
            ("CONTEXT", "context_length"),
            ("QUANTIZATION", "quantization"),
            ("SOURCE", "source"),
            ("NOTE", lambda model: model.get("problem") or _names_and_marks(model)),
        ],
        document["models"],
        optional=("QUANTIZATION", "SOURCE", "CONTEXT", "KIND", "NOTE"),
    )


def format_model(document: Map) -> str:
    """Return `mlxctl model show`: all that is known, a line each."""
    shown = {**document, "prompts_too_large": _too_large(document.get("prompts_too_large", 0))}
    return format_fields(shown)


def _format_memory(pool: Map) -> str:
    memory = pool["memory"]
    text = f"{show_size(memory['reserved_bytes'])} of {show_size(memory['limit_bytes'])}"
    return text if pool.get("over_limit") is None else f"{text}; over limit: {pool['over_limit']}"


def _format_counts(pool: Map) -> str:
    loaded = sum(model["state"] == "ready" for model in pool["models"])
    bound = pool.get("max_models")
    return f"{loaded} loaded" + ("" if bound is None else f" of at most {bound}")


def _format_cloud(cloud: Map) -> str:
    providers, rules = (
        cloud[name] if isinstance(cloud[name], int) else len(cloud[name]) for name in ("providers", "rules")
    )
    state = f"{'on' if cloud['enabled'] else 'off'}, {count(providers, 'provider')}, {count(rules, 'rule')}"
    return ", ".join([state, *_format_spending(cloud.get("budget") or {})])


def _format_spending(budget: Map) -> Iterable[str]:
    """Yield what of a bounded day is gone."""
    if budget.get("usd_per_day_micro") is not None:
        gone = budget["spent_micro"] + budget["reserved_micro"]
        yield f"{gone / 1e6:.2f} of {budget['usd_per_day_micro'] / 1e6:g} USD today"
    if budget.get("requests_per_day") is not None:
        yield f"{budget['requests']} of {count(budget['requests_per_day'], 'request')} today"


def _format_log(log: Map | None) -> str | None:
    """Return what is worth a line: that it is off, or has lost rows since the daemon began."""
    if log is None or (log["enabled"] and not log["dropped"]):
        return None
    lost = f"{count(log['dropped'], 'row')} lost since the start" if log["dropped"] else ""
    return "; ".join(words for words in ("" if log["enabled"] else "off", lost) if words)


def _format_crashes(crashes: Map | None) -> str | None:
    if crashes is None or not crashes["last_hour"]:
        return None
    ago_s = max(0.0, time.time() - crashes["last_at_ms"] / 1000)
    return f"{crashes['last_hour']} in the last hour, the last {show_duration(ago_s)} ago: mlxctl logs"


def _format_residents(models: Sequence[Map]) -> str:
    return format_table(
        [
            ("MODEL", "id"),
            ("STATE", "state"),
            ("MEMORY", lambda model: show_size(memory_bytes(model))),
            ("RUNNING", running),
            ("WAITING", "waiting"),
            ("EXPIRES", expiry),
            ("NOTE", note),
        ],
        models,
        optional=("WAITING", "EXPIRES", "MEMORY", "NOTE"),
    )


def running(model: Map) -> int:
    """Return how many sequences a resident has, be they paused."""
    return int(model["running"] + model["paused"])


def memory_bytes(model: Map) -> int:
    """Return what a resident holds; one that is not loaded holds nothing, whatever its files say."""
    if model["state"] in {"unloaded", "queued", "failed"}:
        return 0
    cached_bytes = model["prompt_cache_bytes"] + model.get("grammar_bytes", 0)
    return int(model["weights_bytes"] + model["kv_bytes"] + cached_bytes)


def expiry(model: Map) -> str | None:
    """Return when an idle resident goes; None for one that is in use or not ready."""
    if model["state"] != "ready" or model["running"] or model["paused"] or model["leases"]:
        return None
    return "never" if model["expires_in_s"] is None else f"in {show_duration(model['expires_in_s'])}"


def note(model: Map) -> str | None:
    """Return what there is to say of a resident beside its numbers."""
    if model["state"] == "loading" and model["load_total_bytes"]:
        return f"{100 * model['load_done_bytes'] // model['load_total_bytes']} % loaded"
    paused = f"{count(model['paused'], 'sequence')} paused" if model["paused"] else None
    stale = f"stale, {model['stale']}" if model.get("stale") else None
    too_large = _too_large(model.get("prompts_too_large", 0))
    notes = [model.get("last_error") or model.get("reason"), stale, paused, too_large, _marks(model)]
    return "; ".join(note for note in notes if note) or None


def _too_large(prompts: int) -> str | None:
    """Return what to do about prompts that the prompt cache could not keep; None without any."""
    verb = "was" if prompts == 1 else "were"
    return f"{count(prompts, 'prompt')} {verb} too large to keep: raise engine.prompt_cache" if prompts else None


def _names_and_marks(model: Map) -> str | None:
    aliases = ", ".join(model.get("aliases", []))
    return "; ".join(note for note in (aliases and f"also {aliases}", _marks(model)) if note) or None


def _marks(model: Map) -> str | None:
    marks = [word for key, word in (("pinned", "pinned"), ("preload", "preload")) if model.get(key)]
    return ", ".join(marks) or None
