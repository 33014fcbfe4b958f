"""The verbs of models, preloads, rules, providers, prices and keys, with their help, held against a golden file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from mlxctl.cli import make_root

_GOLDEN = Path(__file__).with_name("resource_help.txt")
_NOUNS = ("model", "preload", "cloud", "key", "apikey")
_SHARED = frozenset({"--json", "--quiet", "--socket", "--timeout"})
_OF_CHANGES = frozenset({"--dry-run", "--if-generation", "--runtime-only", "--wait"})


def _describe(command: Any, path: str) -> Iterator[str]:
    """Yield a line for each verb, argument and option of *command* and of what stands below it."""
    yield f"{path}: {command.help}"
    names = [param.opts[0] for param in command.params if param.opts[0] in _OF_CHANGES]
    if names:
        yield f"  takes {' '.join(names)}"
    for param in command.params:
        if param.opts[0] in _SHARED | _OF_CHANGES:
            continue
        words = [*param.opts, param.metavar or "", "required" if param.required else "", "many" * param.multiple]
        yield f"  {' '.join(word for word in words if word)}: {getattr(param, 'help', None)}"
    if isinstance(command, TyperGroup):
        for name, below in sorted(command.commands.items()):
            yield from _describe(below, f"{path} {name}")


def test_the_help_of_every_verb() -> None:
    """A change of a verb, of its help, arguments or options is a change of the golden file, on purpose."""
    root = make_root()
    with root.make_context("mlxctl", ["status"]) as ctx:
        nouns = [(root.get_command(ctx, name), f"mlxctl {name}") for name in _NOUNS]
    shown = "\n".join(line for noun, path in nouns for line in _describe(noun, path)) + "\n"
    if not _GOLDEN.exists():  # delete it to renew it
        _GOLDEN.write_text(shown)
    assert _GOLDEN.read_text() == shown
