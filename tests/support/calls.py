"""Calls that come in pieces, put together."""

from __future__ import annotations

from collections.abc import Iterable

from mlxd.engine.tool import CallPiece


def whole_calls(pieces: Iterable[CallPiece]) -> list[CallPiece]:
    """Return each call as one piece; fails where pieces are not in order, or a call has no end."""
    calls: list[CallPiece] = []
    is_open = False
    for piece in pieces:
        assert (piece.name is None) == is_open
        if piece.name is None:
            calls[-1] = CallPiece(calls[-1].name, calls[-1].arguments + piece.arguments, piece.is_last)
        else:
            calls.append(piece)
        is_open = not piece.is_last
    assert not is_open
    return calls
