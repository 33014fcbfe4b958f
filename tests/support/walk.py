"""Traces the functions of ours that a piece of work runs through, on every thread."""

from __future__ import annotations

import inspect
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mlxd

_ROOT = Path(mlxd.__file__).parent.parent
_OURS = tuple(f"{_ROOT / package}/" for package in ("mlxd", "mlxctl"))


class Walk:
    """The functions of mlxd and mlxctl that have run while `is_noting`: methods, closures and lambdas, each once."""

    def __init__(self) -> None:
        """Begin with none."""
        self.is_noting = False
        self._calls: Counter[CodeType] = Counter()

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Take what the interpreter calls."""
        if self.is_noting and event == "call":
            self._calls[frame.f_code] += 1

    def calls_of(self, function: Callable[..., Any]) -> int:
        """Return how often *function* was called."""
        return self._calls[function.__code__]

    @property
    def functions(self) -> list[str]:
        """File and name of each, sorted; the bodies of modules, classes and comprehensions are no functions."""
        ours = [
            code for code in self._calls if code.co_filename.startswith(_OURS) and code.co_flags & inspect.CO_OPTIMIZED
        ]
        names = {f"{Path(code.co_filename).relative_to(_ROOT)}:{code.co_qualname}" for code in ours}
        return sorted(name for name in names if not name.endswith(("comp>", "expr>")))

    @property
    def files(self) -> list[str]:
        """The files that these functions are in, sorted."""
        return sorted({name.partition(":")[0] for name in self.functions})


@contextmanager
def walking() -> Iterator[Walk]:
    """Trace this thread and all that begin inside of the context."""
    walk = Walk()
    threading.setprofile(walk.note)
    sys.setprofile(walk.note)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
