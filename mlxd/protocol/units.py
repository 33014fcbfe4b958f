"""Bytes, durations and counts: `parse_` and `format_` are inverse pairs. `GB` is 10^9, `GiB` is 2^30."""

from __future__ import annotations

import math
import re

_BYTE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
# Bounded, so that no text becomes a number which takes long to compute; 30 digits are far over every bound.
_SIZE = re.compile(r"(?P<number>[+-]?[0-9]{1,30}(?:\.[0-9]{1,30})?)\s*(?P<unit>[a-zA-Z]*)")
_DURATION_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h|d))+")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")


def parse_bytes(text: str) -> int:
    """Return the bytes that `24GB`, `512 MiB` or `1024` stand for; the sign is kept for the caller's bounds.

    Raises:
        ValueError: not a number with a unit of B, kB, MB, GB, TB, KiB, MiB, GiB, TiB.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        msg = f"{text!r} is not a size; write a number and a unit, such as 24GB or 512MiB"
        raise ValueError(msg)
    unit = match["unit"].lower() or "b"
    if unit not in _BYTE_UNITS:
        msg = f"{text!r} has the unknown unit {match['unit']!r}; use B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"
        raise ValueError(msg)
    from fractions import Fraction  # late: it costs mlxctl 2 ms of a start, and few commands parse a size

    return round(Fraction(match["number"]) * _BYTE_UNITS[unit])  # a float is not exact over 9 PB


def format_bytes(n_bytes: int) -> str:
    """Return a short text that `parse_bytes` turns back into exactly *n_bytes*: `24GB`, `512MiB`, `1000001B`."""
    for unit in ("TB", "TiB", "GB", "GiB", "MB", "MiB", "KB", "KiB"):
        size = _BYTE_UNITS[unit.lower()]
        if n_bytes and n_bytes % size == 0:
            return f"{n_bytes // size}{unit}"
    return f"{n_bytes}B"


def show_bytes(n_bytes: int) -> str:
    """Return both units for people, rounded: `24.0 GB (22.4 GiB)`."""
    for decimal, binary in (("GB", "GiB"), ("MB", "MiB"), ("KB", "KiB")):
        if abs(n_bytes) >= _BYTE_UNITS[decimal.lower()]:
            in_decimal = n_bytes / _BYTE_UNITS[decimal.lower()]
            in_binary = n_bytes / _BYTE_UNITS[binary.lower()]
            return f"{in_decimal:.1f} {decimal} ({in_binary:.1f} {binary})"
    return f"{n_bytes} B"


def parse_duration_s(text: str, *, is_unit_needed: bool = True) -> float:
    """Return the seconds that `30s`, `1h30m`, `250ms` or `0` stand for.

    Args:
        text: the duration.
        is_unit_needed: False takes a number alone for seconds, as older versions wrote it into the settings file.

    Raises:
        ValueError: not a number of ms, s, m, h or d.
    """
    stripped = text.strip()
    try:
        seconds = float(stripped)
    except ValueError:
        parts = _DURATION_PART.findall(stripped) if _DURATION.fullmatch(stripped) else [("nan", "s")]
        seconds = sum(float(number) * _DURATION_UNITS_S[unit] for number, unit in parts)
    else:
        if is_unit_needed and seconds and math.isfinite(seconds):
            msg = f"{text!r} has no unit; expected a duration such as {stripped}s, {stripped}m or 1h30m"
            raise ValueError(msg)
    if not math.isfinite(seconds):
        msg = f"{text!r} is not a duration; write 250ms, 30s, 5m, 1h30m or 2d"
        raise ValueError(msg)
    return seconds


def format_duration(seconds: float) -> str:
    """Return the text that `parse_duration_s` turns back into *seconds* ≥ 0, to the millisecond: `1h30m`, `250ms`."""
    total_ms = round(seconds * 1000)
    if total_ms == 0:
        return "0s"
    parts = []
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, total_ms = divmod(total_ms, size_ms)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)


def count(number: int, noun: str) -> str:
    """Return `1 request`, `2 requests`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
