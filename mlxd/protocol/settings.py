"""THE settings table: one row per setting; group = TOML table = owner.

The type of a field and its notes are the kind of the setting (`kind.py`). Everything that knows a setting derives it
from here (`table.py` reads it): reading the file, `config get/set/list`, the `set-*` verbs and their help, the
commented default file, the README table, the JSON Schema. A frozen `Settings` is a snapshot; it is changed by
`SettingsStore.commit` only.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from mlxd.protocol.address import HOST, PROXY, SECRET, URL
from mlxd.protocol.kind import DURATION, MEMORY, SIZE, Kind, OneOf, Word
from mlxd.protocol.noise import RULE_NAMES

# Of the settings file. Its text travels in one control request, which may have twice that.
MAX_FILE_BYTES = 2**19
INHERIT = "inherit"
INHERITED = Word(INHERIT, None)
NONE = Word("none", None)
NEVER = Word("never", math.inf)
MOST_TOKENS = 2**31 - 1  # their ids are 32-bit in MLX, and so are their numbers
# Sampling params, as a setting or a request may have them.
Temperature = Annotated[float, Meta(ge=0, le=100)]
Share = Annotated[float, Meta(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Meta(gt=0, le=10)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
XtcThreshold = Annotated[float, Meta(ge=0, le=0.5)]
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
# The local failures for which a `fallback` rule may send a request to the cloud; each is the code of its error.
# On unless a rule says otherwise: the machine could not answer, and the client can do nothing about it.
DEFAULT_TRIGGERS = (
    "does_not_fit", "queue_full", "queue_timeout", "load_timeout", "load_failed", "oom", "template_failed", "error"
)  # fmt: skip
# A typo must not spend money, and a prompt that is too long here may be meant to stay: these are asked for by name.
OPTIONAL_TRIGGERS = ("model_not_found", "context_length_exceeded", "first_token_timeout")
TRIGGERS = DEFAULT_TRIGGERS + OPTIONAL_TRIGGERS


@dataclass(frozen=True, slots=True)
class Row:
    """What the table says of one setting.

    Attributes:
        kind: reads the value, and knows its bounds.
        default: the value as it would stand in the file; None where the setting may be left out and means "none".
        help: one sentence for `--help`, the default file and the README.
        verb: True for the live scalars of `pool`, which have a `pool set-*` verb.
    """

    kind: Kind
    default: Any
    help: str
    verb: bool = False

    @property
    def is_required(self) -> bool:
        """Whether an entry of a keyed table must state it."""
        return self.default is None and self.kind is not SECRET


def row(default: Any, help_text: str, *, verb: bool = False) -> Any:
    """Return what stands for a field's default: its row, but for the kind, which is the field's type."""
    return partial(Row, default=default, help=help_text, verb=verb)


class DaemonSettings(Struct, frozen=True):
    """[daemon]."""

    log_level: Literal["debug", "info", "warning", "error"] = row("info", "Least severe log line that is written.")
    drain_timeout: Annotated[float, Meta(ge=0, le=50), DURATION] = row(
        "45s", "How long a shutdown waits for running requests before it cancels them."
    )


class HttpSettings(Struct, frozen=True):
    """[http]."""

    host: Annotated[str, HOST] = row(
        "127.0.0.1",
        "Address that the HTTP server listens on; one that is not loopback needs an API key, or http.allow_open.",
    )
    port: Annotated[int, Meta(ge=0, le=65535)] = row(6593, "TCP port of the HTTP server; 0 takes a free one.")
    allow_open: bool = row(
        default=False,
        help_text="Listen beyond loopback without any API key: whoever reaches the port may use the models.",
    )
    allowed_hosts: tuple[str, ...] = row(
        [], "Host names accepted in the Host header, besides localhost and the addresses listened on."
    )
    allowed_origins: tuple[str, ...] = row([], "Exact web origins that may call the server from a browser.")
    max_body: Annotated[int, Meta(ge=1024, le=2**30), SIZE] = row("20MiB", "Largest request body.")
    bodies_memory: Annotated[int, Meta(ge=1024, le=2**36), SIZE] = row(
        "128MiB",
        "Most memory that all request bodies over 256 KiB take together; a further one waits, up to http.body_timeout.",
    )
    max_messages: Annotated[int, Meta(ge=1, le=1_000_000)] = row(
        10_000, "Most messages of one request; it may hold 16 JSON members and objects for each, and 100000 besides."
    )
    max_connections: Annotated[int, Meta(ge=1, le=100_000)] = row(
        1024, "Most connections at a time; a further one is answered 503 and closed."
    )
    header_timeout: Annotated[float, Meta(ge=0.1, le=300), DURATION] = row(
        "15s", "Longest time that the headers of a request may take to come."
    )
    body_timeout: Annotated[float, Meta(ge=0.1, le=3600), DURATION] = row(
        "60s", "Longest time that a request's body may take to come."
    )
    unknown_fields: Literal["ignore", "reject"] = row(
        "ignore",
        "What of a body the server does without, as unknown fields, hosted tools and hints: ignored and named in a"
        " header, or refused.",
    )
    media: Literal["note", "reject"] = row(
        "note", "An image, sound or file for a model that reads text only: replaced by a note, or refused."
    )
    noise_rules_off: Annotated[tuple[str, ...], OneOf(RULE_NAMES)] = row(
        [], "Noise rules that are off: what they remove from prompts stays in."
    )
    keepalive: Annotated[float, Meta(ge=1, le=60), DURATION] = row(
        "10s", "Longest silence in a stream before an event, or an SSE comment, keeps it alive."
    )
    stored_responses: Annotated[int, Meta(ge=0, le=100_000)] = row(
        1000, "Most responses of /v1/responses kept in memory to go on from; 0 keeps none."
    )
    stored_responses_memory: Annotated[int, Meta(ge=0, le=2**36), SIZE] = row(
        "64MiB", "Most memory that kept responses take; the least recently used go first."
    )

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can reach the HTTP server."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


class PoolSettings(Struct, frozen=True):
    """[pool]."""

    memory: Annotated[int, MEMORY] = row(
        "auto", "Limit on all that models make resident: a size, a percentage of usable memory, or auto.", verb=True
    )
    max_models: Annotated[int | None, Meta(ge=1, le=1000), NONE] = row(
        "none", "Most models loaded at once, or none.", verb=True
    )
    preload: tuple[str, ...] = row([], "Models to keep loaded, in this order.")
    keep_alive: Annotated[float, Meta(ge=0, le=30 * 86400), DURATION, NEVER] = row(
        "30m", "How long an idle model stays loaded; 0s unloads at once, never keeps it.", verb=True
    )
    policy: Literal["lru", "lfu"] = row(
        "lru",
        "Which idle model is evicted first: least recently used (lru) or least often used (lfu)."
        " For lfu a use counts half after 6 hours, a quarter after 12, and so on.",
        verb=True,
    )
    evict_patience: Annotated[float, Meta(ge=0, le=3600), DURATION] = row(
        "30s",
        "How long a request waits behind busy models before younger ones pause for it, or a model drains.",
        verb=True,
    )
    drain_timeout: Annotated[float, Meta(ge=0, le=3600), DURATION] = row(
        "60s", "How long --wait waits for a draining model before it reports that it is still busy.", verb=True
    )
    load_timeout: Annotated[float, Meta(ge=1, le=86400), DURATION] = row(
        "10m", "How long a request waits for its model to load.", verb=True
    )


class QueueSettings(Struct, frozen=True):
    """[queue]."""

    size: Annotated[int, Meta(ge=0, le=100_000)] = row(
        256, "Most requests that wait, over all models; 0 refuses what cannot start at once."
    )
    per_model: Annotated[int, Meta(ge=0, le=100_000)] = row(64, "Most requests that wait for one model.")
    timeout: Annotated[float, Meta(ge=0.001, le=86400), DURATION] = row(
        "120s", "Longest wait for a place before 503 queue_timeout."
    )


class EngineSettings(Struct, frozen=True):
    """[engine]."""

    max_sequences: Annotated[int, Meta(ge=1, le=256)] = row(32, "Most sequences that one model decodes at once.")
    prefill_step: Annotated[int | None, Meta(ge=16, le=16384), Word("auto", None)] = row(
        "auto",
        "Most prompt tokens processed in one step; auto takes what suits the device (2048 on Metal, 256 on a CPU).",
    )
    target_gap: Annotated[float, Meta(ge=0.001, le=10), DURATION] = row(
        "30ms", "Longest pause that a prefill aims to put between two tokens of running streams."
    )
    prompt_cache: Annotated[int, Meta(ge=0, le=2**50), SIZE, Word("auto", 2**50)] = row(
        "auto", "Largest prompt cache of one model; auto takes what is free under pool.memory, 0B keeps none."
    )


class CatalogSettings(Struct, frozen=True):
    """[catalog]."""

    paths: tuple[str, ...] = row(
        ["models", "~/.cache/huggingface/hub"], "Folders searched for models; a relative one lies in MLXD_HOME."
    )


def _sampling(help_text: str) -> Any:
    return row(INHERIT, f"{help_text} Holds where a request does not say; inherit is the API's own default.")


class ModelSettings(Struct, frozen=True):
    """[models."ID"]."""

    pin: bool = row(default=False, help_text="Never evicted and never unloaded when idle.")
    keep_alive: Annotated[float | None, Meta(ge=0, le=30 * 86400), DURATION, NEVER, INHERITED] = row(
        INHERIT, "Idle expiry of this model; inherit takes pool.keep_alive."
    )
    context_length: Annotated[int | None, Meta(ge=1, le=MOST_TOKENS), INHERITED] = row(
        INHERIT,
        "Most tokens of prompt and answer together: at most the model's own, or as far as its rope_scaling (YaRN) can"
        " stretch that; inherit takes the model's own.",
    )
    pooling: Literal["inherit", "mean", "first", "last"] = row(
        INHERIT,
        "Which hidden states of a text make its vector: the mean, the first token's or the last one's; inherit takes"
        " what the folder says (1_Pooling), or else the mean, with a warning.",
    )
    aliases: tuple[str, ...] = row([], "Other names under which clients may ask for this model.")
    adapter: Annotated[str | None, Meta(min_length=1, max_length=4096), NONE] = row(
        "none", "Folder of LoRA weights as mlx-lm trains them; ID is BASE+NAME then. A relative one lies in MLXD_HOME."
    )
    reload: Literal["idle", "now", "next-load"] = row(
        "idle",
        "When a loaded model takes up another context length, pooling, adapter or changed files: once it is idle; now,"
        " after its running requests; or when it is loaded next.",
    )
    max_tokens: Annotated[int | None, Meta(ge=1, le=MOST_TOKENS), INHERITED] = row(
        INHERIT, "Most tokens of an answer, cut to the room in the context, where a request does not say."
    )
    temperature: Annotated[Temperature | None, INHERITED] = _sampling("Temperature; 0 is greedy.")
    top_p: Annotated[Share | None, INHERITED] = _sampling("Nucleus sampling.")
    top_k: Annotated[int | None, Meta(ge=0, le=MOST_TOKENS), INHERITED] = _sampling(
        "Most candidates for a token; 0 is all."
    )
    min_p: Annotated[Share | None, INHERITED] = _sampling("Least probability beside the likeliest token's.")
    repetition_penalty: Annotated[RepetitionPenalty | None, INHERITED] = _sampling(
        "Penalty on repeated tokens; 1 is none."
    )
    presence_penalty: Annotated[Penalty | None, INHERITED] = _sampling("Penalty on tokens that have appeared.")
    frequency_penalty: Annotated[Penalty | None, INHERITED] = _sampling(
        "Penalty on tokens by how often they have appeared."
    )
    xtc_probability: Annotated[Share | None, INHERITED] = _sampling("How often the likeliest tokens are left out.")
    xtc_threshold: Annotated[XtcThreshold | None, INHERITED] = _sampling(
        "Probability above which tokens may be left out."
    )

    @property
    def sampling(self) -> dict[str, Any]:
        """The default sampling params that are set, by name."""
        values = {name: getattr(self, name) for name in SAMPLING_NAMES}
        return {name: value for name, value in values.items() if value is not None}


class TimeoutSettings(Struct, frozen=True):
    """[cloud.providers.ID.timeouts]."""

    connect: Annotated[float, Meta(ge=0.01, le=300), DURATION] = row("5s", "How long a connection may take.")
    first_token: Annotated[float, Meta(ge=0.01, le=3600), DURATION] = row(
        "2m",  # models think that long, and who is cut off is paid for all the same
        "Longest silence before the first content of a stream; comments, pings and empty deltas break it.",
    )
    idle: Annotated[float, Meta(ge=0.01, le=3600), DURATION] = row("60s", "Longest silence within a stream.")
    total: Annotated[float, Meta(ge=0.01, le=86400), DURATION] = row("15m", "How long a whole answer may take.")


class ProviderSettings(Struct, frozen=True, kw_only=True):
    """[cloud.providers.ID]."""

    kind: Literal["openai", "anthropic"] = row("openai", "Wire protocol that the upstream speaks.")
    base_url: Annotated[str, URL] = row(None, "The upstream's address up to and including /v1.")
    auth: Annotated[Mapping[str, str] | None, SECRET] = row(
        None,
        'Where the key is: { env = "NAME" }, { file = "PATH" } or { keychain = "SERVICE/NAME" }; left out for a server'
        " without one.",
    )
    proxy: Annotated[str | None, PROXY] = row(
        "none", "HTTP proxy on the way to the upstream. The environment is not asked for one."
    )
    timeouts: TimeoutSettings


class RuleSettings(Struct, frozen=True):
    """[cloud.rules.ID]."""

    match: Annotated[str, Meta(min_length=1, max_length=512)] = row(
        None, "exact:NAME, prefix:TEXT, glob:PATTERN or regex:PATTERN; a bare name is exact."
    )
    mode: Literal["always", "fallback", "never"] = row(
        "always", "always sends matching names to the cloud, fallback after a local failure, never keeps them local."
    )
    on: Annotated[tuple[str, ...], OneOf(TRIGGERS)] = row(
        list(DEFAULT_TRIGGERS), "Local failures after which a fallback rule sends."
    )
    to: tuple[str, ...] = row([], "Targets as PROVIDER/MODEL, tried in this order; at least one, but none for never.")
    priority: Annotated[int, Meta(ge=-1_000_000, le=1_000_000)] = row(100, "Higher goes first.")
    enabled: bool = row(default=True, help_text="Whether the rule counts.")


class PriceSettings(Struct, frozen=True):
    """[cloud.prices."PROVIDER/MODEL"]."""

    input: Annotated[float, Meta(ge=0, le=1_000_000)] = row(None, "US dollars per million tokens of prompts.")
    output: Annotated[float, Meta(ge=0, le=1_000_000)] = row(None, "US dollars per million tokens of answers.")


class BudgetSettings(Struct, frozen=True):
    """[cloud.budget]."""

    usd_per_day: Annotated[float | None, Meta(ge=0, le=1_000_000), NONE] = row(
        "none", "Most US dollars that a day (UTC) may cost; targets without a price are refused under it."
    )
    requests_per_day: Annotated[int | None, Meta(ge=0, le=1_000_000_000), NONE] = row(
        "none", "Most requests that a day (UTC) may send out."
    )


class CloudSettings(Struct, frozen=True, kw_only=True):
    """[cloud]."""

    enabled: bool = row(default=False, help_text="Whether rules may send requests to providers.")
    providers: Mapping[str, ProviderSettings]
    rules: Mapping[str, RuleSettings]
    budget: BudgetSettings
    prices: Mapping[str, PriceSettings]


class AuditSettings(Struct, frozen=True):
    """[audit]."""

    enabled: bool = row(
        default=True, help_text="Whether ended requests and changes are kept in the request log, audit.db."
    )
    max_age: Annotated[float, Meta(ge=60, le=3650 * 86400), DURATION, NEVER] = row(
        "30d", "How long rows of the request log are kept; never deletes none for their age."
    )
    max_size: Annotated[int, Meta(ge=8 << 20, le=2**50), SIZE] = row(
        "500MB", "Largest size of audit.db; the oldest rows go, as many as needed."
    )


class Settings(Struct, frozen=True):
    """A snapshot of all settings."""

    daemon: DaemonSettings
    http: HttpSettings
    pool: PoolSettings
    queue: QueueSettings
    engine: EngineSettings
    catalog: CatalogSettings
    models: Mapping[str, ModelSettings]
    cloud: CloudSettings
    audit: AuditSettings
