"""THE settings table: one row per setting; group = TOML table = owner.

Everything that knows a setting derives it from here (`table.py` reads it): reading the file, `config get/set/list`, the
`set-*` verbs and their help, the commented default file, the README table. A frozen `Settings` is a snapshot; it is
changed by `SettingsStore.commit` only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxd.protocol.kind import (
    URL,
    Boolean,
    Bytes,
    Choice,
    Duration,
    Host,
    Integer,
    Memory,
    Number,
    SecretReference,
    Text,
    TextList,
)
from mlxd.protocol.noise import RULE_NAMES
from mlxd.protocol.row import group, keyed, row
from mlxd.protocol.trigger import DEFAULT_TRIGGERS, TRIGGERS

# Of the settings file. Its text travels in one control request, which may have twice that.
MAX_FILE_BYTES = 2**19
INHERIT = "inherit"
MOST_TOKENS = 2**31 - 1
# The rows of `[models."ID"]` that are default sampling params, by the names that requests have for them.
SAMPLING_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "xtc_probability",
    "xtc_threshold",
)


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """[daemon]."""

    log_level: str = row(Choice("debug", "info", "warning", "error"), "info", "Least severe log line that is written.")
    drain_timeout: float = row(
        Duration(minimum_s=0, maximum_s=50),
        "45s",
        "How long a shutdown waits for running requests before it cancels them.",
    )


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """[http]."""

    host: str = row(
        Host(),
        "127.0.0.1",
        "Address that the HTTP server listens on; one that is not loopback needs an API key, or http.allow_open.",
    )
    port: int = row(Integer(0, 65535), 6593, "TCP port of the HTTP server; 0 takes a free one.")
    allow_open: bool = row(
        Boolean(),
        False,  # noqa: FBT003
        "Listen beyond loopback without any API key: whoever reaches the port may use the models.",
    )
    allowed_hosts: tuple[str, ...] = row(
        TextList(), [], "Host names accepted in the Host header, besides localhost and the addresses listened on."
    )
    allowed_origins: tuple[str, ...] = row(TextList(), [], "Exact web origins that may call the server from a browser.")
    max_body: int = row(Bytes(1024, 2**30), "20MiB", "Largest request body.")
    bodies_memory: int = row(
        Bytes(1024, 2**36),
        "128MiB",
        "Most memory that all request bodies over 256 KiB take together; a further one waits, up to http.body_timeout.",
    )
    max_messages: int = row(
        Integer(1, 1_000_000),
        10_000,
        "Most messages of one request; it may hold 16 JSON members and objects for each, and 100000 besides.",
    )
    max_connections: int = row(
        Integer(1, 100_000), 1024, "Most connections at a time; a further one is answered 503 and closed."
    )
    header_timeout: float = row(
        Duration(minimum_s=0.1, maximum_s=300),
        "15s",
        "Longest time that the headers of a request may take to come.",
    )
    body_timeout: float = row(
        Duration(minimum_s=0.1, maximum_s=3600), "60s", "Longest time that a request's body may take to come."
    )
    unknown_fields: str = row(
        Choice("ignore", "reject"),
        "ignore",
        "What of a body the server does without, as unknown fields, hosted tools and hints: ignored and named in a"
        " header, or refused.",
    )
    media: str = row(
        Choice("note", "reject"),
        "note",
        "An image, sound or file for a model that reads text only: replaced by a note, or refused.",
    )
    noise_rules_off: tuple[str, ...] = row(
        TextList(choices=RULE_NAMES), [], "Noise rules that are off: what they remove from prompts stays in."
    )
    keepalive: float = row(
        Duration(minimum_s=1, maximum_s=60),
        "10s",
        "Longest silence in a stream before an event, or an SSE comment, keeps it alive.",
    )
    stored_responses: int = row(
        Integer(0, 100_000), 1000, "Most responses of /v1/responses kept in memory to go on from; 0 keeps none."
    )
    stored_responses_memory: int = row(
        Bytes(0, 2**36), "64MiB", "Most memory that kept responses take; the least recently used go first."
    )

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can reach the HTTP server."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """[pool]."""

    memory: int = row(
        Memory(),
        "auto",
        "Limit on all that models make resident: a size, a percentage of usable memory, or auto.",
        verb=True,
    )
    max_models: int | None = row(
        Integer(1, 1000, none="none"), "none", "Most models loaded at once, or none.", verb=True
    )
    preload: tuple[str, ...] = row(TextList(), [], "Models to keep loaded, in this order.")
    keep_alive: float = row(  # math.inf is "never"
        Duration(minimum_s=0, maximum_s=30 * 86400, none="never"),
        "30m",
        "How long an idle model stays loaded; 0s unloads at once, never keeps it.",
        verb=True,
    )
    policy: str = row(
        Choice("lru", "lfu"),
        "lru",
        "Which idle model is evicted first: least recently used (lru) or least often used (lfu)."
        " For lfu a use counts half after 6 hours, a quarter after 12, and so on.",
        verb=True,
    )
    evict_patience: float = row(
        Duration(minimum_s=0, maximum_s=3600),
        "30s",
        "How long a request waits behind busy models before younger ones pause for it, or a model drains.",
        verb=True,
    )
    drain_timeout: float = row(
        Duration(minimum_s=0, maximum_s=3600),
        "60s",
        "How long --wait waits for a draining model before it reports that it is still busy.",
        verb=True,
    )
    load_timeout: float = row(
        Duration(minimum_s=1, maximum_s=86400), "10m", "How long a request waits for its model to load.", verb=True
    )


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """[queue]."""

    size: int = row(
        Integer(0, 100_000), 256, "Most requests that wait, over all models; 0 refuses what cannot start at once."
    )
    per_model: int = row(Integer(0, 100_000), 64, "Most requests that wait for one model.")
    timeout: float = row(
        Duration(minimum_s=0.001, maximum_s=86400), "120s", "Longest wait for a place before 503 queue_timeout."
    )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """[engine]."""

    max_sequences: int = row(Integer(1, 256), 32, "Most sequences that one model decodes at once.")
    prefill_step: int | None = row(  # None is "auto"
        Integer(16, 16384, none="auto"),
        "auto",
        "Most prompt tokens processed in one step; auto takes what suits the device (2048 on Metal, 256 on a CPU).",
    )
    target_gap: float = row(
        Duration(minimum_s=0.001, maximum_s=10),
        "30ms",
        "Longest pause that a prefill aims to put between two tokens of running streams.",
    )
    prompt_cache: int = row(
        Bytes(0, 2**50, most="auto"),
        "auto",
        "Largest prompt cache of one model; auto takes what is free under pool.memory, 0B keeps none.",
    )


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """[catalog]."""

    paths: tuple[str, ...] = row(
        TextList(),
        ["models", "~/.cache/huggingface/hub"],
        "Folders searched for models; a relative one lies in MLXD_HOME.",
    )


def _sampling(kind: Number | Integer, help_text: str) -> Any:
    return row(kind, INHERIT, f"{help_text} Holds where a request does not say; inherit is the API's own default.")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """[models."ID"]."""

    pin: bool = row(Boolean(), default=False, help_text="Never evicted and never unloaded when idle.")
    keep_alive: float | None = row(  # None inherits
        Duration(minimum_s=0, maximum_s=30 * 86400, none="never", inherit=True),
        "inherit",
        "Idle expiry of this model; inherit takes pool.keep_alive.",
    )
    context_length: int | None = row(  # None inherits
        Integer(1, MOST_TOKENS, none=INHERIT),
        INHERIT,
        "Most tokens of prompt and answer together: at most the model's own, or as far as its rope_scaling (YaRN) can"
        " stretch that; inherit takes the model's own.",
    )
    pooling: str = row(
        Choice(INHERIT, "mean", "first", "last"),
        INHERIT,
        "Which hidden states of a text make its vector: the mean, the first token's or the last one's; inherit takes"
        " what the folder says (1_Pooling), or else the mean, with a warning.",
    )
    aliases: tuple[str, ...] = row(TextList(), [], "Other names under which clients may ask for this model.")
    adapter: str | None = row(
        Text(1, 4096, none="none"),
        "none",
        "Folder of LoRA weights as mlx-lm trains them; ID is BASE+NAME then. A relative one lies in MLXD_HOME.",
    )
    reload: str = row(
        Choice("idle", "now", "next-load"),
        "idle",
        "When a loaded model takes up another context length, pooling, adapter or changed files: once it is idle; now,"
        " after its running requests; or when it is loaded next.",
    )
    max_tokens: int | None = row(
        Integer(1, MOST_TOKENS, none=INHERIT),
        INHERIT,
        "Most tokens of an answer, cut to the room in the context, where a request does not say.",
    )
    temperature: float | None = _sampling(Number(0, 100, none=INHERIT), "Temperature; 0 is greedy.")
    top_p: float | None = _sampling(Number(0, 1, none=INHERIT), "Nucleus sampling.")
    top_k: int | None = _sampling(Integer(0, MOST_TOKENS, none=INHERIT), "Most candidates for a token; 0 is all.")
    min_p: float | None = _sampling(Number(0, 1, none=INHERIT), "Least probability beside the likeliest token's.")
    repetition_penalty: float | None = _sampling(
        Number(0, 10, above_minimum=True, none=INHERIT), "Penalty on repeated tokens; 1 is none."
    )
    presence_penalty: float | None = _sampling(Number(-2, 2, none=INHERIT), "Penalty on tokens that have appeared.")
    frequency_penalty: float | None = _sampling(
        Number(-2, 2, none=INHERIT), "Penalty on tokens by how often they have appeared."
    )
    xtc_probability: float | None = _sampling(
        Number(0, 1, none=INHERIT), "How often the likeliest tokens are left out."
    )
    xtc_threshold: float | None = _sampling(
        Number(0, 0.5, none=INHERIT), "Probability above which tokens may be left out."
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """The default sampling params that are set, by name."""
        values = {name: getattr(self, name) for name in SAMPLING_NAMES}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class TimeoutSettings:
    """[cloud.providers.ID.timeouts]."""

    connect: float = row(Duration(minimum_s=0.01, maximum_s=300), "5s", "How long a connection may take.")
    first_token: float = row(
        Duration(minimum_s=0.01, maximum_s=3600),
        "2m",  # models think that long, and who is cut off is paid for all the same
        "Longest silence before the first content of a stream; comments, pings and empty deltas break it.",
    )
    idle: float = row(Duration(minimum_s=0.01, maximum_s=3600), "60s", "Longest silence within a stream.")
    total: float = row(Duration(minimum_s=0.01, maximum_s=86400), "15m", "How long a whole answer may take.")


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """[cloud.providers.ID]."""

    kind: str = row(Choice("openai", "anthropic"), "openai", "Wire protocol that the upstream speaks.")
    base_url: str = row(URL(), None, "The upstream's address up to and including /v1.")
    auth: Mapping[str, str] | None = row(
        SecretReference(),
        None,
        'Where the key is: { env = "NAME" }, { file = "PATH" } or { keychain = "SERVICE/NAME" }; left out for a server'
        " without one.",
    )
    proxy: str | None = row(
        URL(is_proxy=True, none="none"),
        "none",
        "HTTP proxy on the way to the upstream. The environment is not asked for one.",
    )
    timeouts: TimeoutSettings = group(TimeoutSettings)


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """[cloud.rules.ID]."""

    match: str = row(
        Text(1, 512), None, "exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN; a bare name is exact."
    )
    mode: str = row(
        Choice("always", "fallback", "never"),
        "always",
        "always sends matching names to the cloud, fallback after a local failure, never keeps them local.",
    )
    on: tuple[str, ...] = row(
        TextList(choices=TRIGGERS), list(DEFAULT_TRIGGERS), "Local failures after which a fallback rule sends."
    )
    to: tuple[str, ...] = row(
        TextList(), [], "Targets as PROVIDER/MODEL, tried in this order; at least one, but none for never."
    )
    priority: int = row(Integer(-1_000_000, 1_000_000), 100, "Higher goes first.")
    enabled: bool = row(Boolean(), default=True, help_text="Whether the rule counts.")


@dataclass(frozen=True, slots=True)
class PriceSettings:
    """[cloud.prices."PROVIDER/MODEL"]."""

    input: float = row(Number(0, 1_000_000), None, "US dollars per million tokens of prompts.")
    output: float = row(Number(0, 1_000_000), None, "US dollars per million tokens of answers.")


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """[cloud.budget]."""

    usd_per_day: float | None = row(
        Number(0, 1_000_000, none="none"),
        "none",
        "Most US dollars that a day (UTC) may cost; targets without a price are refused under it.",
    )
    requests_per_day: int | None = row(
        Integer(0, 1_000_000_000, none="none"), "none", "Most requests that a day (UTC) may send out."
    )


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """[cloud]."""

    enabled: bool = row(Boolean(), default=False, help_text="Whether rules may send requests to providers.")
    providers: Mapping[str, ProviderSettings] = keyed(ProviderSettings)
    rules: Mapping[str, RuleSettings] = keyed(RuleSettings)
    budget: BudgetSettings = group(BudgetSettings)
    prices: Mapping[str, PriceSettings] = keyed(PriceSettings)


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """[audit]."""

    enabled: bool = row(
        Boolean(), default=True, help_text="Whether ended requests and changes are kept in the request log, audit.db."
    )
    max_age: float = row(  # math.inf is "never"
        Duration(minimum_s=60, maximum_s=3650 * 86400, none="never"),
        "30d",
        "How long rows of the request log are kept; never deletes none for their age.",
    )
    max_size: int = row(
        Bytes(8 << 20, 2**50), "500MB", "Largest size of audit.db; the oldest rows go, as many as needed."
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """A snapshot of all settings."""

    daemon: DaemonSettings = group(DaemonSettings)
    http: HttpSettings = group(HttpSettings)
    pool: PoolSettings = group(PoolSettings)
    queue: QueueSettings = group(QueueSettings)
    engine: EngineSettings = group(EngineSettings)
    catalog: CatalogSettings = group(CatalogSettings)
    models: Mapping[str, ModelSettings] = keyed(ModelSettings)
    cloud: CloudSettings = group(CloudSettings)
    audit: AuditSettings = group(AuditSettings)
