"""What each field of a body does here, as Markdown: `python -m mlxd.fields [FILE]` prints it, or renews it in the file.

Made from the tables that read the bodies; `mlxd/openai/FIELDS.md` is kept fresh by a test.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlxd.anthropic.schema import COUNT, MESSAGES
from mlxd.engine.answer.generic import GENERIC
from mlxd.engine.answer.registry import FORMATS as OWN_FORMATS
from mlxd.engine.tool_grammar import FORMATS
from mlxd.http import field
from mlxd.http.table import Habit, Omitted, Refused, Table, Treatment, Works
from mlxd.openai.embeddings import EMBEDDING
from mlxd.openai.response_fields import RESPONSE_FIELDS
from mlxd.openai.schema import CHAT, COMPLETION
from mlxd.protocol.errors import InvalidRequest
from mlxd.protocol.quote import as_json

ROUTES: tuple[tuple[str, Table], ...] = (
    ("POST /v1/chat/completions", CHAT),
    ("POST /v1/completions", COMPLETION),
    ("POST /v1/responses", RESPONSE_FIELDS),
    ("POST /v1/embeddings", EMBEDDING),
    ("POST /v1/messages", MESSAGES),
    ("POST /v1/messages/count_tokens", COUNT),
)
_BEGIN = "<!-- made by python -m mlxd.fields mlxd/openai/FIELDS.md -->\n"
_INTRODUCTION = """\
# Fields of request bodies

What each documented field does on this machine:

* **done**: it works as documented.
* **mapped**: it works, and some values stand for others.
* **accepted**: it changes nothing on a local server, and clients send it by habit.
* **omitted**: it is left out, visibly: named in the header `x-mlxd-ignored-fields`, in the request log
  (`mlxctl audit show REQUEST`) and once per client in the daemon's log. So is a field that is in no table. With
  `http.unknown_fields = "reject"` each is a 400.
* **refused**: a 400 `unsupported_parameter` that names it, since the answer would not be what was asked for.

Null is the same as leaving a field out.

Required, named and `strict` calls are enforced while the model writes, in these formats:
"""
# What no value at all would be; each check refuses one of them, and says what it expects.
_NO_VALUES: tuple[object, ...] = (object(), {"\0": None}, [object()])


def render() -> str:
    """Return the whole document."""
    own = {known.name for known in (*OWN_FORMATS, GENERIC) if known.tags is not None}
    formats = ", ".join(f"`{name}`" for name in sorted({*FORMATS, *own}))
    parts = [f"{_BEGIN}{_INTRODUCTION}{formats}. A model with another format answers 400 to them.\n"]
    for route, table in ROUTES:
        rows = [_row(name, table[name]) for name in sorted(table)]
        parts.append("\n".join([f"## {route}\n", "| Field | Here | Values |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _row(name: str, treatment: Treatment) -> str:
    match treatment:
        case Works(check, ""):
            here, values = "done", _expected(check)
        case Works(check, mapped):
            here, values = "mapped", "; ".join(filter(None, (_expected(check), mapped)))
        case Refused(neutral):
            here, values = "refused", _but_for(neutral)
        case Omitted(neutral):
            here, values = "omitted", _but_for(neutral)
        case Habit():
            here, values = "accepted", "changes nothing here"
    return f"| `{name}` | {here} | {values.replace('|', chr(92) + '|')} |"


def _but_for(neutral: tuple[object, ...]) -> str:
    return "but for " + " or ".join(f"`{as_json(value)}`" for value in neutral) if neutral else ""


def _expected(check: field.Check) -> str:
    """Return the words in which a check says what it takes."""
    for value in _NO_VALUES:
        try:
            check("it", value)
        except InvalidRequest as error:
            words = str(error).partition(" must be ")[2].partition(", not ")[0]
            if words:
                return words
    return ""


def main() -> None:
    """Print the document, or write it to the files that are named."""
    for name in sys.argv[1:]:
        Path(name).write_text(render(), encoding="utf-8")
    if not sys.argv[1:]:
        print(render())  # noqa: T201  (its work)


if __name__ == "__main__":
    main()
