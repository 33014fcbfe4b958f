"""The request log as text: rows in tables and as lines, sums and percentiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlxctl.change import show_value
from mlxctl.output import Column, format_pairs, format_table, show_duration, show_size, show_time
from mlxd.protocol.units import count

Document = Mapping[str, Any]


def format_requests(document: Document) -> str:
    """Return ended requests as a table."""
    if not document["requests"]:
        return "no request in the log is like that"
    return format_table(
        [
            ("STARTED", _show_start),
            ("REQUEST", "request"),
            ("MODEL", "model"),
            ("ROUTE", lambda row: row["target"] or row["route"]),
            ("STATUS", "status"),
            ("CODE", "code"),
            ("TOKENS", "completion_tokens"),
            ("TTFT", lambda row: _show_ms(row["ttft_ms"])),
            ("TOOK", lambda row: _show_ms(row["duration_ms"])),
            ("TOK/S", lambda row: row["tokens_per_s"]),
            ("KEY", "key"),
        ],
        document["requests"],
        optional=("KEY", "TOK/S", "TTFT", "TOKENS", "ROUTE", "STARTED", "CODE", "TOOK"),
        names=("REQUEST", "MODEL"),
    )


def format_request(row: Document) -> str:
    """Return one ended request, a line for each thing that is known of it."""
    cost, removed, attempts = row["cost_micro_usd"], row["noise_removed"], row["attempts"]
    tokens = None if row["prompt_tokens"] is None else f"{row['prompt_tokens']} ({row['cached_tokens']} cached)"
    tries = [f"{each['target']} {each['code'] or each['status']} {_show_ms(each['ms'])}" for each in attempts or ()]
    return format_pairs(
        [
            ("request", row["request"]),
            ("started", show_time(row["started_ms"])),
            ("endpoint", row["endpoint"]),
            ("model", row["model"]),
            ("asked for", row["asked"]),
            ("route", row["route"]),
            ("target", row["target"]),
            ("rule", row["rule"]),
            ("reason", row["reason"]),
            ("attempts", ", ".join(tries) or None),
            ("status", " ".join(str(each) for each in (row["status"], row["code"], row["http_status"]) if each)),
            ("prompt tokens", tokens),
            ("noise removed", None if removed is None else _format_removed(removed)),
            ("left out", ", ".join(row["ignored"] or ()) or None),
            ("answer tokens", row["completion_tokens"]),
            ("first token after", _show_ms(row["ttft_ms"])),
            ("took", _show_ms(row["duration_ms"])),
            ("tokens a second", row["tokens_per_s"]),
            ("API key", row["key"]),
            ("USD", None if cost is None else f"{cost / 1e6:.4f}"),
        ]
    )


def _format_removed(removed: Mapping[str, int]) -> str:
    return ", ".join(f"{count(pieces, 'piece')} by {rule}" for rule, pieces in removed.items())


def format_changes(document: Document) -> str:
    """Return changes as a table."""
    if not document["changes"]:
        return "no change in the log is like that"
    return format_table(
        [
            ("WHEN", _show_start),
            ("GEN", "generation"),
            ("SOURCE", "source"),
            ("OPERATION", "operation"),
            ("WHAT", lambda row: row["setting"] or row["subject"]),
            ("OLD", lambda row: None if row["setting"] is None else show_value(row["old"])),
            ("NEW", lambda row: None if row["setting"] is None else show_value(row["new"])),
            ("UID", "uid"),
            ("PID", "pid"),
        ],
        document["changes"],
        optional=("UID", "PID", "SOURCE", "GEN"),
    )


def format_stats(document: Document) -> str:
    """Return sums and percentiles, a line for each model and route."""
    groups, log = document["groups"], document["log"]
    sampled = f", 1 in {document['every']} looked at" if document["every"] > 1 else ""
    parts = [
        format_pairs(
            [
                ("requests", f"{document['requests']}{sampled}"),
                ("log", "on" if log["enabled"] else "off"),
                ("size", show_size(log["size_bytes"])),
                ("lost", count(log["dropped"], "row") if log["dropped"] else None),
                ("problem", log["problem"]),
            ]
        )
    ]
    if groups:
        optional = ("USD", "P99", "P99", "PROMPT", "ANSWER", "CANCELLED", "TIMEOUTS", "ROUTE")
        parts.append(format_table(_GROUP_COLUMNS, groups, optional=optional))
    return "\n\n".join(parts)


def _rank(name: str, rank: str) -> Callable[[Document], object]:
    return lambda group: _show_ms(group[name][rank])


_GROUP_COLUMNS: list[Column] = [
    ("MODEL", "model"),
    ("ROUTE", "route"),
    ("REQUESTS", "requests"),
    ("ERRORS", "error"),
    ("CANCELLED", "cancelled"),
    ("TIMEOUTS", "timeout"),
    ("P50", _rank("duration_ms", "p50")),
    ("P95", _rank("duration_ms", "p95")),
    ("P99", _rank("duration_ms", "p99")),
    ("TTFT P50", _rank("ttft_ms", "p50")),
    ("P95", _rank("ttft_ms", "p95")),
    ("P99", _rank("ttft_ms", "p99")),
    ("TOK/S", "tokens_per_s"),
    ("PROMPT", "prompt_tokens"),
    ("ANSWER", "completion_tokens"),
    ("USD", lambda group: None if group["cost_micro_usd"] is None else f"{group['cost_micro_usd'] / 1e6:.4f}"),
]


def format_request_line(row: Mapping[str, Any]) -> str:
    """Return an ended request as a line."""
    code = "" if row["code"] is None else f" {row['code']}"
    tokens = "" if row["completion_tokens"] is None else f", {count(row['completion_tokens'], 'token')}"
    first = "" if row["ttft_ms"] is None else f", first after {_show_ms(row['ttft_ms'])}"
    who = row["target"] or row["route"] or "-"
    return (
        f"{show_time(row['started_ms'])}  {row['status']}{code}  {row['model'] or '-'} ({who})  {row['endpoint']}"
        f"  {_show_ms(row['duration_ms'])}{first}{tokens}  {row['request']}"
    )


def format_change_line(row: Mapping[str, Any]) -> str:
    """Return a change as a line."""
    what = row["subject"] or ""
    if row["setting"] is not None:
        what = f"{row['setting']}: {show_value(row['old'])} -> {show_value(row['new'])}"
    who = "" if row["pid"] is None else f" by pid {row['pid']} of uid {row['uid']}"
    return f"{show_time(row['started_ms'])}  generation {row['generation']}  {row['operation']}{who}  {what}".rstrip()


def _show_start(row: Document) -> str | None:
    return show_time(row["started_ms"])


def _show_ms(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    return f"{milliseconds / 1000:.1f}s" if milliseconds < 60_000 else show_duration(milliseconds / 1000)
