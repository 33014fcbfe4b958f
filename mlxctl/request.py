"""`mlxctl request`: what is being answered, and its end."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from mlxctl.activity import format_requests, format_waits, made_tokens, request_state
from mlxctl.call import Call, Document
from mlxctl.output import format_pairs, show_duration
from mlxctl.verb import Verb, make_app
from mlxd.protocol.units import count

app = make_app("Requests that are being answered.")

Id = Annotated[str, typer.Argument(metavar="REQUEST", help="Request id, as `mlxctl request list` shows it.")]


@app.command("list", cls=Verb)
def list_requests(ctx: typer.Context) -> None:
    """Every request that is being answered, oldest first."""
    call = Call.of(ctx)
    call.show(call.ask_all("request.list", "requests"), _format_list)


@app.command("show", cls=Verb)
def show(ctx: typer.Context, request: Id) -> None:
    """One request, and what it waits for."""
    call = Call.of(ctx)
    call.show(call.ask("request.show", request=request), _format)


@app.command("cancel", cls=Verb)
def cancel(ctx: typer.Context, request: Id) -> None:
    """End a request: its client gets an error, in the stream when that has begun."""
    call = Call.of(ctx)
    call.show(call.change("request.cancel", request=request), _format_cancelled)


def _format_cancelled(document: Document) -> str:
    return f"cancelled {count(document['cancelled'], 'request')}"


def _format_list(document: Document) -> str:
    requests = document["requests"]
    return format_requests(requests) if requests else "no request runs"


def _format(document: Document) -> str:
    waiting = {wait["request_id"] for wait in document["waits"]}
    parts = [_format_one(request, request_state(request, waiting)) for request in document["requests"]]
    if document["waits"]:
        parts.append(format_waits(document["waits"]))
    return "\n\n".join(parts)


def _format_one(request: Document, state: str) -> str:
    age_s = max(0.0, time.time() - request["started_at_ms"] / 1000)
    tokens = made_tokens(request)
    return format_pairs(
        [
            ("request", request["id"]),
            ("model", request["model"]),
            ("route", request["route"]),
            ("endpoint", request["endpoint"]),
            ("state", state),
            ("began", f"{show_duration(age_s)} ago"),
            ("tokens", None if tokens is None else f"{tokens}, {tokens / max(1.0, age_s):.1f} a second since it began"),
        ]
    )
