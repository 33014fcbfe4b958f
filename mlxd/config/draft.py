"""From edits to the next version of the settings file; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlxd.config.default import render_default
from mlxd.config.document import Version, decode_edited, is_entry, row_of, toml_value, written
from mlxd.config.edit import CannotEditError, change, edit, is_same
from mlxd.config.participant import Edit
from mlxd.protocol.errors import CommitFailed
from mlxd.protocol.key import format_path
from mlxd.protocol.kind import Machine


def draft(base: Version | None, edits: Sequence[Edit], machine: Machine) -> Version:
    """Return the version that *edits* make of *base*; of the commented default file where there is no file.

    What is set to the default that holds anyway is not written down.

    Raises:
        UnknownSetting, InvalidValue: an edit is at fault.
        CommitFailed: the file is written in a way that an edit would damage.
    """
    changes: list[tuple[tuple[str, ...], Any]] = []
    document: Mapping[str, Any] = {} if base is None else base.document
    for item in edits:
        step = item.path, _value(item, machine)
        default, is_in_file = (None, True) if item.value is None else written(document, item.path)
        if is_in_file or not is_same([default], [step[1]]):
            document = change(document, [step])
            changes.append(step)
    fresh = render_default() if changes else ""
    try:
        text = edit(fresh if base is None else base.text, changes)
    except CannotEditError as error:
        key = format_path(changes[0][0])
        raise CommitFailed(f"the file cannot be edited safely: {error}", param=key, hint="edit it by hand") from None
    return Version(text, document, decode_edited(document, machine))


def _value(item: Edit, machine: Machine) -> Any:
    if item.value is not None:
        return toml_value(item.path, item.value, machine)
    if not is_entry(item.path):
        row_of(item.path)
    return None
