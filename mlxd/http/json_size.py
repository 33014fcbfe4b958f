"""Count what a JSON text holds, and find its long strings, without parsing it. Pure.

`{}` takes two bytes there and 64 in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlxd.protocol.errors import PayloadTooLarge

_PIECE_BYTES = 64 * 1024
# Shorter ones cost more to parse by themselves than they hold up others.
_LONG_BYTES = 1024
# The tools of an agent have some ten thousand members, a message has about ten; see `limit_of`.
_BASE_NODES = 100_000
_NODES_PER_MESSAGE = 16
# Tokens come as numbers: three times as many as OpenAI takes, and half of what a second of parsing would be.
_BASE_VALUES = 1_000_000


@dataclass(frozen=True, slots=True)
class JsonSize:
    """What stands outside of strings: what is in them is text, code and JSON of tools included."""

    nodes: int  # objects, lists and members of objects
    values: int  # items and members, but for the first of each object and list


def limit_of(max_messages: int) -> JsonSize:
    """Return what the body of a request with so many messages may hold."""
    nodes = _NODES_PER_MESSAGE * max_messages
    return JsonSize(_BASE_NODES + nodes, _BASE_VALUES + nodes)


def measure(raw: bytes | bytearray, long_strings: list[tuple[int, int]]) -> Iterator[JsonSize]:
    """Yield what there is from the beginning to the end of each piece of *raw*, each within a millisecond or two.

    Of what is no JSON it tells as much as a parser would have seen before it gave up.

    Args:
        raw: the text.
        long_strings: gets the places of what stands between the quotes of each long string, in order.
    """
    nodes = values = start = 0
    is_inside, opened = False, 0  # whether *start* is within a string, and where that begins
    while start < len(raw):
        piece = bytes(raw[start : start + _PIECE_BYTES])
        if start + len(piece) < len(raw) and (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = piece[:-1]  # an escape stays in one piece
        parts = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__").split(b'"')
        outside = b"".join(parts[is_inside::2])
        nodes += outside.count(b"{") + outside.count(b"[") + outside.count(b":")
        values += outside.count(b",")
        quote = start - 1
        for part in parts[:-1]:
            quote += len(part) + 1
            if not is_inside:
                opened = quote + 1
            elif quote - opened >= _LONG_BYTES:
                long_strings.append((opened, quote))
            is_inside = not is_inside
        start += len(piece)
        yield JsonSize(nodes, values)


def check(size: JsonSize, limit: JsonSize) -> None:
    """Pass if *size* is within *limit*.

    Raises:
        PayloadTooLarge: parsing would take too long, and too much memory.
    """
    for what, held, most in (
        ("objects, lists and members", size.nodes, limit.nodes),
        ("values", size.values, limit.values),
    ):
        if held > most:
            raise PayloadTooLarge(
                f"the body holds over {most} {what}, more than any request needs",
                hint="mlxctl config set http.max_messages=N",
            )
