"""From what is asked for to the next state of the settings: file, overlay, and what they make together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlxd.config.default import render_default
from mlxd.config.document import (
    Version,
    decode_edited,
    entry_of,
    is_entry,
    is_stated,
    leaves,
    row_of,
    toml_value,
    written,
)
from mlxd.config.edit import CannotEditError, change, edit, is_same
from mlxd.config.overlay import Overlay, State
from mlxd.config.participant import Edit, Revert
from mlxd.protocol.errors import CommitFailed
from mlxd.protocol.key import format_path
from mlxd.protocol.kind import Machine

_Changes = list[tuple[tuple[str, ...], Any]]


def save(base: State, edits: Sequence[Edit], machine: Machine, *, has_file: bool) -> State:
    """Return the state with *edits* in the file, the commented default file where there is none.

    What is set to the default that holds anyway is not written down. The overlay of what is set goes.

    Raises:
        UnknownSetting, InvalidValue: an edit is at fault.
        CommitFailed: the file is written in a way that an edit would damage.
    """
    changes: _Changes = []
    document: Mapping[str, Any] = base.version.document
    overlay = base.overlay
    for item in edits:
        value = _value(item, machine)
        overlay = overlay.without(item.path)
        default, is_in_file = (None, True) if value is None else written(document, item.path)
        if is_in_file or not is_same([default], [value]):
            document = change(document, [(item.path, value)])
            changes.append((item.path, value))
    version = base.version
    if not is_same(document, version.document):
        text = _edit(version.text if has_file else render_default(), changes)
        version = Version(text, document, decode_edited(document, machine))
    return State.of(version, overlay, machine)


def _edit(text: str, changes: _Changes) -> str:
    try:
        return edit(text, changes)
    except CannotEditError as error:
        raise CommitFailed(
            f"the file cannot be edited safely: {error}",
            param=format_path(changes[0][0]),
            hint="mlxctl config edit, which leaves the writing to you",
        ) from None


def lay_over(base: State, edits: Sequence[Edit], machine: Machine) -> State:
    """Return the state with *edits* over the file, which stays as it is.

    Raises:
        UnknownSetting, InvalidValue: an edit is at fault.
    """
    overlay = base.overlay
    for item in edits:
        if item.value is Revert.TO_FILE:
            _value(Edit(item.path, None), machine)
            overlay = overlay.without(item.path)
        else:
            overlay = overlay.with_value(item.path, _value(item, machine), base.version.document)
    return State.of(base.version, overlay, machine)


def replace(base: State, version: Version, machine: Machine) -> State:
    """Return the state with another file. The overlay of what the files differ in goes."""
    overlay = base.overlay
    for path, _ in _differing(base.version.document, version.document):
        overlay = overlay.without(path)
    return State.of(version, overlay, machine)


def lay_file_over(base: State, version: Version, machine: Machine) -> State:
    """Return the state in which *version* holds without being written down."""
    overlay = Overlay()
    for path, value in _differing(base.version.document, version.document):
        entry = entry_of(path) if value is None else None
        place = path if entry is None or is_stated(version.document, entry) else entry
        overlay = overlay.with_value(place, value, base.version.document)
    return State.of(base.version, overlay, machine)


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> _Changes:
    """Return (path, value in *new* or None) of each setting that the documents state otherwise."""
    before, after = dict(leaves(old)), dict(leaves(new))
    gone: _Changes = [(path, None) for path in before if path not in after]
    return gone + [
        (path, value) for path, value in after.items() if path not in before or not is_same([before[path]], [value])
    ]


def _value(item: Edit, machine: Machine) -> Any:
    if item.value is not None:
        return toml_value(item.path, item.value, machine)
    if not is_entry(item.path):
        row_of(item.path)
    return None
