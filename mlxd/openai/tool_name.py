"""Tools as clients know them, by kind, namespace and name, and the one name by which the model knows each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

_MAX_CHARACTERS = 128  # as many as the name of a function may have
_DEFAULT = "functions"  # the namespace of what is in none: Codex sends it, and knows calls of it by their names alone
_OTHER = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class Callee:
    """A tool as a client knows it.

    Attributes:
        kind: function, custom (its input is one text), shell or apply_patch; the client runs each.
        name: unique in its namespace.
        namespace: None outside of all.
    """

    kind: str
    name: str
    namespace: str | None = None


class ToolNames:
    """The names of the tools of one request."""

    def __init__(self, callees: Iterable[Callee] = ()) -> None:
        """Name *callees*: those outside of namespaces by their own names, which others keep clear of."""
        self._callees: dict[str, Callee] = {}
        self._names: dict[tuple[str | None, str], str] = {}
        for callee in sorted(callees, key=lambda callee: callee.namespace is not None):
            name = joined(callee.namespace, callee.name)
            number = 2
            while callee.namespace is not None and name in self._callees:
                name = f"{joined(callee.namespace, callee.name)[: _MAX_CHARACTERS - 4]}_{number}"
                number += 1
            self._callees[name] = callee
            self._names.setdefault((callee.namespace, callee.name), name)

    def name(self, namespace: str | None, name: str) -> str:
        """Return what the model calls a tool; one that this request does not offer was called so in another."""
        return self._names.get((namespace, name)) or joined(namespace, name)

    def callee(self, name: str) -> Callee:
        """Return the tool that the model calls *name*; a function of that name where nothing is known of it."""
        return self._callees.get(name) or Callee("function", name)


def named_space(namespace: str) -> str | None:
    """Return the namespace that a client means; None for that of all functions."""
    return None if namespace == _DEFAULT else namespace


def joined(namespace: str | None, name: str) -> str:
    """Return one name for a tool of a namespace, of the characters and the length that names may have."""
    if namespace is None:
        return name
    whole = f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
    fitting = _OTHER.sub("_", whole)
    if len(fitting) <= _MAX_CHARACTERS:
        return fitting
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{fitting[: _MAX_CHARACTERS - 9]}_{digest}"
