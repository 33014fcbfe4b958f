"""The document of body fields is the one that the tables make."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxd import fields
from mlxd.http.table import Habit, Omitted, Refused, Treatment, Works

ROOT = Path(__file__).parent.parent


def test_document_is_fresh() -> None:
    """`python -m mlxd.fields mlxd/openai/FIELDS.md` renews it."""
    assert (ROOT / "mlxd/openai/FIELDS.md").read_text(encoding="utf-8") == fields.render()


@pytest.mark.parametrize(("route", "table"), fields.ROUTES)
def test_every_field_has_its_line(route: str, table: dict[str, Treatment]) -> None:
    """A field that is refused says so, and one that works says what it takes, where that is one thing."""
    section = fields.render().partition(f"## {route}\n")[2].partition("\n## ")[0]
    for name, treatment in table.items():
        (line,) = [line for line in section.splitlines() if line.startswith(f"| `{name}` |")]
        words = {Works: "done", Refused: "refused", Omitted: "omitted", Habit: "accepted"}
        mapped = isinstance(treatment, Works) and treatment.mapped
        assert line.split(" | ")[1] == ("mapped" if mapped else words[type(treatment)])
    assert "| `model` | done | a text that is not empty |" in section
