"""The document of body fields is the one that the tables make."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from mlxd import fields
from mlxd.http.schema import fields_of

ROOT = Path(__file__).parent.parent


def test_document_is_fresh() -> None:
    """`python -m mlxd.fields mlxd/openai/FIELDS.md` renews it."""
    assert (ROOT / "mlxd/openai/FIELDS.md").read_text(encoding="utf-8") == fields.render()


@pytest.mark.parametrize(("route", "shapes"), fields.ROUTES)
def test_every_field_has_its_line(route: str, shapes: tuple[type[msgspec.Struct], ...]) -> None:
    """A field that is refused says so, and one that works says what it takes, where that is one thing."""
    section = fields.render().partition(f"## {route}\n")[2].partition("\n## ")[0]
    for name, field in ((name, field) for shape in shapes for name, field in fields_of(shape).items()):
        (line,) = [line for line in section.splitlines() if line.startswith(f"| `{name}` |")]
        is_mapped = field.here == "done" and bool(field.note)
        assert line.split(" | ")[1] == ("mapped" if is_mapped else field.here)
    assert "| `model` | done | a text that is not empty |" in section
