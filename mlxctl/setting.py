"""The settings that a command line names. Values stay text: the daemon's parser knows the kinds and bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxctl.verb import usage_error
from mlxd.protocol.key import parse_path
from mlxd.protocol.table import find_row


def parse_changes(words: Sequence[str]) -> dict[str, str]:
    """Return key → value of `KEY VALUE` or of `KEY=VALUE...`.

    Raises:
        ControlError: the words are neither, or a key stands twice.
    """
    if len(words) == 2 and "=" not in words[0]:
        return {normalize_key(words[0]): words[1]}
    return _parse_pairs(words, normalize_key, "mlxctl config set KEY VALUE, or KEY=VALUE...")


def parse_pool_changes(words: Sequence[str]) -> dict[str, str]:
    """Return key → value of `KEY=VALUE` words; a key without a dot is of the pool."""

    def key_of(name: str) -> str:
        return normalize_key(name if "." in name else f"pool.{name}")

    return _parse_pairs(words, key_of, "mlxctl pool set KEY=VALUE...")


def parse_names(words: Sequence[str], usage: str) -> dict[str, str]:
    """Return name → value of `KEY=VALUE` words about one entry of a table, with `_` for the `-` of verbs."""
    return _parse_pairs(words, lambda name: name.replace("-", "_"), usage)


def _parse_pairs(words: Sequence[str], key_of: Callable[[str], str], usage: str) -> dict[str, str]:
    changes: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise usage_error(f"{word!r} is no KEY=VALUE", usage)
        key = key_of(name)
        if key in changes:
            raise usage_error(f"{key} is given twice", usage)
        changes[key] = value
    return changes


def normalize_key(key: str) -> str:
    """Return the key that people mean who write it as the verbs are written: `pool.keep-alive` is `pool.keep_alive`."""
    with_underscores = key.replace("-", "_")
    return key if _is_known(key) or not _is_known(with_underscores) else with_underscores


def _is_known(key: str) -> bool:
    try:
        return find_row(parse_path(key)) is not None
    except ValueError:
        return False
