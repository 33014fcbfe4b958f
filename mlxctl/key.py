"""`mlxctl key`: the keys of providers. A key is typed without being shown, or read from stdin; never an argument."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mlxctl.call import Call, Document, without_none
from mlxctl.change import show_change
from mlxctl.noun import add_verbs
from mlxctl.output import format_table
from mlxctl.verb import changes, make_app, usage_error

app = make_app("Keys of providers; those of clients are `apikey`.")

_MOST_CHARACTERS = 16_384

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key, such as the provider's.")]
Provider = Annotated[
    str | None, typer.Option("--provider", metavar="ID", help="Have this provider use it from now on.")
]


@app.command("set", cls=changes("key.set"), context_settings={"allow_extra_args": True})
def set_one(ctx: typer.Context, name: Name, provider: Provider = None) -> None:
    """Keep a key, asked for without echo or read from stdin: in the keychain, else in a file of mode 0600."""
    if ctx.args:
        raise usage_error(
            "a key is never an argument: the shell's history and ps show it. It was not kept; if it was the key, have"
            " its provider replace it",
            "mlxctl key set NAME, and type the key; or: mlxctl key set NAME < FILE",
        )
    call = Call.of(ctx)
    document = call.change("key.set", name=name, secret=_read(name), **without_none(provider=provider))
    show_change(call, document)
    if not call.options.json and document.get("auth") is not None:
        users = ", ".join(document["providers"])
        way = f"mlxctl cloud provider set ID --auth {document['auth']}"
        call.note(f"kept as {document['auth']}, " + (f"used by {users}" if users else f"used by nobody yet: {way}"))


def _read(name: str) -> str:
    if sys.stdin.isatty():
        import getpass

        secret = getpass.getpass(f"key {name} (not shown): ")
    else:
        secret = sys.stdin.read(_MOST_CHARACTERS)
    if not secret.strip():
        raise usage_error("no key was given", f"mlxctl key set {name} < FILE")
    return secret.strip()


def _format(document: Document) -> str:
    if not document["keys"]:
        return "no key is kept, and no provider needs one; mlxctl key set NAME --provider ID"
    return format_table(
        [
            ("KEY", "name"),
            ("WHERE", "auth"),
            ("PROVIDERS", "providers"),
            ("STATE", lambda item: item["problem"] or "ok"),
        ],
        document["keys"],
    )


def _format_removed(document: Document) -> str:
    words = "would be removed" if document["dry_run"] else "removed"
    return f"key {document['name']} {words}, it was kept as {document['auth']}"


add_verbs(app, "key", {"key.list": _format, "key.remove": _format_removed})
