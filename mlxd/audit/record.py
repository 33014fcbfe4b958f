"""The rows of the log: a finished request, or a change of settings or of what runs. Plain data."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

_LARGEST = 2**63 - 1


class RequestStatus(Enum):
    """How a request ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"  # by its client, who left, by an operator, or by the end of the daemon
    TIMEOUT = "timeout"


class _Record:
    """What both kinds of rows have: columns that are called as their fields are."""

    __slots__ = ()
    table: ClassVar[str]
    json_columns: ClassVar[frozenset[str]]

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """Return the columns without `id`, in the order of `values`."""
        return tuple(item.name for item in dataclasses.fields(cls))  # type: ignore[arg-type]

    def values(self) -> tuple[Any, ...]:
        """Return what the columns hold."""
        return tuple(self._held(name) for name in self.columns())

    def describe(self) -> dict[str, Any]:
        """Return the row as clients see it."""
        return {name: _plain(getattr(self, name)) for name in self.columns()}

    def _held(self, name: str) -> Any:
        value = getattr(self, name)
        if name in self.json_columns:
            return None if value is None else json.dumps(value, separators=(",", ":"))
        return _plain(value)


@dataclass(frozen=True, slots=True)
class RequestRecord(_Record):
    """One request that has ended.

    Attributes:
        request: its id, as the client got it.
        started_ms: unix time.
        endpoint: path under /v1.
        route: local, cloud, or None when it came to neither.
        asked: the model as the client called it.
        model: the one that answered, or was asked last; None where the body named none.
        target: PROVIDER/MODEL that answered, or was to.
        rule: that sent it there.
        reason: the local failure after which the cloud was asked.
        attempts: {target, status, code, ms} of each try at an upstream.
        status: how it ended.
        code: of its error.
        http_status: what the client got; None for one that left before.
        prompt_tokens: of all its prompts; None where nobody counted.
        cached_tokens: of these, out of the prompt cache.
        completion_tokens: made, also by a request that was cancelled.
        ttft_ms: from its start to the first token of the answer; None where that is not known.
        duration_ms: from its start to its last byte.
        tokens_per_s: of the answer, after its first token.
        key: id of the client's API key.
        cost_micro_usd: what the upstream's answer has cost, where its target has a price.
        ignored: names of the fields, tools and parts of its body that were left out; None where there were none.
        noise_removed: pieces that noise rules have removed from its prompt, by rule; None where there was nothing.
    """

    request: str
    started_ms: int
    endpoint: str
    route: str | None = None
    asked: str | None = None
    model: str | None = None
    target: str | None = None
    rule: str | None = None
    reason: str | None = None
    attempts: tuple[Mapping[str, Any], ...] | None = None
    status: RequestStatus = RequestStatus.OK
    code: str | None = None
    http_status: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    ttft_ms: int | None = None
    duration_ms: int = 0
    tokens_per_s: float | None = None
    key: str | None = None
    cost_micro_usd: int | None = None
    noise_removed: Mapping[str, int] | None = None
    ignored: tuple[str, ...] | None = None

    table: ClassVar[str] = "requests"
    json_columns: ClassVar[frozenset[str]] = frozenset({"attempts", "noise_removed", "ignored"})


@dataclass(frozen=True, slots=True)
class ChangeRecord(_Record):
    """One change of settings or of what runs.

    Attributes:
        started_ms: when it was in force, unix time.
        operation: of the control protocol; `file` for an edit by hand.
        source: cli (over the control socket), file, or rollback.
        generation: of the settings then.
        setting: the key that changed; None where an operation changes none.
        old: as written in the file; secrets are references there.
        new: likewise.
        subject: what an operation was about: a model, a request.
        uid: of the process at the other end of the socket.
        pid: likewise.
        runtime_only: whether the file does not have it.
    """

    started_ms: int
    operation: str
    source: str
    generation: int
    setting: str | None = None
    old: Any = None
    new: Any = None
    subject: str | None = None
    uid: int | None = None
    pid: int | None = None
    runtime_only: bool = False

    table: ClassVar[str] = "changes"
    json_columns: ClassVar[frozenset[str]] = frozenset({"old", "new"})


Record = RequestRecord | ChangeRecord


def read_row(kind: type[Record], row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the table of *kind* as clients see it: `id`, and what `describe` gives."""
    shown: dict[str, Any] = {"id": row["id"]}
    for name in kind.columns():
        value = row[name]
        shown[name] = json.loads(value) if name in kind.json_columns and value is not None else value
    if kind is ChangeRecord:
        shown["runtime_only"] = bool(shown["runtime_only"])
    return shown


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [dict(item) if isinstance(item, Mapping) else _plain(item) for item in value]
    if isinstance(value, str):
        # Ids and names come from clients, and may be no UTF-8.
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-_LARGEST - 1, min(value, _LARGEST))  # an upstream may claim any number of tokens
    return value
