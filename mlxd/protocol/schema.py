"""The settings table as JSON Schema, for editors that complete and check `config.toml`."""

from __future__ import annotations

import dataclasses
from typing import Any

from mlxd.protocol.row import Row
from mlxd.protocol.settings import Settings


def make_schema() -> dict[str, Any]:
    """Return the schema of the whole settings file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of mlxd",
        **_table(Settings),
    }


def _table(table: type) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    for item in dataclasses.fields(table):
        if "row" in item.metadata:
            row: Row = item.metadata["row"]
            properties[item.name] = _setting(row)
            if row.is_required:
                required.append(item.name)
        elif "group" in item.metadata:
            properties[item.name] = _table(item.metadata["group"])
        else:
            properties[item.name] = {"type": "object", "additionalProperties": _table(item.metadata["keyed"])}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def _setting(row: Row) -> dict[str, Any]:
    told = {"description": f"{row.help} Accepted: {row.kind.describe()}."}
    return {**row.kind.schema(), **told, **({} if row.default is None else {"default": row.default})}
