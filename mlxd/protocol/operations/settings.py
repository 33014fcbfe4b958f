"""Settings and their file."""

from __future__ import annotations

from mlxd.protocol.operations.row import FORCE, Operation, Param, ParamType, text

TABLE = (
    Operation("settings.get", "One setting: value, what stands in the file, default.", {"key": text("Dotted key.")}),
    Operation("settings.list", "All settings as settings.get gives them."),
    Operation(
        "settings.set",
        "Change settings, all or none.",
        {"changes": Param(ParamType.CHANGES, "Key → value; null unsets it."), "force": FORCE},
        mutates=True,
        commits=True,
    ),
    Operation(
        "settings.validate",
        "Check a settings file, the one on disk unless its text is given.",
        {"text": Param(ParamType.TEXT, "TOML.", required=False)},
    ),
    Operation("settings.path", "Where the settings file is."),
    Operation("settings.reload", "Read the settings file now.", mutates=True),
)
