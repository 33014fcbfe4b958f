"""`mlxctl preload`: the models that are kept loaded, in order."""

from __future__ import annotations

from mlxctl.call import Document
from mlxctl.noun import make_noun
from mlxctl.output import format_table


def _format(document: Document) -> str:
    models = document["preload"]
    if not models:
        return "no model is preloaded"
    return format_table([("#", models.index), ("MODEL", "id"), ("STATE", "state"), ("REASON", "reason")], models)


app = make_noun("preload", "Models that are kept loaded.", {"preload.list": _format})
