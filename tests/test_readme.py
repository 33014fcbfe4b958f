"""The README says what is so: the settings table, the verbs and the four lines of Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from mlxctl import cli
from mlxd.protocol import docs
from mlxd.protocol.table import rows

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_settings_table_is_fresh() -> None:
    """The table in the README is the one that the settings make: `python -m mlxd.protocol.docs README.md` renews it."""
    assert docs.replace(README) == README


def test_every_setting_is_documented() -> None:
    """Each setting has one line, with its default and its help."""
    lines = docs.render().splitlines()[2:]

    assert len(lines) == len(list(rows()))
    for line, (path, row) in zip(lines, rows(), strict=True):
        key = ".".join("ID" if part == "*" else part for part in path)
        assert line.startswith(f"| `{key}` |")
        assert row.help.replace("|", "\\|") in line


def test_markers_are_needed() -> None:
    """A file without the markers is not written over."""
    with pytest.raises(ValueError, match="lacks"):
        docs.replace("no table here")


COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()] + [
    line[2:] for kind, text in BLOCKS if kind == "console" for line in text.splitlines() if line.startswith("$ ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist(line: str) -> None:
    """Each mlxctl command of the README is one that the program understands, up to its last option."""
    words = [word for word in shlex.split(line, comments=True) if not re.match("[A-Z_]+=", word)]
    if not words[0].endswith("mlxctl"):
        assert words[0] in ("make", "export", "claude")
        return
    command: Any = cli.make_root()
    name, rest = "mlxctl", words[1:]
    ctx = None
    while command is not None:
        ctx = command.make_context(name, rest, parent=ctx)
        is_noun = hasattr(command, "resolve_command")
        name, command, rest = (
            command.resolve_command(ctx, [*ctx._protected_args, *ctx.args]) if is_noun else ("", None, [])
        )


def test_python_block_compiles() -> None:
    """The OpenAI client in four lines is valid Python."""
    (text,) = [text for kind, text in BLOCKS if kind == "python"]

    compile(text, "README.md", "exec")
    assert len(text.splitlines()) == 4
