"""`mlxctl events`: what happens, as it happens. Says when something was missed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from mlxctl import output
from mlxctl.call import Call
from mlxctl.change import show_difference, show_value
from mlxctl.output import show_duration
from mlxctl.verb import Verb, make_app, usage_error
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.event import TOPICS, Event, Gap, check_topics
from mlxd.protocol.units import count

app = make_app("What happens, as it happens.")

Topics = Annotated[
    list[str] | None, typer.Argument(metavar="[TOPIC]...", help=f"Of these only: {', '.join(TOPICS)}; all if left out.")
]
Model = Annotated[str | None, typer.Option("--model", metavar="MODEL", help="About this model only.")]
Count = Annotated[int | None, typer.Option("--count", "-n", min=1, metavar="N", help="End after N events.")]

# Each slice of a load is an event: too many to read, and `mlxctl top` has them as a percentage.
_TOO_MANY_TO_READ = frozenset({"model.load_progress"})


def _took(data: Mapping[str, Any], name: str) -> str:
    return str(show_duration(data[name] / 1000))


# kind → the sentence made of what it brings.
_SENTENCES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "request.started": lambda data: f"{_whose(data)} ({data['route']}), {data['endpoint']}",
    "request.answering": lambda data: f"{_whose(data)}, first text after {_took(data, 'elapsed_ms')}",
    "request.ended": lambda data: f"{_whose(data)}: {data['outcome']} after {_took(data, 'elapsed_ms')}",
    "queue.joined": lambda data: f"{data['request']} waits for {data['model']}",
    "queue.left": lambda data: (
        f"{_whose(data)} {'began' if data['started'] else 'went away'} after {_took(data, 'waited_ms')}"
    ),
    "daemon.stopping": lambda data: f"{count(data['requests'], 'request')} to end within {_took(data, 'timeout_ms')}",
}


def _whose(data: Mapping[str, Any]) -> str:
    return f"{data['request']} for {data['model']}"


@app.command("events", cls=Verb)
def events(ctx: typer.Context, topics: Topics = None, model: Model = None, most: Count = None) -> None:
    """What happens, as it happens: models, settings, operations, requests.

    A line for each event, until Ctrl-C; a line says what was missed when this end could not keep up. With --json each
    is a document on a line of its own: first the snapshot that the events change, then {seq, kind, data}, or
    {gap: {from, to}} for those that were missed.
    """
    call = Call.of(ctx)
    wanted = _check(topics)
    with call.connect() as client:
        subscription = client.subscribe(wanted, model=model)
        if call.options.json:
            output.print_json_line({"seq": subscription.seq, "snapshot": subscription.snapshot})
        else:
            call.note(f"events of {', '.join(wanted) if wanted is not None else 'all topics'}; Ctrl-C ends")
        left = most
        for item in subscription:
            if isinstance(item, Event) and not call.options.json and item.kind in _TOO_MANY_TO_READ:
                continue
            if call.options.json:
                output.print_json_line(describe(item))
            else:
                output.print_text(f"{time.strftime('%H:%M:%S')}  {format_item(item)}")
            if left is not None and isinstance(item, Event):
                left -= 1
                if left == 0:
                    return


def _check(topics: list[str] | None) -> list[str] | None:
    if not topics:
        return None
    try:
        return list(check_topics(topics))
    except InvalidRequest as error:
        raise usage_error(error.message, "mlxctl events --help", "usage.unknown_topic") from None


def describe(item: Event | Gap) -> dict[str, Any]:
    """Return an event or a gap as a document."""
    if isinstance(item, Gap):
        return {"gap": {"from": item.first, "to": item.last}}
    return {"seq": item.seq, "kind": item.kind, "data": dict(item.data)}


def format_item(item: Event | Gap) -> str:
    """Return an event as its kind and what it says, a gap as a warning."""
    if isinstance(item, Gap):
        missed = item.last - item.first + 1
        return (
            f"{'gap':<18} {missed} missed (numbers {item.first} to {item.last}): they came faster than they were read"
        )
    return f"{item.kind:<18} {_say(item.kind, item.data)}".rstrip()


def _say(kind: str, data: Mapping[str, Any]) -> str:
    """Return an event's words: those that it brings, or what its topic is about."""
    if isinstance(data.get("message"), str) and data["message"]:
        return str(data["message"])
    if kind == "config.changed":
        changes = [show_difference(change) for change in data.get("changed", [])]
        return f"generation {data.get('gen')} from {data.get('source')}: {', '.join(changes) or 'comments'}"
    if kind in _SENTENCES:
        with contextlib.suppress(KeyError):  # another version brings less
            return _SENTENCES[kind](data)
    if "op" in data:
        error = data.get("error")
        reason = f": {error['msg']}" if isinstance(error, Mapping) and "msg" in error else ""
        return f"{data['op']} {data.get('kind')} {' '.join(data.get('models', ()))} {data.get('state')}{reason}"
    if isinstance(data.get("msg"), str):
        return str(data["msg"])
    return ", ".join(f"{key} {show_value(value)}" for key, value in data.items() if value is not None)
