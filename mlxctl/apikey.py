"""`mlxctl apikey`: keys that clients need to talk to the HTTP server."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from mlxctl.call import Call, Document
from mlxctl.noun import add_verbs, split
from mlxctl.output import format_table, show_duration
from mlxctl.verb import Verb, make_app
from mlxd.protocol.errors import ControlError

app = make_app("API keys that HTTP clients need, once there is one.")

NewName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, such as the client's.")]
Models = Annotated[
    list[str] | None,
    typer.Option("--models", metavar="GLOBS", help="Models it may use, such as org/*,tiny; all when left out."),
]
Rate = Annotated[
    str | None,
    typer.Option("--rate", metavar="N/PERIOD", help="Requests it may send: 5/s, 60/min, 1000/h or 9000/d."),
]


@app.command("create", cls=Verb)
def create(ctx: typer.Context, name: NewName, models: Models = None, rate: Rate = None) -> None:
    """Make a key and print it: it is shown this once, and kept as a hash.

    From the first key on, every HTTP request needs one, but /health and /ready.
    """
    call = Call.of(ctx)
    globs = [glob for glob in split(models) if glob]
    given = {"models": globs or None, "rate": rate}
    document = call.change("apikey.create", name=name, **{key: value for key, value in given.items() if value})
    if document["is_first"]:
        call.note("note: from now on every HTTP request needs a key, but /health and /ready; mlxctl itself does not")
    if "key" not in document:
        raise ControlError(
            f"the key {name!r} was made, and lost with the connection that it was sent over: it is kept as a hash",
            code="apikey.lost",
            hint=f"mlxctl apikey revoke {name}\nmlxctl apikey create {name}",
        )
    call.note("note: this is the only time that the key is shown")
    call.show(document, lambda shown: str(shown["key"]))


def _format(document: Document) -> str:
    if not document["keys"]:
        return "no API key: every local program may send requests; mlxctl apikey create NAME"
    return format_table(
        [
            ("APIKEY", "name"),
            ("MODELS", lambda key: ", ".join(key["models"]) or "all"),
            ("RATE", lambda key: key["rate"] or "no bound"),
            ("MADE", lambda key: _ago(key["created_at_ms"])),
            ("LAST USED", lambda key: _ago(key["last_used_at_ms"])),
            ("REQUESTS", "requests"),
        ],
        document["keys"],
    )


def _ago(at_ms: int | None) -> str | None:
    return None if at_ms is None else f"{show_duration(max(0.0, time.time() - at_ms / 1000))} ago"


def _format_revoked(document: Document) -> str:
    rest = "" if document["is_required"] else "; it was the last: HTTP requests need no key any more"
    return f"revoked {document['name']}{rest}"


add_verbs(app, "apikey", {"apikey.list": _format, "apikey.revoke": _format_revoked})
