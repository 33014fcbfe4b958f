"""`mlxctl cache`: what keeps prompts reusable."""

from __future__ import annotations

import typer

from mlxctl.call import Call, Document
from mlxctl.output import Column, format_table
from mlxctl.verb import Verb, make_app

app = make_app("What keeps prompts reusable.")


@app.command("rules", cls=Verb)
def list_rules(ctx: typer.Context) -> None:
    """The noise rules: what each removes from prompts, and which are on.

    Some clients add notes for their own accounting to a prompt, other ones each time, so that no prompt begins as the
    one before it. A rule removes one kind of note from the requests that this machine answers; what goes to a cloud
    keeps all of them. `mlxctl audit show` says what was removed from a request, --json here has the patterns.

    To turn rules off: mlxctl config set http.noise_rules_off=NAME,NAME. To have all on again: mlxctl config unset
    http.noise_rules_off.
    """
    call = Call.of(ctx)
    call.show(call.ask_all("cache.rules", "rules"), _format)


def _format(document: Document) -> str:
    state = {True: "on", False: "off"}
    columns: list[Column] = [("NAME", "name"), ("STATE", lambda rule: state[rule["enabled"]]), ("REMOVES", "removes")]
    return format_table(columns, document["rules"])
