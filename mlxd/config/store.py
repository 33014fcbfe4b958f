"""`SettingsStore`: the sole owner of the settings. One truth, the file; one way to change it, a commit.

A commit is live and in the file, or neither. Everything that can fail is done before the rename that makes it so; the
swap of the state follows in the same turn of the event loop. What is runtime-only takes the same way and leaves the
file out. The store knows no owner of settings: they attach to `participants`.

    0  the file on the disk: a valid edit by hand is committed first, an invalid one refuses the commit
    1  `if_gen`
    2  the next state, on a worker thread
    3  checks of the whole: what no daemon can start with, and every participant
    4  the plan; a dry run ends here
    5  everything that can fail, on the side: participants prepare, the temp file is written and synced
    6  the file is hashed again; COMMIT = rename
    7  the swap, in the same turn of the loop
    8  the folder is synced, the version kept, listeners told: what fails now is a warning

A failure in 0 to 6 leaves the old settings live and the file byte-identical.

Between the second hash and the rename lie microseconds in which an edit by hand is lost. To exchange the two files and
look at what came back (renameat2, renamex_np) would show it, but has to exchange them again, which the next edit may
meet: rejected.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from mlxd.atomic_file import Content, SystemCalls
from mlxd.clock import now_ms
from mlxd.config import document
from mlxd.config.disk import Disk
from mlxd.config.document import Version
from mlxd.config.history import Record
from mlxd.config.participant import CommitResult, Participant, Participants, StoreEvent, Terms
from mlxd.config.state import Edit, Edits, Overlay, State, next_state
from mlxd.protocol.errors import Conflict, FileInvalid, NotFound, SettingsError
from mlxd.protocol.settings import Settings

POLL_S = 2.0
_ATTEMPTS = 3
_log = logging.getLogger(__name__)


class SettingsStore:
    """The settings in force, their file, and the way between them.

    Changes are made one at a time: `commit`, `replace`, `rollback` and `reload` are for whoever holds `turn`, and are
    not cancelled once they have begun.
    """

    def __init__(
        self,
        path: Path,
        history: Path,
        usable_bytes: int,
        *,
        validate: Callable[[Settings], object] = lambda _: None,
        calls: SystemCalls | None = None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Read the file; a bad one leaves the defaults in force and `problem` set.

        Args:
            path: the settings file; need not exist.
            history: the folder of past versions.
            usable_bytes: memory that a percentage is of.
            validate: raises SettingsError for settings that no daemon can start with (rules without a provider).
            calls: the system calls, for tests that make them fail.
            pause: waits for an editor that is writing.
        """
        self.path = path
        self.usable_bytes = usable_bytes
        self.turn = asyncio.Lock()
        self.disk = Disk(path, history, usable_bytes, validate, calls, pause)
        self._validate = validate
        self.participants = Participants()
        self._listeners: list[Callable[[StoreEvent], None]] = []
        self.problem: FileInvalid | None = None  # what is wrong with the file, while something is
        # What the file holds while it is not valid, and None when it cannot be read.
        self._rejected: Content | None = None
        self.state, self._digest = self._boot()
        data = None if self._digest is None else self.state.version.text.encode()
        # The number of the settings in force; grows with each change.
        self.generation = self.disk.boot_generation(data)

    def _boot(self) -> tuple[State, str | None]:
        """Return the file's state and digest, or the defaults and None."""
        try:
            self._rejected = content = self.disk.read()
            version, digest = self.disk.parse(content), content.digest
            self._rejected = None
        except FileInvalid as error:
            self.problem = error
            version, digest = document.parse(b"", self.path.name, self.usable_bytes), None
        return State.of(version, Overlay(), self.usable_bytes), digest

    @property
    def current(self) -> Settings:
        """The snapshot in force; replaced, never changed."""
        return self.state.settings

    @property
    def has_booted_invalid(self) -> bool:
        """Whether the file was bad from the start, so that the defaults are in force and nothing should be served."""
        return self._digest is None

    def subscribe(self, listener: Callable[[StoreEvent], None]) -> None:
        """Call *listener* after each commit, and whenever the file becomes invalid or valid again."""
        self._listeners.append(listener)

    def require(self, if_gen: int | None) -> None:
        """Raise Conflict when the settings are of another generation than the caller has seen."""
        if if_gen is not None and if_gen != self.generation:
            raise Conflict.of_generation(self.generation, if_gen)

    def check_text(self, text: str | None, name: str = "the text") -> list[str]:
        """Return the warnings for a settings file, the one on disk when *text* is None; errors call the text *name*.

        By hand means by force, as at a start: nobody is there to ask.

        Raises:
            FileInvalid: with file:line:col; also when a participant refuses it all the same.
        """
        if text is None:
            name, version = self.path.name, self.disk.parse(self.disk.read())
        else:
            version = self.disk.parse(Content(text.encode()), name)
        return self._check_edited(State.of(version, Overlay(), self.usable_bytes), name)

    # Changes

    async def commit(
        self, wanted: Edits | Version, terms: Terms, *, base: str | None = None, over_invalid: bool = False
    ) -> CommitResult:
        """Change the settings and their file, all edits or none, or take another version for the whole file.

        Args:
            wanted: a version; or edits, in order; or a function that makes edits of the settings when the file is read:
                of the file's settings, when they go into the file.
            terms: how.
            base: digest of the file that a version was made of; another one on the disk is a conflict.
            over_invalid: replace also a file that is not valid now; it is kept in the history folder.

        Raises:
            UnknownSetting, InvalidValue: an edit is at fault.
            InsufficientCapacity: or whatever else a participant refuses it with.
            FileInvalid: a person has edited the file, it is not valid now, and it may not be replaced.
            Conflict: `if_gen` is not the generation.
            CommitFailed: the file could not be written.
        """
        for _ in range(_ATTEMPTS):
            try:
                await self.reload(Terms("file"))
            except FileInvalid:
                if self._rejected is None or not terms.persist:
                    raise
                if not over_invalid and self._rejected.digest != base:
                    raise
            rejected = self._rejected
            self.require(terms.if_gen)
            if base not in {None, self._digest if rejected is None else rejected.digest}:
                raise Conflict(f"{self.path.name} was changed since it was read", data={"gen": self.generation})
            listed = self._list_edits(wanted, persist=terms.persist) if callable(wanted) else wanted
            has_file = self.disk.file.signature() is not None
            new = await asyncio.to_thread(
                next_state, self.state, listed, self.usable_bytes, persist=terms.persist, has_file=has_file
            )
            changed = document.differences(self.state.document, new.document)
            is_rewritten = new.version.text != self.state.version.text or rejected is not None
            is_runtime_only = not terms.persist
            if not is_rewritten and new.overlay.is_same_as(self.state.overlay):
                return CommitResult(self.generation, [], [], {}, terms.dry_run, is_runtime_only)
            warnings = self.participants.check(self.current, new.settings, force=terms.force)
            self._validate(new.settings)
            if new.overlay:
                self._validate(new.version.settings)  # the next start has the file alone
            if terms.dry_run:
                plans = self.participants.plan(self.current, new.settings)
                return CommitResult(
                    self.generation, changed, warnings, plans, terms.dry_run, is_runtime_only, is_rewritten
                )
            before = self.state
            began = await self._put(new, rejected, warnings, is_rewritten=is_rewritten)
            if began is not None:
                return await self._settle(terms, before, changed, warnings, began, is_rewritten=is_rewritten)
        raise Conflict(f"{self.path.name} was edited by hand again and again meanwhile", hint="try again")

    async def replace(
        self, text: str, terms: Terms, *, name: str = "the text", base: str | None = None, over_invalid: bool = False
    ) -> CommitResult:
        """Take *text*, TOML that errors call *name*, for the whole file; see `commit`.

        Raises:
            FileInvalid: the text is not valid, or the file is not, and it may not be replaced.
            Conflict, CommitFailed, InsufficientCapacity: as for a commit.
        """
        version = await asyncio.to_thread(self.disk.parse, Content(text.encode()), name)
        return await self.commit(version, terms, base=base, over_invalid=over_invalid)

    async def rollback(self, generation: int, terms: Terms) -> CommitResult:
        """Take the file of an earlier generation, as a commit of its own; a file that is not valid now is kept aside.

        Raises:
            NotFound: that file is not kept.
            SettingsError: as `replace`.
        """
        version = await asyncio.to_thread(self.disk.version_of, generation)
        terms = dataclasses.replace(terms, source=f"rollback {generation}")
        return await self.commit(version, terms, over_invalid=True)

    async def reload(self, terms: Terms) -> CommitResult:
        """Commit what a person has written into the file since, as a generation of its own.

        Raises:
            FileInvalid: the settings in force stay, and `problem` says why.
            Conflict: `if_gen` is not the generation, or the file is being written.
        """
        self.require(terms.if_gen)
        self._rejected = None
        try:
            content = await self.disk.read_settled(self._digest)
            if content.digest == self._digest:
                self._set_problem(None)
                return CommitResult(self.generation, [], [], {}, terms.dry_run)
            self._rejected = content
            version = await asyncio.to_thread(self.disk.parse, content)
            new, warnings = self._lay_under(version)
            self._rejected = None
            if content.data is None:
                warnings.append(self.disk.describe_deletion())
        except FileInvalid as error:
            self.disk.name_way_back(error)
            self._set_problem(error)
            raise
        changed = document.differences(self.state.document, new.document)
        if terms.dry_run:
            plans = self.participants.plan(self.current, new.settings)
            return CommitResult(self.generation, changed, warnings, plans, terms.dry_run, is_rewritten=True)
        before = self.state
        began = self._swap(new, content.digest)
        return await self._settle(terms, before, changed, warnings, began, is_rewritten=True)

    async def watch(self, sleep: Callable[[float], Awaitable[object]] = asyncio.sleep) -> None:
        """Apply edits by hand until cancelled."""
        while True:
            await sleep(POLL_S)
            await self.poll()

    async def poll(self) -> None:
        """Look at the file once; a changed one is read when two looks in a row see the same: the editor is done."""
        if self.disk.is_due():
            await self.follow()

    async def follow(self) -> None:
        """Apply the file as it is now; whatever is wrong with it becomes `problem`, and the next edit is applied."""
        async with self.turn:
            try:
                await self.reload(Terms("file"))
            except FileInvalid:
                pass  # the listeners have been told
            except Conflict:  # it is still being written
                self.disk.forget()
            except Exception as error:  # noqa: BLE001  (a mistake of ours must not end the following of the file)
                _log.exception("%s cannot be applied", self.path)
                self._set_problem(
                    FileInvalid(
                        f"{self.path.name} cannot be applied: this failed inside of mlxd ({type(error).__name__}), and"
                        " its log has the details",
                        hint="mlxctl logs --level error\nmlxctl config reload",
                    )
                )

    # The steps of a commit

    def _list_edits(self, make: Callable[[Settings], Sequence[Edit]], *, persist: bool) -> Sequence[Edit]:
        """Return the edits; those of the file are made of what the file says: no runtime-only value gets there."""
        try:
            return make(self.state.version.settings if persist else self.current)
        except NotFound as error:
            if persist and self.state.overlay:
                make(self.current)  # raises when it is not runtime-only either
                error.hint = "it is runtime-only: the same with --runtime-only"
            raise

    def _lay_under(self, version: Version) -> tuple[State, list[str]]:
        """Return the state with *version* under the overlay, without what of that no longer fits, and warnings."""
        overlay, lost = self.state.overlay, list[str]()
        while overlay:
            try:
                state = State.of(version, overlay, self.usable_bytes)
                self._validate(state.settings)
                return state, [*self.participants.check(self.current, state.settings, force=True), *lost]
            except SettingsError as error:
                path = document.path_of(error)
                kept = overlay.without(document.entry_of(path) or path)
                kept = Overlay() if kept.is_same_as(overlay) else kept
                gone = [key for key in overlay.keys() if key not in kept.keys()]  # noqa: SIM118  (not a mapping)
                lost.append(f"no longer runtime-only, as the file does not go with it: {', '.join(gone)}")
                overlay = kept
        state = State.of(version, overlay, self.usable_bytes)
        return state, [*self._check_edited(state, self.path.name), *lost]

    def _check_edited(self, state: State, name: str) -> list[str]:
        try:
            return self.participants.check(self.current, state.settings, force=True)
        except SettingsError as error:
            raise document.blame(error, state.version.text, name) from None

    async def _put(
        self, new: State, rejected: Content | None, warnings: list[str], *, is_rewritten: bool
    ) -> dict[str, Any] | None:
        """Put *new* into force, and into the file; None when the file was edited meanwhile, and nothing was done."""
        expected, aside = self._digest, None
        if rejected is not None:
            expected, aside = rejected.digest, (self.generation + 1, rejected.data or b"")
        prepared: list[Participant] = []
        digest, staged, is_committed = self._digest, None, False
        try:
            await self.participants.prepare(self.current, new.settings, prepared)
            if is_rewritten:
                data = new.version.text.encode()
                digest = Content(data).digest
                staged, kept = await asyncio.to_thread(self.disk.stage, data, aside)
                # Reading and renaming are quick, and on the loop nothing comes between them and the swap.
                if not self.disk.commit(staged, expected):
                    return None
                if kept is not None:
                    warnings.append(f"the file that was not valid is kept as {kept}")
            is_committed = True
            return self._swap(new, digest)
        finally:
            if not is_committed:
                for part in prepared:
                    if part.abandon is not None:
                        part.abandon()
                if staged is not None:
                    await asyncio.to_thread(staged.discard)

    def _swap(self, new: State, digest: str | None) -> dict[str, Any]:
        """Put *new* into force in one turn of the loop; return what the participants began."""
        old, self.state, self._digest = self.current, new, digest
        self._rejected = self.problem = None
        self.disk.forget()
        self.generation += 1
        return self.participants.apply(old, new.settings)

    async def _settle(
        self,
        terms: Terms,
        before: State,
        changed: list[dict[str, Any]],
        warnings: list[str],
        effects: dict[str, Any],
        *,
        is_rewritten: bool,
    ) -> CommitResult:
        """Tell the listeners, and have the change on the disk for good; what fails now leaves it live."""
        warnings += self.participants.unapplied
        written = document.differences(before.version.document, self.state.version.document)
        keys = tuple(line["key"] for line in written)
        overlay = self.state.overlay
        hidden = [key for key in keys if overlay.covers(document.parse_key(key))] if overlay else []
        if hidden:
            warnings.append(f"in the file, and hidden by a runtime-only value: {', '.join(hidden)}")
        data = {"gen": self.generation, "source": terms.source, "changed": changed, "warnings": warnings}
        data |= {"uid": terms.uid, "pid": terms.pid}
        self._tell(StoreEvent("config.changed", {**data, "runtime_only": not is_rewritten}))
        if not is_rewritten:
            keys = tuple(line["key"] for line in changed)
        record = Record(self.generation, now_ms(), terms.source, keys, has_version=is_rewritten)
        text = self.state.version.text.encode() if is_rewritten else None
        late = await asyncio.to_thread(self.disk.make_durable, record, text)
        return CommitResult(
            self.generation,
            changed,
            [*warnings, *late],
            effects,
            is_runtime_only=not terms.persist,
            is_rewritten=is_rewritten,
        )

    def _set_problem(self, problem: FileInvalid | None) -> None:
        was, self.problem = self.problem, problem
        if problem is not None and (was is None or was.message != problem.message):
            self._tell(StoreEvent("config.file_invalid", {"msg": problem.message}))
        elif problem is None and was is not None:
            self._tell(StoreEvent("config.file_mended", {}))

    def _tell(self, event: StoreEvent) -> None:
        for listener in self._listeners:
            listener(event)
