"""`SettingsStore`: the sole owner of the settings. One truth, the file; one way to change it, a commit.

A commit is live and in the file, or neither. Everything that can fail is done before the rename that makes it so; the
swap of the state follows in the same turn of the event loop. What is runtime-only takes the same way and leaves the
file out. The store knows no owner of settings: they attach as participants, which check, plan and apply.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlxd.atomic_file import Content, SystemCalls
from mlxd.config import draft
from mlxd.config.disk import Disk
from mlxd.config.document import Version
from mlxd.config.history import Record
from mlxd.config.overlay import State
from mlxd.config.owners import Owners
from mlxd.config.participant import CommitResult, Edit, Edits, Participant, Preparer, StoreEvent, Terms
from mlxd.config.pipeline import Draft, Pipeline
from mlxd.protocol.errors import Conflict, FileInvalid, NotFound
from mlxd.protocol.kind import Machine
from mlxd.protocol.settings import Settings

POLL_S = 2.0
_TEXT = "the text"
_log = logging.getLogger(__name__)


class SettingsStore:
    """The settings in force, their file, and the pipeline between them."""

    def __init__(
        self,
        path: Path,
        history: Path,
        machine: Machine,
        *,
        validate: Callable[[Settings], object] | None = None,
        calls: SystemCalls | None = None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Read the file; a bad one leaves the defaults in force and `problem` set.

        Args:
            path: the settings file; need not exist.
            history: the folder of past versions.
            machine: what relative values are relative to.
            validate: raises SettingsError for settings that no daemon can start with (rules without a provider).
            calls: the system calls, for tests that make them fail.
            pause: waits for an editor that is writing.
        """
        self.path = path
        self.machine = machine
        self._disk = Disk(path, history, calls, pause)
        self._owners = Owners(validate)
        self._pipeline = Pipeline(self._disk, self._owners, machine)
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def generation(self) -> int:
        """The number of the settings in force; grows with each change."""
        return self._pipeline.generation

    @property
    def problem(self) -> FileInvalid | None:
        """What is wrong with the file, while something is."""
        return self._pipeline.problem

    @property
    def unapplied(self) -> list[str]:
        """A sentence for each participant that has not applied the settings in force."""
        return self._owners.problems()

    @property
    def current(self) -> Settings:
        """The snapshot in force; replaced, never changed."""
        return self._pipeline.state.settings

    @property
    def state(self) -> State:
        """What is in force, with where it comes from."""
        return self._pipeline.state

    @property
    def has_booted_invalid(self) -> bool:
        """Whether the file was bad from the start, so that the defaults are in force and nothing should be served."""
        return self._pipeline.digest is None

    def attach(self, name: str, participant: Participant, preparer: Preparer | None = None) -> None:
        """Have *participant* follow the settings; its results stand under *name* in `CommitResult.effects`."""
        self._owners.attach(name, participant, preparer)

    def subscribe(self, listener: Callable[[StoreEvent], None]) -> None:
        """Call *listener* after each commit and whenever the file goes bad or is mended."""
        self._pipeline.listeners.append(listener)

    def read_text(self) -> Content:
        """Return the file as it is on the disk, valid or not.

        Raises:
            FileInvalid: it cannot be read.
        """
        return self._disk.read()

    def check_text(self, text: str | None, name: str | None = None) -> list[str]:
        """Return the warnings for a settings file, the one on disk when *text* is None; errors call the text *name*.

        Raises:
            FileInvalid: with file:line:col.
        """
        if text is None:
            return self._pipeline.check_version(self.parse_file(), self.path.name)
        name = _TEXT if name is None else name
        return self._pipeline.check_version(self._pipeline.read_version(Content(text.encode()), name), name)

    def parse_file(self) -> Version:
        """Return the file as it is on the disk, in force or not.

        Raises:
            FileInvalid: with file:line:col.
        """
        return self._pipeline.read_version(self._disk.read())

    async def history(self) -> list[Record]:
        """Return what is known of the generations, oldest first."""
        return await asyncio.to_thread(self._disk.history.records)

    async def version_of(self, generation: int) -> Version:
        """Return the file as it was in *generation*.

        Raises:
            NotFound: it is not kept.
            FileInvalid: this version of mlxd cannot use it any more.
        """
        data = await asyncio.to_thread(self._disk.history.read, generation)
        if data is None:
            kept = self._disk.history.generations()
            known = f"{len(kept)} are, from {kept[0]} to {kept[-1]}" if kept else "there is none yet"
            raise NotFound(f"no file of generation {generation} is kept; {known}", hint="mlxctl config history")
        return self._pipeline.read_version(Content(data), f"history/{generation}.toml")

    async def commit(self, edits: Edits, terms: Terms) -> CommitResult:
        """Change the settings and their file, all edits or none.

        A caller that is cancelled while it waits for its turn changes nothing; later the commit goes on without it.

        Args:
            edits: in order; or a function that makes them of the settings, when it is this commit's turn: of the
                file's, when they go into the file.
            terms: how.

        Raises:
            UnknownSetting, InvalidValue: an edit is at fault.
            InsufficientCapacity: or whatever else a participant refuses it with.
            FileInvalid: a person has edited the file, and it is not valid now; it is never overwritten.
            Conflict: `if_gen` is not the generation.
            CommitFailed: the file could not be written.
        """

        def make() -> Draft:
            listed = self._list_edits(edits, persist=terms.persist)
            if not terms.persist:
                return partial(draft.lay_over, self.state, listed, self.machine)
            has_file = self._disk.file.signature() is not None
            return partial(draft.save, self.state, listed, self.machine, has_file=has_file)

        await self._lock.acquire()
        return await self._finish(self._pipeline.commit(make, terms, lambda _: False))

    async def replace(
        self,
        text: str,
        terms: Terms,
        *,
        name: str | None = None,
        base: str | None = None,
        over_invalid: bool = False,
    ) -> CommitResult:
        """Take *text* for the whole file.

        Args:
            text: TOML.
            terms: how.
            name: what errors call the text.
            base: digest of the file that *text* was made of; another one on the disk is a conflict.
            over_invalid: replace also a file that is not valid now; it is kept in the history folder.

        Raises:
            FileInvalid: the text is not valid, or the file is not, and it may not be replaced.
            Conflict, CommitFailed, InsufficientCapacity: as for a commit.
        """
        name = _TEXT if name is None else name
        version = await asyncio.to_thread(self._pipeline.read_version, Content(text.encode()), name)
        return await self._replace(version, terms, base=base, over_invalid=over_invalid)

    async def rollback(self, generation: int, terms: Terms) -> CommitResult:
        """Take the file of an earlier generation, as a commit of its own; a file that is not valid now is kept aside.

        Raises:
            NotFound: that file is not kept.
            SettingsError: as `replace`.
        """
        version = await self.version_of(generation)
        terms = dataclasses.replace(terms, source=f"rollback {generation}")
        return await self._replace(version, terms, base=None, over_invalid=True)

    async def _replace(self, version: Version, terms: Terms, *, base: str | None, over_invalid: bool) -> CommitResult:
        def make() -> Draft:
            rejected = self._pipeline.rejected
            if base not in {None, self._pipeline.digest if rejected is None else rejected.digest}:
                raise Conflict(f"{self.path.name} was changed since it was read", data={"gen": self.generation})
            blend = draft.replace if terms.persist else draft.lay_file_over
            return partial(blend, self.state, version, self.machine)

        def may_replace(rejected: Content) -> bool:
            return terms.persist and (over_invalid or rejected.digest == base)

        await self._lock.acquire()
        return await self._finish(self._pipeline.commit(make, terms, may_replace))

    async def reload(self, terms: Terms) -> CommitResult:
        """Take up the file as it is now.

        Raises:
            FileInvalid: the settings in force stay, and `problem` says why.
            Conflict: `if_gen` is not the generation, or the file is being written.
        """
        await self._lock.acquire()
        return await self._finish(self._pipeline.reload(terms))

    async def watch(self, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Apply edits by hand, for ever."""
        while True:
            await sleep(POLL_S)
            await self.poll()

    async def poll(self) -> None:
        """Look at the file once; a changed one is read when two looks in a row see the same: the editor is done."""
        if self._pipeline.watch.is_due():
            await self.follow()

    async def follow(self) -> None:
        """Apply the file as it is now; whatever is wrong with it becomes `problem`, and the next edit is applied."""
        try:
            await self.reload(Terms("file"))
        except FileInvalid:
            pass  # the listeners have been told
        except Conflict:  # it is still being written
            self._pipeline.watch.forget()
        except Exception as error:  # noqa: BLE001  (a mistake of ours must not end the following of the file)
            _log.exception("%s cannot be applied", self.path)
            self._pipeline.report(error)

    async def _finish(self, work: Coroutine[Any, Any, CommitResult]) -> CommitResult:
        """Run *work*, which owns the lock now, to its end, whatever becomes of the caller."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._on_finished)
        return await asyncio.shield(task)

    def _on_finished(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._lock.release()
        if not task.cancelled() and task.exception() is not None:
            _log.debug("commit ended with %r", task.exception())

    def _list_edits(self, edits: Edits, *, persist: bool) -> Sequence[Edit]:
        """Return the edits; those of the file are made of what the file says: no runtime-only value gets there."""
        if not callable(edits):
            return edits
        try:
            return edits(self.state.version.settings if persist else self.current)
        except NotFound as error:
            if persist and self.state.overlay:
                edits(self.current)  # raises when it is not runtime-only either
                error.hint = "it is runtime-only: the same with --runtime-only"
            raise
