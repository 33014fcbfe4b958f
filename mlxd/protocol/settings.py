"""THE settings table: one row per setting; group = TOML table = owner.

Everything that knows a setting derives it from here: reading the file, `config get/set/list`, the `set-*` verbs and
their help, the commented default file, the README table. A frozen `Settings` is a snapshot; it is changed by
`SettingsStore.commit` only.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mlxd.protocol.kind import (
    URL,
    Boolean,
    Bytes,
    Choice,
    Duration,
    Integer,
    Kind,
    Machine,
    Memory,
    SecretReference,
    Text,
    TextList,
)

_BARE_PART = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED_PART = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r'["\\]')


@dataclass(frozen=True, slots=True)
class Row:
    """What the table says of one setting.

    Attributes:
        kind: parses and formats the value, and knows its bounds.
        default: the value as it would stand in the file; None where the setting may be left out and means "none".
        help: one sentence for `--help`, the default file and the README.
        live: True when a change applies at once; False when it needs a restart.
        verb: True for the live scalars of `pool`, which have a `pool set-*` verb.
    """

    kind: Kind[Any]
    default: Any
    help: str
    live: bool = True
    verb: bool = False


def _row(kind: Kind[Any], default: Any, help_text: str, *, live: bool = True, verb: bool = False) -> Any:
    """Return a dataclass field that carries its row. Fields have no dataclass default: `decode` fills every one."""
    return field(metadata={"row": Row(kind, default, help_text, live, verb)})


def _group(group: type) -> Any:
    return field(metadata={"group": group})


def _keyed(entry: type) -> Any:
    return field(metadata={"keyed": entry})


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """[daemon]."""

    log_level: str = _row(Choice("debug", "info", "warning", "error"), "info", "Least severe log line that is written.")
    drain_timeout: float = _row(
        Duration(minimum_s=0, maximum_s=50),
        "45s",
        "How long a shutdown waits for running requests before it cancels them.",
    )


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """[http]."""

    host: str = _row(
        Choice("127.0.0.1", "::1", "localhost"), "127.0.0.1", "Loopback address that the HTTP server listens on."
    )
    port: int = _row(Integer(0, 65535), 6593, "TCP port of the HTTP server; 0 takes a free one.")
    allowed_hosts: tuple[str, ...] = _row(
        TextList(), [], "Host names accepted in the Host header, besides localhost and loopback addresses."
    )
    allowed_origins: tuple[str, ...] = _row(
        TextList(), [], "Exact web origins that may call the server from a browser."
    )
    max_body: int = _row(Bytes(1024, 2**30), "32MiB", "Largest request body.")
    unknown_fields: str = _row(
        Choice("ignore", "reject"),
        "ignore",
        "A body field that OpenAI does not define: ignored and named in a header, or refused.",
    )
    keepalive: float = _row(
        Duration(minimum_s=1, maximum_s=60), "10s", "Longest silence in a stream before an SSE comment keeps it alive."
    )


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """[pool]."""

    memory: int = _row(
        Memory(),
        "auto",
        "Limit on all that models make resident: a size, a percentage of usable memory, or auto.",
        verb=True,
    )
    max_models: int | None = _row(
        Integer(1, 1000, none="none"), "none", "Most models loaded at once, or none.", verb=True
    )
    preload: tuple[str, ...] = _row(TextList(), [], "Models to keep loaded, in this order.")
    keep_alive: float = _row(  # math.inf is "never"
        Duration(minimum_s=0, maximum_s=30 * 86400, none="never"),
        "30m",
        "How long an idle model stays loaded; 0s unloads at once, never keeps it.",
        verb=True,
    )
    policy: str = _row(
        Choice("lru", "lfu"), "lru", "Which idle model is evicted first: least recently or least often used.", verb=True
    )
    evict_patience: float = _row(
        Duration(minimum_s=0, maximum_s=3600),
        "30s",
        "How long a request waits behind busy models before one is drained for it.",
        verb=True,
    )
    drain_timeout: float = _row(
        Duration(minimum_s=0, maximum_s=3600),
        "60s",
        "How long --wait waits for a draining model before it reports that it is still busy.",
        verb=True,
    )
    load_timeout: float = _row(
        Duration(minimum_s=1, maximum_s=86400), "10m", "How long a request waits for its model to load.", verb=True
    )


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """[queue]."""

    size: int = _row(
        Integer(0, 100_000), 256, "Most requests that wait, over all models; 0 refuses what cannot start at once."
    )
    per_model: int = _row(Integer(0, 100_000), 64, "Most requests that wait for one model.")
    timeout: float = _row(
        Duration(minimum_s=0.001, maximum_s=86400), "120s", "Longest wait for a place before 503 queue_timeout."
    )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """[engine]."""

    max_sequences: int = _row(Integer(1, 256), 32, "Most sequences that one model decodes at once.")
    prefill_step: int | None = _row(  # None is "auto"
        Integer(16, 16384, none="auto"),
        "auto",
        "Most prompt tokens processed in one step; auto takes what suits the device (2048 on Metal, 256 on a CPU).",
    )
    target_gap: float = _row(
        Duration(minimum_s=0.001, maximum_s=10),
        "30ms",
        "Longest pause that a prefill aims to put between two tokens of running streams.",
    )
    prompt_cache: int = _row(Bytes(0, 2**50), "1GiB", "Largest prompt cache of one model; 0B keeps none.")


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """[catalog]."""

    paths: tuple[str, ...] = _row(
        TextList(),
        ["models", "~/.cache/huggingface/hub"],
        "Folders searched for models; a relative one lies in MLXD_HOME.",
    )


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """[models."ID"]."""

    pin: bool = _row(Boolean(), default=False, help_text="Never evicted and never unloaded when idle.")
    keep_alive: float | None = _row(  # None inherits
        Duration(minimum_s=0, maximum_s=30 * 86400, none="never", inherit=True),
        "inherit",
        "Idle expiry of this model; inherit takes pool.keep_alive.",
    )


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """[cloud.providers.ID]."""

    kind: str = _row(Choice("openai"), "openai", "Wire protocol that the upstream speaks.")
    base_url: str = _row(URL(), None, "The upstream's address up to and including /v1.")
    auth: Mapping[str, str] | None = _row(
        SecretReference(), None, 'Where the key is: { env = "NAME" }; left out for a server without one.'
    )


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """[cloud.rules.ID]."""

    match: str = _row(
        Text(1, 512), None, "exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN; a bare name is exact."
    )
    mode: str = _row(
        Choice("always", "never"), "always", "always sends matching names to the cloud, never keeps them local."
    )
    to: tuple[str, ...] = _row(TextList(), [], "Targets as PROVIDER/MODEL; exactly one for always, none for never.")
    priority: int = _row(Integer(-1_000_000, 1_000_000), 100, "Higher goes first.")


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """[cloud]."""

    enabled: bool = _row(Boolean(), default=False, help_text="Whether rules may send requests to providers.")
    providers: Mapping[str, ProviderSettings] = _keyed(ProviderSettings)
    rules: Mapping[str, RuleSettings] = _keyed(RuleSettings)


@dataclass(frozen=True, slots=True)
class Settings:
    """A snapshot of all settings."""

    daemon: DaemonSettings = _group(DaemonSettings)
    http: HttpSettings = _group(HttpSettings)
    pool: PoolSettings = _group(PoolSettings)
    queue: QueueSettings = _group(QueueSettings)
    engine: EngineSettings = _group(EngineSettings)
    catalog: CatalogSettings = _group(CatalogSettings)
    models: Mapping[str, ModelSettings] = _keyed(ModelSettings)
    cloud: CloudSettings = _group(CloudSettings)


class SettingProblem(Exception):
    """A value in a document that cannot be used: where (`path`) and why."""

    def __init__(self, path: tuple[str, ...], reason: str) -> None:
        """Say `pool.memory: reason`."""
        super().__init__(f"{format_path(path)}: {reason}")
        self.path = path
        self.reason = reason


def format_path(path: tuple[str, ...]) -> str:
    """Return the path as a key that `parse_path` reads back: `models."org/name".pin`."""
    return ".".join(part if _BARE_PART.fullmatch(part) else '"' + _ESCAPED.sub(r"\\\g<0>", part) + '"' for part in path)


def parse_path(key: str) -> tuple[str, ...]:
    r"""Split a dotted key; a part may stand in double quotes, with `\"` for a quote in it.

    Raises:
        ValueError: an empty part or an open quote.
    """
    parts: list[str] = []
    rest = key
    while True:
        if rest.startswith('"'):
            match = _QUOTED_PART.match(rest)
            if match is None:
                msg = f"{key!r} has an open quote"
                raise ValueError(msg)
            part = re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL)
            dot, rest = rest[match.end() : match.end() + 1], rest[match.end() + 1 :]
        else:
            part, dot, rest = rest.partition(".")
        if not part or (dot and dot != "."):
            msg = f"{key!r} is not a dotted key"
            raise ValueError(msg)
        parts.append(part)
        if not dot:
            return tuple(parts)


def rows(table: type = Settings, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Row]]:
    """Yield (path, row) of every setting in order; a keyed table's entry stands under the part `*`."""
    for item in dataclasses.fields(table):
        path = (*prefix, item.name)
        if "row" in item.metadata:
            yield path, item.metadata["row"]
        elif "group" in item.metadata:
            yield from rows(item.metadata["group"], path)
        else:
            yield from rows(item.metadata["keyed"], (*path, "*"))


def find_row(path: tuple[str, ...]) -> Row | None:
    """Return the row of *path*, where a keyed table's id matches `*`; None when there is none."""
    for candidate, row in rows():
        if len(candidate) == len(path) and all(want in {"*", got} for want, got in zip(candidate, path, strict=True)):
            return row
    return None


def lookup(settings: Settings, path: tuple[str, ...]) -> Any:
    """Return the typed value at *path* of a snapshot.

    Raises:
        KeyError: no such key in a keyed table.
        AttributeError: no such setting.
    """
    value: Any = settings
    for part in path:
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def decode(document: Mapping[str, Any], machine: Machine) -> Settings:
    """Return the snapshot that a parsed TOML document stands for; what it leaves out has its default.

    Raises:
        SettingProblem: the first unknown key or unusable value, with its path.
    """
    settings: Settings = _decode(Settings, document, (), machine)
    return settings


def _decode(table: type, document: Any, path: tuple[str, ...], machine: Machine) -> Any:
    if not isinstance(document, Mapping):
        raise SettingProblem(path, "it must be a table")
    known = {item.name for item in dataclasses.fields(table)}
    for name in document:
        if name not in known:
            raise SettingProblem((*path, name), "there is no such setting")
    values = {}
    for item in dataclasses.fields(table):
        here = (*path, item.name)
        if "row" in item.metadata:
            values[item.name] = _decode_row(item.metadata["row"], document, here, machine)
        elif "group" in item.metadata:
            values[item.name] = _decode(item.metadata["group"], document.get(item.name, {}), here, machine)
        else:
            entries = document.get(item.name, {})
            if not isinstance(entries, Mapping):
                raise SettingProblem(here, "it must be a table")
            decoded = {
                key: _decode(item.metadata["keyed"], entry, (*here, key), machine) for key, entry in entries.items()
            }
            values[item.name] = MappingProxyType(decoded)
    return table(**values)


def _decode_row(row: Row, document: Mapping[str, Any], path: tuple[str, ...], machine: Machine) -> Any:
    value = document.get(path[-1], row.default)
    if value is None and path[-1] not in document and not _may_be_left_out(row):
        raise SettingProblem(path, f"it is missing; it must be {row.kind.describe()}")
    try:
        return row.kind.parse(value, machine)
    except ValueError as error:
        raise SettingProblem(path, str(error)) from None


def _may_be_left_out(row: Row) -> bool:
    return isinstance(row.kind, SecretReference)
