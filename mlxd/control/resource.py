"""The verbs of resources: list, show, add, change and remove the entries of a keyed table of the settings.

A resource of whose entries there is more to say, or to check, has a subclass that says only that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from mlxd.config import Edit, Edits
from mlxd.control.context import ControlContext, Handler, Reply, Request
from mlxd.control.page import make_page, place_of_number
from mlxd.control.setting import commit, plain
from mlxd.protocol.errors import InvalidRequest, NotFound
from mlxd.protocol.resource import Resource
from mlxd.protocol.settings import Settings
from mlxd.protocol.table import lookup


class Entries:
    """The entries of one resource."""

    def __init__(self, resource: Resource) -> None:
        """Take the description."""
        self.resource = resource
        self.path = resource.path
        self.id_name = resource.id[0]
        self.command = f"mlxctl {resource.noun.replace('.', ' ')}"

    @property
    def handlers(self) -> dict[str, Handler]:
        """Operation → handler, of the verbs that the resource has."""
        verbs: dict[str, Handler] = {
            "list": self.list_all,
            "show": self.show,
            "add": self.add,
            "set": self.set_given if "add" in self.resource.verbs else self.add,
            "remove": self.remove,
            "enable": partial(self._switch, value=None),
            "disable": partial(self._switch, value=False),
        }
        return {f"{self.resource.noun}.{verb}": verbs[verb] for verb in self.resource.verbs}

    # What a subclass may say otherwise.

    def entries(self, context: ControlContext) -> Iterable[tuple[str, Any]]:
        """Return the id of each entry and the entry, in the order of a list."""
        table: Mapping[str, Any] = lookup(context.store.current, self.path)
        return table.items()

    def describe(self, context: ControlContext, entry_id: str, entry: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return what a list says of an entry."""
        fields = {name: lookup(entry, path) for name, (path, _) in self.resource.fields.items()}
        return {self.id_name: entry_id, **{name: plain(value) for name, value in fields.items()}}

    async def details(self, context: ControlContext, entry_id: str, entry: Any) -> dict[str, Any]:  # noqa: ARG002
        """Return what `show` says besides."""
        return {}

    def given(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that are given, each with the value to write; None unsets one."""
        return {name: params[name] for name in self.resource.fields if name in params}

    def new(self, current: Settings, params: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:  # noqa: ARG002
        """Return the id of the entry that `add` makes or changes, and its fields."""
        return params[self.id_name], self.given(params)

    def release(self, current: Settings, entry_id: str, params: Mapping[str, Any]) -> Sequence[Edit]:  # noqa: ARG002
        """Return what else changes when the entry goes, or refuse that it goes."""
        return ()

    async def commit(self, context: ControlContext, request: Request, edits: Edits) -> Reply:
        """Commit what a verb changes."""
        return await commit(context, request, edits)

    # The verbs.

    async def list_all(self, context: ControlContext, request: Request) -> Reply:
        """Return the entries."""
        return make_page(request.params, self.resource.lists, self.describe_all(context), place_of_number)

    def describe_all(self, context: ControlContext) -> list[dict[str, Any]]:
        """Return what a list says of every entry."""
        return [self.describe(context, entry_id, entry) for entry_id, entry in self.entries(context)]

    async def show(self, context: ControlContext, request: Request) -> Reply:
        """Return one entry."""
        entry_id = request.params[self.id_name]
        self.find(context.store.current, entry_id)
        entry = dict(self.entries(context))[entry_id]
        return {**self.describe(context, entry_id, entry), **await self.details(context, entry_id, entry)}

    async def add(self, context: ControlContext, request: Request) -> Reply:
        """Make an entry, or change the one with this id."""

        def edits(current: Settings) -> Sequence[Edit]:
            return self._edits(*self.new(current, request.params))

        return await self.commit(context, request, edits)

    async def set_given(self, context: ControlContext, request: Request) -> Reply:
        """Change what is given of an entry."""
        given = self.given(request.params)
        if not given:
            raise InvalidRequest("there is nothing to set", param=self.id_name, hint=f"{self.command} set --help")
        return await self._change(context, request, given)

    async def _switch(self, context: ControlContext, request: Request, *, value: bool | None) -> Reply:
        return await self._change(context, request, {"enabled": value})

    async def _change(self, context: ControlContext, request: Request, values: Mapping[str, Any]) -> Reply:
        def edits(current: Settings) -> Sequence[Edit]:
            self.find(current, request.params[self.id_name])
            return self._edits(request.params[self.id_name], values)

        return await self.commit(context, request, edits)

    async def remove(self, context: ControlContext, request: Request) -> Reply:
        """Remove an entry."""
        entry_id = request.params[self.id_name]

        def edits(current: Settings) -> Sequence[Edit]:
            self.find(current, entry_id)
            return [*self.release(current, entry_id, request.params), Edit((*self.path, entry_id), None)]

        return await self.commit(context, request, edits)

    def find(self, settings: Settings, entry_id: str) -> Any:
        """Return an entry of the settings.

        Raises:
            NotFound: there is none of this id.
        """
        entry = lookup(settings, self.path).get(entry_id)
        if entry is None:
            word, hint = self.resource.word, f"{self.command} list"
            raise NotFound(f"there is no {word} {entry_id!r}", hint=hint, param=self.id_name)
        return entry

    def _edits(self, entry_id: str, values: Mapping[str, Any]) -> list[Edit]:
        fields = self.resource.fields
        return [Edit((*self.path, entry_id, *fields[name][0]), value) for name, value in values.items()]
