"""Aliases: other names of models, as the settings define them. Pure."""

from __future__ import annotations

from mlxd.protocol.errors import InvalidValue
from mlxd.protocol.key import format_path
from mlxd.protocol.settings import Settings

# As long as a model's name in a request may be.
_MOST_CHARACTERS = 512


def alias_targets(settings: Settings) -> dict[str, str]:
    """Return alias → model id."""
    return {alias: model_id for model_id, model in settings.models.items() for alias in model.aliases}


def check_aliases(settings: Settings) -> None:
    """Check that a name means one thing.

    Raises:
        InvalidValue: an alias stands twice, is the id of a model with settings, or cannot be a name.
    """
    owner: dict[str, str] = {}
    for model_id, model in settings.models.items():
        for alias in model.aliases:
            if not alias.isprintable() or alias != alias.strip() or len(alias) > _MOST_CHARACTERS:
                raise _refuse(model_id, f"{alias[:60]!r} cannot be the name of a model")
            if alias in settings.models:
                raise _refuse(model_id, f"{alias!r} is the id of a model")
            if alias in owner:
                raise _refuse(model_id, f"{alias!r} is an alias of {owner[alias]!r} already")
            owner[alias] = model_id


def _refuse(model_id: str, reason: str) -> InvalidValue:
    key = format_path(("models", model_id, "aliases"))
    return InvalidValue(f"{key}: {reason}", param=key, hint="mlxctl model alias list")
