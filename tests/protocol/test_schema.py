"""The JSON Schema says of a file what the daemon says of it."""

from __future__ import annotations

import tomllib
from typing import Any

import jsonschema
import pytest

from mlxd.protocol.settings import Settings
from mlxd.protocol.table import SettingProblem, decode, make_schema, rows

USABLE_BYTES = 32 * 10**9
VALIDATOR = jsonschema.Draft202012Validator(make_schema())


def is_valid(document: Any) -> bool:
    """Ask the daemon's own reading."""
    try:
        decode(document, USABLE_BYTES)
    except SettingProblem:
        return False
    return True


def test_it_is_a_schema() -> None:
    """The schema obeys the schema of schemas, and has every setting with its help."""
    jsonschema.Draft202012Validator.check_schema(make_schema())
    for path, row in rows():
        node: Any = make_schema()
        for part in path:
            node = node["additionalProperties"] if part == "*" else node["properties"][part]
        assert row.help in node["description"]


def test_every_default_is_valid() -> None:
    """What the table has as the default, the schema takes."""
    document: dict[str, Any] = {}
    for path, row in rows():
        if "*" not in path and row.default is not None:
            document.setdefault(path[0], {})
            node = document
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = row.default
    assert isinstance(decode(document, USABLE_BYTES), Settings)
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        'pool.memory = "24GB"',
        'pool.memory = "60 %"',
        'pool.memory = "Auto"',
        "pool.memory = 24000000000",
        "pool.memory = 7",
        'pool.memory = "lots"',
        "pool.memory = true",
        'pool.max_models = "none"',
        "pool.max_models = 0",
        "pool.max_models = 1.5",
        'pool.keep_alive = "1h30m"',
        'pool.keep_alive = "never"',
        "pool.keep_alive = 90.5",
        'pool.keep_alive = "soon"',
        'pool.policy = "fifo"',
        'pool.preload = ["a", "b"]',
        'pool.preload = ["a", "a"]',
        "pool.memry = 1",
        "cloud.enabled = true",
        'models."o/n".pin = true',
        'models."o/n".keep_alive = "inherit"',
        'models."o/n".pinned = true',
        'cloud.rules.r.match = "x"',
        'cloud.rules.r.mode = "never"',
        'cloud.providers.p = { base_url = "https://host/v1", auth = { env = "KEY" } }',
        'cloud.providers.p = { base_url = "https://host/v1", auth = { env = "sk-1" } }',
        'cloud.providers.p = { base_url = "ftp://host/v1" }',
    ],
)
def test_schema_and_daemon_agree(text: str) -> None:
    """A file that the daemon takes is valid, one that it refuses for its kind or bounds is not."""
    document = tomllib.loads(text)
    assert is_valid(document) == VALIDATOR.is_valid(document)
