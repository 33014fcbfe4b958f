"""A resource that is nothing but a description: its operations, handlers, verbs and what they print."""

from __future__ import annotations

import asyncio

import pytest

from mlxctl import noun
from mlxctl.cli import main
from mlxctl.output import format_pairs
from mlxd.control import dispatch
from mlxd.control.resource import Entries
from mlxd.protocol import operations
from mlxd.protocol.operation import argument
from mlxd.protocol.resource import Resource
from tests.support.control import Client, Plane

TARIFF = Resource(
    "tariff",
    ("cloud", "prices"),
    "Tariffs.",
    "tariff",
    {"list": "All.", "show": "One.", "add": "Add one.", "set": "Change one.", "remove": "Remove one."},
    ("id", argument("Its name.")),
)


@pytest.fixture(autouse=True)
def tariff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a resource that lies over the table of prices, and no other operation."""
    rows = {row.name: row for row in TARIFF.operations()}
    monkeypatch.setattr(operations, "OPERATIONS", rows)
    monkeypatch.setattr(noun, "OPERATIONS", rows)
    monkeypatch.setattr(noun, "RESOURCES", {"tariff": TARIFF})
    monkeypatch.setattr(dispatch, "HANDLERS", Entries(TARIFF).handlers)


async def test_entries_are_made_shown_changed_and_removed(client: Client) -> None:
    """All verbs work on the table, and what is missing or not there is named."""
    await client.ask("tariff.add", id="p/x", input="1", output="2")
    await client.ask("tariff.set", id="p/x", output="3.5")
    shown = {"id": "p/x", "input": 1.0, "output": 3.5}
    assert await client.ask("tariff.show", id="p/x") == shown
    assert await client.ask("tariff.list") == {"prices": [shown], "next": None}
    await client.ask("tariff.remove", id="p/x")
    assert (await client.refused("tariff.remove", id="p/x"))["msg"] == "there is no tariff 'p/x'"
    assert (await client.refused("tariff.set", id="p/x"))["msg"] == "there is nothing to set"
    assert (await client.refused("tariff.add", id="p/x", input="1"))["field"] == "output"


async def test_verbs_are_there_and_show_all(plane: Plane, capsys: pytest.CaptureFixture[str]) -> None:
    """The noun is there with options that the settings explain, and shows all that an entry has."""
    for line in ("list", "add p/x --input 1 --output 2", "list", "show p/x", "add --help"):
        words = ["--socket", str(plane.home.socket), "tariff", *line.split()]
        assert await asyncio.to_thread(main, words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("no prices\n")
    assert "ID   INPUT  OUTPUT\np/x    1.0     2.0\n" in printed
    assert format_pairs([("id", "p/x"), ("input", 1.0), ("output", 2.0)]) in printed
    assert "--output OUTPUT     US dollars per million tokens of answers.  [required]" in printed
