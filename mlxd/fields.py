"""Document each field of the bodies as Markdown: `python -m mlxd.fields [FILE]` prints it, or renews it in the file.

Made from the structs that the bodies are read into; `mlxd/openai/FIELDS.md` is kept fresh by a test.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import inspect

from mlxd.anthropic.schema import CountBody, MessagesBody
from mlxd.engine.answer.generic import GENERIC
from mlxd.engine.answer.registry import FORMATS as OWN_FORMATS
from mlxd.engine.tool_grammar import FORMATS
from mlxd.http.sampling import Sampling
from mlxd.http.schema import Field, fields_of, words
from mlxd.openai.embeddings import EmbeddingBody
from mlxd.openai.response_history import APPLIED, CALLS_AND_RESULTS, REFUSED, WITHOUT_WORDS
from mlxd.openai.response_item import READ
from mlxd.openai.response_schema import ResponseBody
from mlxd.openai.response_tool import OFFERED
from mlxd.openai.schema import ChatBody, CompletionBody
from mlxd.protocol.quote import as_json

ROUTES: tuple[tuple[str, tuple[type[msgspec.Struct], ...]], ...] = (
    ("POST /v1/chat/completions", (ChatBody, Sampling)),
    ("POST /v1/completions", (CompletionBody, Sampling)),
    ("POST /v1/responses", (ResponseBody, Sampling)),
    ("POST /v1/embeddings", (EmbeddingBody,)),
    ("POST /v1/messages", (MessagesBody, Sampling)),
    ("POST /v1/messages/count_tokens", (CountBody,)),
)
_BEGIN = "<!-- made by python -m mlxd.fields mlxd/openai/FIELDS.md -->\n"
_INTRODUCTION = """\
# Fields of request bodies

What each documented field does on this machine:

* **done**: it works as documented.
* **mapped**: it works, and some values stand for others.
* **accepted**: it changes nothing on a local server, and clients send it by habit.
* **omitted**: it is left out, visibly: named in the header `x-mlxd-ignored-fields`, in the request log
  (`mlxctl audit show REQUEST`) and once per client in the daemon's log. So is a field that is not documented. With
  `http.unknown_fields = "reject"` each is a 400.
* **refused**: a 400 `unsupported_parameter` that names it, since the answer would not be what was asked for.

Null is the same as leaving a field out.

Required, named and `strict` calls are enforced while the model writes, in these formats:
"""
_Row = tuple[str, str, str]  # name, what it does here, its values

# Kinds of tools and of items of /v1/responses → what they become, where that is not what they are.
_TOOLS = {
    **dict.fromkeys(OFFERED, ""),
    "custom": "a function with one text; its grammar is told, a regular expression binds calls that are required",
    "namespace": "a function for each of its tools, NAMESPACE__NAME",
    "shell": "a function, where the environment is local",
    "apply_patch": "a function",
}
_ITEMS = {
    **dict.fromkeys((*READ, *APPLIED, "item_reference"), ""),
    **dict.fromkeys(CALLS_AND_RESULTS, "a call of a function, its result, or both"),
    "agent_message": "what a user says",
    "reasoning": "what another server encrypted is left out",
}


def render() -> str:
    """Return the whole document."""
    own = {known.name for known in (*OWN_FORMATS, GENERIC) if known.tags is not None}
    formats = ", ".join(f"`{name}`" for name in sorted({*FORMATS, *own}))
    parts = [f"{_BEGIN}{_INTRODUCTION}{formats}. A model with another format answers 400 to them.\n"]
    for route, shapes in ROUTES:
        rows = [row for shape in shapes for row in _rows(shape)]
        rows += _kinds() if ResponseBody in shapes else ()
        lines = [f"| `{name}` | {here} | {values.replace('|', chr(92) + '|')} |" for name, here, values in sorted(rows)]
        parts.append("\n".join([f"## {route}\n", "| Field | Here | Values |", "|---|---|---|", *lines]) + "\n")
    return "\n".join(parts)


def _rows(shape: type[msgspec.Struct], prefix: str = "") -> Iterator[_Row]:
    for name, field in fields_of(shape).items():
        yield f"{prefix}{name}", *_effect(field)
        for kind in field.members:
            if isinstance(kind, inspect.StructType):
                yield from _rows(kind.cls, f"{prefix}{name}.")


def _effect(field: Field) -> tuple[str, str]:
    if field.here == "done":
        return "mapped" if field.note else "done", "; ".join(filter(None, (words(field.kind), field.note)))
    if field.here == "accepted":
        return field.here, "changes nothing here"
    neutral = " or ".join(f"`{as_json(value)}`" for value in field.neutral)
    return field.here, f"but for {neutral}" if neutral else ""


def _kinds() -> Iterator[_Row]:
    for place, kinds in (("tools[]", _TOOLS), ("input[]", _ITEMS)):
        for kind, note in kinds.items():
            yield f"{place} {kind}", "mapped" if note else "done", note
    yield "tools[] of any other type", "omitted", ""
    for kind in WITHOUT_WORDS:
        yield f"input[] {kind}", "omitted", ""
    for kind in REFUSED:
        yield f"input[] {kind}", "refused", ""


def main() -> None:
    """Print the document, or write it to the files that are named."""
    for name in sys.argv[1:]:
        Path(name).write_text(render(), encoding="utf-8")
    if not sys.argv[1:]:
        print(render())  # noqa: T201  (its work)


if __name__ == "__main__":
    main()
