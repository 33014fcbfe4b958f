"""`SettingsStore`: the sole owner of the settings. One truth, the file; one way to change it, `commit`.

A commit is live and in the file, or neither. Everything that can fail is done before the rename that makes it so; the
swap of the snapshot follows in the same turn of the event loop. The store knows no owner of settings: they attach as
participants, which check, plan and apply.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from mlxd.config import document
from mlxd.config.document import Version
from mlxd.config.draft import draft
from mlxd.config.edit import is_same
from mlxd.config.file import ConfigFile, Content, StagedFile, SystemCalls
from mlxd.config.history import History
from mlxd.config.participant import CommitResult, Edits, Participant, Preparer, StoreEvent
from mlxd.protocol.errors import CommitFailed, Conflict, FileInvalid, SettingsError
from mlxd.protocol.kind import Machine
from mlxd.protocol.settings import Settings

POLL_S = 2.0
_ATTEMPTS = 3
_REMEDIES = {
    errno.ENOSPC: "free some disk space",
    errno.EDQUOT: "free some disk space",
    errno.EROFS: "the file lies on a read-only disk",
    errno.EBUSY: "the file is a mount point; mount its folder instead",
}
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
    ) -> None:
        """Read the file; a bad one leaves the defaults in force and `problem` set.

        Args:
            path: the settings file; need not exist.
            history: the folder of past versions.
            machine: what relative values are relative to.
            validate: raises SettingsError for settings that no daemon can start with (rules without a provider).
            calls: the system calls, for tests that make them fail.
        """
        self.path = path
        self.machine = machine
        self._file = ConfigFile(path, calls)
        self._history = History(history)
        self._validators = [validate] if validate is not None else []
        self._participants: dict[str, Participant] = {}
        self._preparers: dict[str, Preparer] = {}
        self._listeners: list[Callable[[StoreEvent], None]] = []
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._file.remove_leftovers()
        self.problem: FileInvalid | None = None
        self._seen = self._acted = self._file.signature()
        self._version, self._digest = self._boot()
        self.generation = self._boot_generation()

    @property
    def current(self) -> Settings:
        """The snapshot in force; replaced, never changed."""
        return self._version.settings

    @property
    def has_booted_invalid(self) -> bool:
        """Whether the file was bad from the start, so that the defaults are in force and nothing should be served."""
        return self._digest is None

    def attach(self, name: str, participant: Participant, preparer: Preparer | None = None) -> None:
        """Have *participant* follow the settings; its results stand under *name* in `CommitResult.effects`."""
        self._participants[name] = participant
        if preparer is not None:
            self._preparers[name] = preparer

    def subscribe(self, listener: Callable[[StoreEvent], None]) -> None:
        """Call *listener* after each commit and whenever the file goes bad or is mended."""
        self._listeners.append(listener)

    def as_written(self, path: tuple[str, ...]) -> tuple[Any, str]:
        """Return what stands in the file at *path* (60%, not its bytes), or the default; and `file` or `default`.

        Raises:
            UnknownSetting: there is no such setting; the message names the nearest.
        """
        document.row_of(path)
        value, is_in_file = document.written(self._version.document, path)
        return value, "file" if is_in_file else "default"

    def entries(self) -> list[tuple[str, ...]]:
        """Return the paths of all settings: the plain ones, and those of keyed tables that stand in the file."""
        return document.paths(self._version.document)

    def check_text(self, text: str | None) -> list[str]:
        """Return the warnings for a settings file, the one on disk when *text* is None.

        Raises:
            FileInvalid: with file:line:col.
        """
        version = self._read_version(self._read() if text is None else Content(text.encode()))
        return self._check(version, force=True, from_file=True)

    async def commit(
        self,
        edits: Edits,
        *,
        source: str,
        if_gen: int | None = None,
        dry_run: bool = False,
        force: bool = False,
    ) -> CommitResult:
        """Change the settings and their file, all edits or none.

        A caller that is cancelled while it waits for its turn changes nothing; later the commit goes on without it.

        Args:
            edits: in order; or a function that makes them of the settings, when it is this commit's turn.
            source: who asks, for the log and the event.
            if_gen: refuse when the settings are of another generation.
            dry_run: check and plan, and change nothing.
            force: passed on to the participants' checks.

        Raises:
            UnknownSetting, InvalidValue: an edit is at fault.
            InsufficientCapacity: or whatever else a participant refuses it with.
            FileInvalid: a person has edited the file, and it is not valid now; it is never overwritten.
            Conflict: *if_gen* is not the generation.
            CommitFailed: the file could not be written.
        """
        await self._lock.acquire()
        return await self._finish(self._commit(edits, source, if_gen, dry_run=dry_run, force=force))

    async def reload(self, source: str) -> CommitResult:
        """Take up the file as it is now.

        Raises:
            FileInvalid: the settings in force stay, and `problem` says why.
        """
        await self._lock.acquire()
        return await self._finish(self._absorb(source))

    async def watch(self, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Take up edits by hand, for ever."""
        while True:
            await sleep(POLL_S)
            await self.poll()

    async def poll(self) -> None:
        """Look at the file once; a changed one is read when two looks in a row see the same: the editor is done."""
        signature = self._file.signature()
        is_settled, self._seen = signature == self._seen, signature
        if is_settled and signature != self._acted:
            self._acted = signature
            with contextlib.suppress(FileInvalid):  # the listeners have been told
                await self.reload("file")

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

    # To here the face; from here the pipeline, which runs under the lock.

    async def _commit(
        self, edits: Edits, source: str, if_gen: int | None, *, dry_run: bool, force: bool
    ) -> CommitResult:
        for _ in range(_ATTEMPTS):
            await self._absorb("file")
            if if_gen is not None and if_gen != self.generation:
                raise Conflict.of_generation(self.generation, if_gen)
            base = self._version if self._file.signature() is not None else None
            new = draft(base, edits(self.current) if callable(edits) else edits, self.machine)
            changed = document.differences(self._version.document, new.document)
            if is_same(self._version.document, new.document):
                return CommitResult(self.generation, [], [], {}, dry_run)
            warnings = self._check(new, force=force)
            self._validate(new.settings)
            if dry_run:
                plans = {name: part.plan(self.current, new.settings) for name, part in self._participants.items()}
                return CommitResult(self.generation, changed, warnings, plans, dry_run)
            effects = await self._write(new)
            if effects is not None:
                return await self._settle(source, changed, warnings, effects)
        raise Conflict(f"{self.path.name} was edited by hand again and again meanwhile", hint="try again")

    async def _absorb(self, source: str) -> CommitResult:
        """Commit what a person has written into the file since, as a generation of its own."""
        try:
            content = self._read()
            if content.digest == self._digest:
                self._set_problem(None)
                return CommitResult(self.generation, [], [], {})
            new = self._read_version(content)
            # By hand means by force, as at a start: there is nobody to answer, and the file is the truth already.
            warnings = self._check(new, force=True, from_file=True)
        except FileInvalid as error:
            self._set_problem(error)
            raise
        changed = document.differences(self._version.document, new.document)
        effects = self._swap(new)
        return await self._settle(source, changed, warnings, effects)

    def _read(self) -> Content:
        try:
            return self._file.read()
        except OSError as error:
            reason = error.strerror or error
            raise FileInvalid(f"{self.path} cannot be read: {reason}", hint="mlxctl config path") from None

    def _validate(self, settings: Settings) -> None:
        for validate in self._validators:
            validate(settings)

    def _read_version(self, content: Content) -> Version:
        version = document.parse(content.data or b"", self.path.name, self.machine)
        try:
            self._validate(version.settings)
        except SettingsError as error:
            raise document.blame(error, version.text, self.path.name) from None
        return version

    def _check(self, new: Version, *, force: bool, from_file: bool = False) -> list[str]:
        try:
            return [line for part in self._participants.values() for line in part.check(new.settings, force=force)]
        except SettingsError as error:
            if from_file:
                raise document.blame(error, new.text, self.path.name) from None
            raise

    async def _write(self, new: Version) -> Mapping[str, Any] | None:
        """Put *new* into the file and into force; None when the file was edited meanwhile, and nothing was done."""
        staged: StagedFile | None = None
        prepared: list[Preparer] = []
        is_committed = False
        try:
            for preparer in self._preparers.values():
                await preparer.prepare(self.current, new.settings)
                prepared.append(preparer)
            staged = await asyncio.to_thread(self._file.stage, new.text.encode())
            # Reading and renaming are quick, and on the loop nothing comes between them and the swap.
            if self._file.read().digest == self._digest:
                staged.commit()
                is_committed = True
                return self._swap(new)
            return None
        except OSError as error:
            raise CommitFailed(
                f"{self.path} could not be written: {error.strerror or error}; nothing was changed",
                hint=_REMEDIES.get(error.errno or 0, f"check owner and mode of {self._file.target.parent}"),
            ) from None
        finally:
            if not is_committed:
                for preparer in prepared:
                    preparer.abandon()
                if staged is not None:
                    await asyncio.to_thread(staged.discard)

    def _swap(self, new: Version) -> Mapping[str, Any]:
        """Put *new* into force, in one turn of the loop."""
        old = self.current
        self._version = new
        self._digest = Content(new.text.encode()).digest
        self._acted = self._file.signature()
        self.generation += 1
        self.problem = None
        return {name: part.apply(old, new.settings) for name, part in self._participants.items()}

    async def _settle(
        self, source: str, changed: list[dict[str, Any]], warnings: list[str], effects: Mapping[str, Any]
    ) -> CommitResult:
        """Tell the listeners, and have the change on the disk for good; what fails now leaves it live."""
        data = {"gen": self.generation, "source": source, "changed": changed, "warnings": warnings}
        self._tell(StoreEvent("config.changed", data))
        late = await asyncio.to_thread(self._make_durable, self.generation, self._version.text.encode())
        return CommitResult(self.generation, changed, [*warnings, *late], effects)

    def _make_durable(self, generation: int, data: bytes) -> list[str]:
        warnings = []
        try:
            self._file.sync_folder()
        except OSError as error:
            warnings.append(f"not_durable: {error.strerror or error}")
        try:
            self._history.keep(generation, data)
        except OSError as error:
            warnings.append(f"no_history: {error.strerror or error}")
        return warnings

    def _set_problem(self, problem: FileInvalid | None) -> None:
        was, self.problem = self.problem, problem
        if problem is not None and (was is None or was.message != problem.message):
            self._tell(StoreEvent("config.file_invalid", {"msg": problem.message}))
        elif problem is None and was is not None:
            self._tell(StoreEvent("config.file_mended", {}))

    def _tell(self, event: StoreEvent) -> None:
        for listener in self._listeners:
            listener(event)

    def _boot(self) -> tuple[Version, str | None]:
        """Return the file's version and digest, or the defaults and None."""
        try:
            content = self._read()
            return self._read_version(content), content.digest
        except FileInvalid as error:
            self.problem = error
            return document.parse(b"", self.path.name, self.machine), None

    def _boot_generation(self) -> int:
        """Return the generation to go on from: a file that is not the last version kept was edited while nobody ran."""
        kept = self._history.generations()
        last = kept[-1] if kept else 0
        data = self._version.text.encode()
        if self._digest is None or (not kept and not data) or (kept and self._history.read(last) == data):
            return last
        try:
            self._history.keep(last + 1, data)
        except OSError as error:
            _log.warning("no history of the settings: %s", error)
        return last + 1
