"""A setting's dotted key, `models."org/name".pin`, and the path of names that it stands for."""

from __future__ import annotations

import re

_BARE_PART = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED_PART = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r'["\\]')


def format_path(path: tuple[str, ...]) -> str:
    """Return the path as a key that `parse_path` reads back: `models."org/name".pin`."""
    return ".".join(part if _BARE_PART.fullmatch(part) else '"' + _ESCAPED.sub(r"\\\g<0>", part) + '"' for part in path)


def parse_path(key: str) -> tuple[str, ...]:
    r"""Split a dotted key; a part may stand in double quotes, with `\"` for a quote in it.

    Raises:
        ValueError: an empty part or an open quote.
    """
    parts: list[str] = []
    rest = key
    while True:
        if rest.startswith('"'):
            match = _QUOTED_PART.match(rest)
            if match is None:
                msg = f"{key!r} has an open quote"
                raise ValueError(msg)
            part = re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL)
            dot, rest = rest[match.end() : match.end() + 1], rest[match.end() + 1 :]
        else:
            part, dot, rest = rest.partition(".")
        if not part or (dot and dot != "."):
            msg = f"{key!r} is not a dotted key"
            raise ValueError(msg)
        parts.append(part)
        if not dot:
            return tuple(parts)
