"""The commit pipeline: from a draft to the file, the live settings and the history. `store` runs one at a time.

    0  the file on the disk: a valid edit by hand is taken up first, an invalid one refuses the commit
    1  `if_gen`
    2  the draft, on a worker thread
    3  checks of the whole: what no daemon can start with, and every owner
    4  the plan; a dry run ends here
    5  everything that can fail, on the side: owners prepare, the temp file is written and synced
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
from collections.abc import Callable, Mapping
from typing import Any

from mlxd.atomic_file import Content
from mlxd.config import document
from mlxd.config.disk import Disk, now_ms
from mlxd.config.document import Version
from mlxd.config.history import Record
from mlxd.config.overlay import Overlay, State
from mlxd.config.owners import Owners
from mlxd.config.participant import CommitResult, StoreEvent, Terms
from mlxd.config.watch import FileWatch
from mlxd.protocol.errors import Conflict, FileInvalid, SettingsError
from mlxd.protocol.kind import Machine

_ATTEMPTS = 3

Draft = Callable[[], State]  # runs on a worker thread


class Pipeline:
    """What is in force, and the one way to change it."""

    def __init__(self, disk: Disk, owners: Owners, machine: Machine) -> None:
        """Read the file; a bad one leaves the defaults in force and `problem` set."""
        self._disk = disk
        self._owners = owners
        self._machine = machine
        self._name = disk.file.path.name
        self.watch = FileWatch(disk.file)
        self.listeners: list[Callable[[StoreEvent], None]] = []
        self.problem: FileInvalid | None = None
        # What the file holds while it is not valid, and None when it cannot be read.
        self.rejected: Content | None = None
        self.state, self.digest = self._boot()
        data = None if self.digest is None else self.state.version.text.encode()
        self.generation = disk.boot_generation(data)

    def _boot(self) -> tuple[State, str | None]:
        """Return the file's state and digest, or the defaults and None."""
        try:
            self.rejected = content = self._disk.read()
            version, digest = self.read_version(content), content.digest
            self.rejected = None
        except FileInvalid as error:
            self.problem = error
            version, digest = document.parse(b"", self._name, self._machine), None
        return State.of(version, Overlay(), self._machine), digest

    def read_version(self, content: Content, name: str | None = None) -> Version:
        """Return what *content* stands for, which is the settings file unless it has another *name*.

        Raises:
            FileInvalid: no daemon can start with it.
        """
        try:
            version = document.parse(content.data or b"", name or self._name, self._machine)
            try:
                self._owners.validate(version.settings)
            except SettingsError as error:
                raise document.blame(error, version.text, name or self._name) from None
        except FileInvalid as error:
            if name is None:
                self._name_way_back(error)
            raise
        return version

    def check_version(self, version: Version, name: str) -> list[str]:
        """Return the warnings for a file called *name*. By hand means by force, as at a start: nobody is there to ask.

        Raises:
            FileInvalid: an owner refuses it all the same.
        """
        return self._check_edited(State.of(version, Overlay(), self._machine), name)

    async def commit(
        self, make: Callable[[], Draft], terms: Terms, may_replace: Callable[[Content], bool]
    ) -> CommitResult:
        """Put into force what *make* drafts; *may_replace* says of an invalid file whether it may go."""
        for _ in range(_ATTEMPTS):
            rejected = await self._take_up(may_replace)
            self._require_generation(terms)
            new = await asyncio.to_thread(make())
            changed = document.differences(self.state.document, new.document)
            is_rewritten = new.version.text != self.state.version.text or rejected is not None
            is_runtime_only = not terms.persist
            if not is_rewritten and new.overlay.is_same_as(self.state.overlay):
                return CommitResult(self.generation, [], [], {}, terms.dry_run, is_runtime_only)
            warnings = self._owners.check(new.settings, force=terms.force)
            self._owners.validate(new.settings)
            if new.overlay:
                self._owners.validate(new.version.settings)  # the next start has the file alone
            if terms.dry_run:
                plans = self._owners.plan(self.state.settings, new.settings)
                return CommitResult(
                    self.generation, changed, warnings, plans, terms.dry_run, is_runtime_only, is_rewritten
                )
            before = self.state
            effects = await self._put(new, rejected, warnings) if is_rewritten else await self._lay_over(new)
            if effects is not None:
                return await self._settle(terms, before, changed, warnings, effects, is_rewritten=is_rewritten)
        raise Conflict(f"{self._name} was edited by hand again and again meanwhile", hint="try again")

    async def reload(self, terms: Terms) -> CommitResult:
        """Take up the file as it is now, or say what that would do."""
        self._require_generation(terms)
        return await self.absorb(terms)

    async def absorb(self, terms: Terms) -> CommitResult:
        """Commit what a person has written into the file since, as a generation of its own.

        Raises:
            FileInvalid: the settings in force stay, and `problem` says why.
            Conflict: the file is being written.
        """
        self.rejected = None
        try:
            content = await self._disk.read_settled(self.digest)
            if content.digest == self.digest:
                self._set_problem(None)
                return CommitResult(self.generation, [], [], {}, terms.dry_run)
            self.rejected = content
            version = await asyncio.to_thread(self.read_version, content)
            new, warnings = self._lay_under(version)
            self.rejected = None
            if content.data is None:
                warnings.append(self._describe_deletion())
        except FileInvalid as error:
            self._name_way_back(error)
            self._set_problem(error)
            raise
        before = self.state
        changed = document.differences(before.document, new.document)
        if terms.dry_run:
            plans = self._owners.plan(before.settings, new.settings)
            return CommitResult(self.generation, changed, warnings, plans, terms.dry_run, is_rewritten=True)
        effects = self._swap(new, content.digest)
        return await self._settle(terms, before, changed, warnings, effects, is_rewritten=True)

    async def _take_up(self, may_replace: Callable[[Content], bool]) -> Content | None:
        """Take an edit by hand up; return an invalid one that may be replaced, else refuse for it."""
        try:
            await self.absorb(Terms("file"))
        except FileInvalid:
            if self.rejected is None or not may_replace(self.rejected):
                raise
        return self.rejected

    def _require_generation(self, terms: Terms) -> None:
        if terms.if_gen is not None and terms.if_gen != self.generation:
            raise Conflict.of_generation(self.generation, terms.if_gen)

    def _lay_under(self, version: Version) -> tuple[State, list[str]]:
        """Return the state with *version* under the overlay; what of the overlay does not go with it gives way."""
        overlay, lost = self.state.overlay, list[str]()
        while overlay:
            try:
                state = State.of(version, overlay, self._machine)
                self._owners.validate(state.settings)
                return state, [*self._owners.check(state.settings, force=True), *lost]
            except SettingsError as error:
                kept = overlay.without(_entry(error))
                kept = Overlay() if kept.is_same_as(overlay) else kept
                gone = [key for key in overlay.keys() if key not in kept.keys()]  # noqa: SIM118  (not a mapping)
                lost.append(f"no longer runtime-only, as the file does not go with it: {', '.join(gone)}")
                overlay = kept
        state = State.of(version, overlay, self._machine)
        return state, [*self._check_edited(state, self._name), *lost]

    def _check_edited(self, state: State, name: str) -> list[str]:
        try:
            return self._owners.check(state.settings, force=True)
        except SettingsError as error:
            raise document.blame(error, state.version.text, name) from None

    async def _put(self, new: State, rejected: Content | None, warnings: list[str]) -> Mapping[str, Any] | None:
        """Put *new* into the file and into force; None when the file was edited meanwhile, and nothing was done."""
        data = new.version.text.encode()
        expected = self.digest if rejected is None else rejected.digest
        aside = None if rejected is None else (self.generation + 1, rejected.data or b"")
        async with self._owners.prepared(self.state.settings, new.settings) as keep:
            staged = await self._disk.stage(data, expected or "", aside)
            is_committed = False
            try:
                with self._disk.in_words():
                    # Reading and renaming are quick, and on the loop nothing comes between them and the swap.
                    is_committed = staged.commit()
            finally:
                if not is_committed:
                    await asyncio.to_thread(staged.discard)
            if not is_committed:
                return None
            keep()
            if staged.kept is not None:
                warnings.append(f"the file that was not valid is kept as {staged.kept}")
            return self._swap(new, Content(data).digest)

    async def _lay_over(self, new: State) -> Mapping[str, Any]:
        """Put *new*, which has the same file, into force."""
        async with self._owners.prepared(self.state.settings, new.settings) as keep:
            keep()
            return self._swap(new, self.digest)

    def _swap(self, new: State, digest: str | None) -> Mapping[str, Any]:
        """Put *new* into force, in one turn of the loop."""
        old, self.state = self.state, new
        self.digest = digest
        self.rejected = None
        self.problem = None
        self.watch.forget()
        self.generation += 1
        return self._owners.apply(old.settings, new.settings)

    async def _settle(
        self,
        terms: Terms,
        before: State,
        changed: list[dict[str, Any]],
        warnings: list[str],
        effects: Mapping[str, Any],
        *,
        is_rewritten: bool,
    ) -> CommitResult:
        """Tell the listeners, and have the change on the disk for good; what fails now leaves it live."""
        warnings += self._owners.problems()
        written = document.differences(before.version.document, self.state.version.document)
        hidden = [line["key"] for line in written if self.state.overlay.covers(document.parse_key(line["key"]))]
        if hidden:
            warnings.append(f"in the file, and hidden by a runtime-only value: {', '.join(hidden)}")
        data = {"gen": self.generation, "source": terms.source, "changed": changed, "warnings": warnings}
        data |= {"uid": terms.uid, "pid": terms.pid}
        self._tell(StoreEvent("config.changed", {**data, "runtime_only": not is_rewritten}))
        keys = tuple(line["key"] for line in (written if is_rewritten else changed))
        record = Record(self.generation, now_ms(), terms.source, keys, has_version=is_rewritten)
        late = await self._disk.make_durable(record, self.state.version.text.encode() if is_rewritten else None)
        return CommitResult(
            self.generation,
            changed,
            [*warnings, *late],
            effects,
            is_runtime_only=not terms.persist,
            is_rewritten=is_rewritten,
        )

    def _describe_deletion(self) -> str:
        kept = self._disk.history.generations()
        way_back = f"; to have it back: mlxctl config rollback {kept[-1]}" if kept else ""
        return f"{self._name} was deleted, so the defaults are in force{way_back}"

    def _name_way_back(self, problem: FileInvalid) -> None:
        if "line" not in problem.data:
            return  # it could not even be read
        ways = ["mlxctl config edit"]
        kept = self._disk.history.generations()
        if kept:
            problem.data["rollback"] = kept[-1]
            ways.append(f"mlxctl config rollback {kept[-1]}")
        problem.hint = "\n".join(ways)

    def report(self, error: Exception) -> None:
        """Have a failure that nobody has foreseen in `problem`, until the file is read again with success."""
        kind = type(error).__name__
        self._set_problem(
            FileInvalid(
                f"{self._name} cannot be applied: this failed inside of mlxd ({kind}), and its log has the details",
                hint="mlxctl logs --level error\nmlxctl config reload",
            )
        )

    def _set_problem(self, problem: FileInvalid | None) -> None:
        was, self.problem = self.problem, problem
        if problem is not None and (was is None or was.message != problem.message):
            self._tell(StoreEvent("config.file_invalid", {"msg": problem.message}))
        elif problem is None and was is not None:
            self._tell(StoreEvent("config.file_mended", {}))

    def _tell(self, event: StoreEvent) -> None:
        for listener in self.listeners:
            listener(event)


def _entry(error: SettingsError) -> tuple[str, ...]:
    """Return the path that *error* is about: of a keyed table, the entry."""
    path = document.path_of(error)
    return document.entry_of(path) or path
