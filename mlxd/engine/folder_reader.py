"""Reads models' folders, each on a thread of its own: a disk that hangs delays nobody but the loads from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol, TypeVar

from mlxd.engine.base import LoadSpec
from mlxd.engine.command import ModelFiles
from mlxd.engine.fault import load_failure
from mlxd.engine.safetensors_header import Tensor
from mlxd.own_thread import in_own_thread, join_own_threads
from mlxd.protocol.errors import MlxdError

T = TypeVar("T")

_NAME = "mlxd-folder"
# A read that does not hang has ended by then. One in foreign code that ends together with the interpreter may abort.
_CLOSE_S = 1.0


class WorkingOn(Protocol):
    """Tells, in case the process dies, that a thread works on the load of a model."""

    def __call__(self, model_id: str, *, on_device: bool) -> AbstractContextManager[None]:
        """Return what is entered for as long: by the device thread, or by one that reads the model's folder."""


def unmarked(model_id: str, *, on_device: bool) -> AbstractContextManager[None]:  # noqa: ARG001  (nobody is told)
    """Tell nobody. Implements `WorkingOn`."""
    return nullcontext()


class FolderReaders:
    """The reads under way."""

    def __init__(self, working_on: WorkingOn) -> None:
        """Have each thread enter *working_on*."""
        self._working_on = working_on

    async def run(self, read: Callable[[LoadSpec], T], spec: LoadSpec) -> T:
        """Return what *read* returns, or raise its error. Cancelled, it leaves the thread to itself."""

        def work() -> T:
            try:
                with self._working_on(spec.model_id, on_device=False):
                    return read(spec)
            except MlxdError:
                raise
            except BaseException as error:
                raise load_failure(spec.model_id, error) from error

        return await in_own_thread(work, _NAME)

    def close(self) -> None:
        """Wait a moment for the threads that do not hang."""
        join_own_threads(_NAME, _CLOSE_S)


def read_files(spec: LoadSpec) -> ModelFiles:
    """Read what a load needs of the folder before its weights.

    Raises:
        LoadFailed: something is missing or damaged.
    """
    from mlxd.engine import source  # imports mlx, which the device thread has done by now

    return source.read_model_files(spec)


def read_adapter(spec: LoadSpec) -> Mapping[str, tuple[Path, Tensor]]:
    """Look at an adapter's folder, and return where its tensors are.

    Raises:
        LoadFailed: something is missing or damaged.
    """
    from mlxd.engine import source

    return source.read_adapter(spec)
