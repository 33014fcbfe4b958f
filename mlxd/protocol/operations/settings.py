"""Settings and their file."""

from __future__ import annotations

from mlxd.protocol.operations.row import FORCE, PAGE, Operation, Param, ParamType, count, flag, text

_TOML = Param(ParamType.TOML, "TOML.")
_NAME = text("What errors call the text.", required=False)
_GENERATION = Param(ParamType.COUNT, "Generation.")

TABLE = (
    Operation("settings.get", "One setting: value, where it comes from, default.", {"key": text("Dotted key.")}),
    Operation("settings.list", "All settings as settings.get gives them.", PAGE),
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
        {"text": Param(ParamType.TOML, "TOML.", required=False), "name": _NAME},
    ),
    Operation("settings.path", "Where the settings file is."),
    Operation("settings.read", "The settings file as it is on the disk, and its SHA-256."),
    Operation("settings.reload", "Read the settings file now.", mutates=True, commits=True, is_about_file=True),
    Operation(
        "settings.apply",
        "Take a text for the whole settings file.",
        {
            "text": _TOML,
            "name": _NAME,
            "base": text("SHA-256 of the file that the text was made of; refused when it is another.", required=False),
            "force": flag("Pass the checks that guard against too little memory; replace a file that is not valid."),
        },
        mutates=True,
        commits=True,
    ),
    Operation("settings.history", "The generations of the settings that are known of, newest first."),
    Operation(
        "settings.rollback",
        "Take the settings file of an earlier generation.",
        {"gen": _GENERATION, "force": FORCE},
        mutates=True,
        commits=True,
    ),
    Operation(
        "settings.diff",
        "What differs: between the file and what is in force, or between two generations of the file.",
        {"old": count("A generation."), "new": count("Another; the file as it is now when left out.")},
    ),
)
