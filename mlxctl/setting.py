"""How a command line names settings and values. Values stay text: the daemon's parser knows the kinds and bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxctl.verb import usage_error
from mlxd.protocol.errors import ControlError
from mlxd.protocol.key import parse_path
from mlxd.protocol.table import find_row


def parse_changes(words: Sequence[str], table: str | None = None) -> dict[str, str]:
    """Return key → value of `KEY=VALUE` words; a key without a dot is of *table*.

    Raises:
        ControlError: a word is no pair, or a key stands twice.
    """

    def key_of(name: str) -> str:
        return normalize_key(name if table is None or "." in name else f"{table}.{name}")

    return _read_pairs(words, key_of, table)


def parse_model_changes(words: Sequence[str]) -> dict[str, str]:
    """Return name → value of `KEY=VALUE` words about one model, with `_` for the `-` of verbs.

    Raises:
        ControlError: a word is no pair, or a name stands twice.
    """
    return _read_pairs(words, lambda name: name.replace("-", "_"), "model", "MODEL ")


def parse_one_or_more(words: Sequence[str]) -> dict[str, str]:
    """Return key → value of `KEY VALUE` or of `KEY=VALUE...`.

    Raises:
        ControlError: the words are neither.
    """
    if len(words) == 2 and "=" not in words[0]:
        return {normalize_key(words[0]): words[1]}
    return parse_changes(words)


def normalize_key(key: str) -> str:
    """Return the key that people mean who write it as the verbs are written: `pool.keep-alive` is `pool.keep_alive`."""
    with_underscores = key.replace("-", "_")
    return key if _is_known(key) or not _is_known(with_underscores) else with_underscores


def _is_known(key: str) -> bool:
    try:
        return find_row(parse_path(key)) is not None
    except ValueError:
        return False


def _read_pairs(
    words: Sequence[str], key_of: Callable[[str], str], table: str | None, what: str = ""
) -> dict[str, str]:
    changes: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise _usage(f"{word!r} is no KEY=VALUE", table, what)
        key = key_of(name)
        if key in changes:
            raise _usage(f"{key} is given twice", table, what)
        changes[key] = value
    return changes


def _usage(message: str, table: str | None, what: str = "") -> ControlError:
    verb = "mlxctl config set KEY VALUE, or" if table is None else f"mlxctl {table} set {what}".rstrip()
    return usage_error(message, f"{verb} KEY=VALUE...")
