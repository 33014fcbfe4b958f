"""The request log as text: rows in tables and as lines, sums and percentiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxctl.change import show_value
from mlxctl.output import format_pairs, format_table, show_duration, show_size, show_time
from mlxd.protocol.units import count

Document = Mapping[str, Any]


def format_requests(document: Document) -> str:
    """Return ended requests as a table."""
    if not document["requests"]:
        return "no request in the log is like that"
    return format_table(
        ["STARTED", "REQUEST", "MODEL", "ROUTE", "STATUS", "CODE", "TOKENS", "TTFT", "TOOK", "TOK/S", "KEY"],
        [
            (
                show_time(row["started_ms"]),
                row["request"],
                row["model"],
                row["target"] or row["route"],
                row["status"],
                row["code"],
                row["completion_tokens"],
                _show_ms(row["ttft_ms"]),
                _show_ms(row["duration_ms"]),
                row["tokens_per_s"],
                row["key"],
            )
            for row in document["requests"]
        ],
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
        ["WHEN", "GEN", "SOURCE", "OPERATION", "WHAT", "OLD", "NEW", "UID", "PID"],
        [
            (
                show_time(row["started_ms"]),
                row["generation"],
                row["source"],
                row["operation"],
                row["setting"] or row["subject"],
                None if row["setting"] is None else show_value(row["old"]),
                None if row["setting"] is None else show_value(row["new"]),
                row["uid"],
                row["pid"],
            )
            for row in document["changes"]
        ],
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
        heads = ["MODEL", "ROUTE", "REQUESTS", "ERRORS", "CANCELLED", "TIMEOUTS"]
        heads += ["P50", "P95", "P99", "TTFT P50", "P95", "P99", "TOK/S", "PROMPT", "ANSWER", "USD"]
        optional = ("USD", "P99", "P99", "PROMPT", "ANSWER", "CANCELLED", "TIMEOUTS", "ROUTE")
        parts.append(format_table(heads, [_format_group(group) for group in groups], optional=optional))
    return "\n\n".join(parts)


def _format_group(group: Document) -> tuple[object, ...]:
    cost = group["cost_micro_usd"]
    return (
        group["model"],
        group["route"],
        *(group[name] for name in ("requests", "error", "cancelled", "timeout")),
        *(_show_ms(group[name][rank]) for name in ("duration_ms", "ttft_ms") for rank in ("p50", "p95", "p99")),
        None if group["tokens_per_s"] is None else f"{group['tokens_per_s']:.1f}",
        group["prompt_tokens"],
        group["completion_tokens"],
        None if cost is None else f"{cost / 1e6:.4f}",
    )


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


def _show_ms(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    return f"{milliseconds / 1000:.1f}s" if milliseconds < 60_000 else show_duration(milliseconds / 1000)
