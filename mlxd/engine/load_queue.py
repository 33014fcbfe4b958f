"""The loads in progress on the device thread: they take turns, so that a small model does not wait for a large one.

How many there are is the pool's decision, which has reserved the memory of each.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from mlxd.engine.command import Load, Post
from mlxd.engine.fault import load_failure
from mlxd.engine.loader import BUSY_SLICE_BYTES, IDLE_SLICE_BYTES, Checked, LoadedModel, SlicedLoad
from mlxd.protocol.errors import MlxdError

_log = logging.getLogger(__name__)


class LoadQueue:
    """Loads and whose turn it is; progress and failures go to *post*."""

    def __init__(self, post: Callable[[Post], None], free: Callable[[], None]) -> None:
        """Begin without loads; *free* gives back the memory of a load that has ended early."""
        self._post = post
        self._free = free
        self._loads: deque[tuple[Load, SlicedLoad]] = deque()
        self._checked: Checked = {}

    @property
    def is_busy(self) -> bool:
        """Whether a slice has anything to do."""
        return bool(self._loads)

    @property
    def next_id(self) -> str:
        """The model of the load whose turn it is."""
        return self._loads[0][0].spec.model_id

    def begin(self, command: Load, base: LoadedModel | None) -> None:
        """Add a load; *base* is what an adapter is put on."""
        self._loads.append((command, SlicedLoad(command.spec, command.files, base, self._checked)))

    def advance(self, *, is_shared: bool) -> tuple[Load, LoadedModel] | None:
        """Load one slice of the load whose turn it is; return a model that is complete.

        Args:
            is_shared: streams wait meanwhile, so that the slice is short.
        """
        command, load = self._loads.popleft()
        try:
            loaded = load.advance(BUSY_SLICE_BYTES if is_shared else IDLE_SLICE_BYTES)
            progress = (load.done_bytes, load.total_bytes)
        except BaseException as error:  # noqa: BLE001 the engine's edge: damaged files, unknown models, no memory
            _log.warning("load of %s failed", command.spec.model_id, exc_info=error)
            failure = load_failure(command.spec.model_id, error)
            error.__traceback__ = None  # its frames hold weights
            self._end(command, load, failure)
            return None
        self._post((lambda done_total: command.on_progress(*done_total), progress))
        if loaded is not None:
            return command, loaded
        self._loads.append((command, load))
        return None

    def abort(self, key: int, error: MlxdError) -> None:
        """End the load of *key*, if it is one of these, with *error*; its memory is free before that is told."""
        for command, load in self._loads:
            if command.key == key:
                self._loads.remove((command, load))
                self._end(command, load, error)
                return

    def abort_all(self, error: MlxdError) -> None:
        """End all loads with *error*."""
        while self._loads:
            self._end(*self._loads.popleft(), error)

    def _end(self, command: Load, load: SlicedLoad, error: MlxdError) -> None:
        try:
            load.close()
        except OSError:
            _log.exception("the files of %s could not be closed", command.spec.model_id)
        self._free()
        self._post((command.reply, error))
