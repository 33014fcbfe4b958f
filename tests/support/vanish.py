"""Folders that go away between two looks at them, at a place that the test chooses."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# By these everything that Python reads of folders and files begins.
_LOOKS = ("stat", "lstat", "scandir", "listdir", "open", "readlink")


class Vanishing:
    """Counts the looks of the process at what lies under *victim*, and removes it before one of them or after it."""

    def __init__(self, victim: Path, place: int) -> None:
        """Remove *victim* at the look of number *place*: even numbers count before the looks, odd ones after them."""
        self.is_gone = False
        self._victim = victim
        self._place = place
        self._next = itertools.count()

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Count while this is entered."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _LOOKS:
                patch.setattr(os, name, self._watched(getattr(os, name)))
            yield

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any = ".", *args: Any, **options: Any) -> Any:
            is_ours = isinstance(path, str | os.PathLike) and Path(path).is_relative_to(self._victim)
            if is_ours:
                self._count()
            found = real(path, *args, **options)
            if is_ours:
                self._count()
            return found

        return look

    def _count(self) -> None:
        if not self.is_gone and next(self._next) == self._place:
            self.is_gone = True
            with pytest.MonkeyPatch.context() as patch:
                for name in _LOOKS:
                    patch.setattr(os, name, _REAL[name])
                _remove(self._victim)


_REAL = {name: getattr(os, name) for name in _LOOKS}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
