"""`mlxctl cache`: what keeps prompts reusable."""

from __future__ import annotations

from mlxctl.call import Document
from mlxctl.noun import make_noun
from mlxctl.output import Column, format_table


def _format(document: Document) -> str:
    state = {True: "on", False: "off"}
    columns: list[Column] = [("NAME", "name"), ("STATE", lambda rule: state[rule["enabled"]]), ("REMOVES", "removes")]
    return format_table(columns, document["rules"])


app = make_noun("cache", "What keeps prompts reusable.", {"cache.rules": _format})
