"""The language of event loop and device thread: plain data and two protocols, no mlx.

`Backend` loads and unloads; `Engine` is one loaded model. All methods are called on the event loop and return at once
(or are awaited); they post commands to the device thread. Events come back on the event loop, all events of one pass of
the device thread in one call, in order. Per sequence the order is: `Prefilling`*, `PromptScored` where asked for, then
`Delta`* with `KvLow` and `Paused` between them (or `Embedded`), then exactly one of `Finished` or `Failed`, after which
the device thread holds nothing of that sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from mlxd.engine.constraint import Constraint
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.tool import CallPiece, ToolUse
from mlxd.engine.vector import Embedded, EmbeddingRequest, Pooling, PreparedInputs, VectorFacts
from mlxd.protocol.errors import MlxdError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; hashable, so that samplers are cached by it. 0 is a value everywhere."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    ignore_eos: bool = False  # the answer goes on to its max_tokens: for benchmarks


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the chat template: maps with `role` and `content` (text), as the template wants them."""

    messages: tuple[Mapping[str, Any], ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: ToolUse | None = None
    reasoning_effort: str | None = None  # a word of `template_traits.EFFORTS`, or of a client's own
    continues: bool = False  # the last message is the beginning of the answer
    thinking: bool | None = None  # whether the model may think, where it can be told; goes before the effort


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt that no template touches."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt that is already tokens."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate, as the client asked for it."""

    prompt: ChatPrompt | TextPrompt | TokenPrompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None  # cut to the room that the prompt leaves; None: it all, or `default_max_tokens`
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many alternatives to report beside each token; None: no logprobs at all
    scores_prompt: bool = False  # report the logprobs of the prompt's tokens first (`PromptScored`)
    constraint: Constraint | None = None  # what the answer must be, after any thinking
    default_max_tokens: int | None = None  # nobody asked for these: they are cut to the room that the prompt leaves
    thinking_budget: int | None = None  # most tokens of thinking; a model that does not think keeps any bound


class TextKind(Enum):
    """Which part of the answer a piece of text belongs to. Text of a call is TOOL once it is known to be one."""

    CONTENT = "content"
    REASONING = "reasoning"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A rendered, tokenized and length-checked prompt, bound to no engine: it outlives a reload of its model.

    Sequences that are given the same object at about the same time share one prefill.
    """

    tokens: tuple[int, ...]
    max_tokens: int  # resolved against the context, ≥ 1
    initial_kind: TextKind = TextKind.CONTENT  # REASONING where the template ends with an open thinking tag
    is_continuation: bool = False  # the answer goes on in the prompt's own text: its leading space is part of it
    tools: ToolUse | None = None  # None: nothing in the answer is a call
    grammar: object | None = None  # the compiled constraint; only the engine that made it looks inside
    # Ascending positions 0 < k < len(tokens): a later prompt is expected to begin with tokens[:k] and then to differ.
    checkpoints: tuple[int, ...] = ()
    thinking_budget: int | None = None  # of the request, reduced as `max_tokens` was
    ignored: tuple[str, ...] = ()  # what the model cannot do, and the answer can do without: fields of the request

    @property
    def prefill_tokens(self) -> int:
        """What is processed before the first token is made."""
        return len(self.tokens)

    @property
    def final_tokens(self) -> int:
        """The greatest length that a sequence of it can reach."""
        return len(self.tokens) + self.max_tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one sequence; `cached` of the prompt's tokens came out of the prompt cache."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    written_tokens: int | None = None  # of the prompt's, those that an upstream has put into its cache
    reasoning_tokens: int = 0  # of the completion's, where an upstream has counted them; here renderers do


@dataclass(frozen=True, slots=True)
class Submit:
    """A sequence for the device thread, with the KV tokens that the pool has granted to it."""

    sequence_id: int
    prompt: PreparedPrompt
    sampling: SamplingParams
    stop: tuple[str, ...]
    kv_tokens: int  # prompt + generated tokens whose KV may exist; more only after `Engine.grant`
    logprobs: int | None = None
    scores_prompt: bool = False
    thinking_budget: int | None = None
    checkpoint_bytes: int = 0  # what may be kept of it for the prompt cache, until it ends or pauses


class FinishReason(Enum):
    """Why a sequence ended without an error."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    REFUSED = "content_filter"  # by an upstream


@dataclass(frozen=True, slots=True)
class Prefilling:
    """The prompt is being processed: *done* of *total* tokens."""

    sequence_id: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The logprobs of all tokens of the prompt; comes once, before the first `Delta`, where they were asked for."""

    sequence_id: int
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """New text. `text` may be empty when a token only fed the detokenizer's or the stop matcher's buffer."""

    sequence_id: int
    text: str
    kind: TextKind
    completion_tokens: int  # generated so far
    logprobs: tuple[TokenLogprob, ...] = ()  # of the tokens since the last delta that had any
    calls: tuple[CallPiece, ...] = ()  # of a delta of kind TOOL; it may have no text


@dataclass(frozen=True, slots=True)
class ThoughtSigned:
    """A thought of an upstream is whole: the block with the upstream's signature, for the client to send back."""

    block: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KvLow:
    """The sequence nears its grant of *kv_tokens*: answer with `grant` before it gets there, or it pauses."""

    sequence_id: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Paused:
    """The sequence has given its KV back and keeps its text; `resume` goes on where it stopped."""

    sequence_id: int
    tokens: int  # prompt + generated, what a resume must prefill


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequence ended; its KV is gone or has moved into the prompt cache."""

    sequence_id: int
    reason: FinishReason
    usage: Usage
    stop: str | None = None  # the stop string that ended it


@dataclass(frozen=True, slots=True)
class Failed:
    """The sequence ended with an error (already one of ours)."""

    sequence_id: int
    error: MlxdError


SequenceEvent = Prefilling | PromptScored | Delta | Embedded | KvLow | Paused | Finished | Failed
# What an answer to a client is made of, wherever it comes from.
AnswerEvent = Prefilling | PromptScored | Delta | ThoughtSigned | Embedded | Finished
Listener = Callable[[SequenceEvent], None]


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What to load, and the bounds that the engine works in.

    An adapter shares the weights of *base*, which the caller unloads after it.
    """

    model_id: str
    path: Path
    context_length: int | None  # at most the longest that the model can have; None takes its own
    prompt_cache_limit_bytes: int  # upper bound of this engine's prompt cache; 0 keeps none
    adapter_path: Path | None = None  # the folder of LoRA weights to put on *base*
    base: Engine | None = None  # a loaded model of the same backend, given with `adapter_path`
    is_encoder: bool = False  # it makes vectors and no text
    pooling: Pooling | None = None  # None takes what the folder says


class Decoding(Enum):
    """How the rows of a model are decoded."""

    BATCHED = "batched"  # together, prompts included
    SINGLE_PREFILL = "single prefill"  # together, but each prompt is processed by itself
    ONE_BY_ONE = "one by one"  # every row by itself


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What was measured when the model was loaded."""

    weights_bytes: int  # of an adapter: its own, without its base's
    kv: KvShape
    context_length: int
    vocab_size: int
    has_thinking: bool
    tool_format: str  # in which it calls tools: of `engine.answer`, or of mlx-lm; empty: in none
    chat_template: bool
    vectors: VectorFacts | None = None  # None: it makes none
    decoding: Decoding = Decoding.BATCHED
    decoding_reason: str = ""  # what the check at the load has seen


class Engine(Protocol):
    """One loaded model."""

    @property
    def model_id(self) -> str:
        """The id it was loaded as."""

    @property
    def facts(self) -> EngineFacts:
        """What was measured at the load."""

    @property
    def prompt_cache_bytes(self) -> int:
        """Bytes in the prompt cache, as of the last posted pass; updated before that pass's events are delivered.

        Compiled grammars count too: like cached prompts they are kept for later requests, and given back by a trim.
        """

    @property
    def grammar_bytes(self) -> int:
        """Bytes of compiled grammars, a part of `prompt_cache_bytes`; those of running answers count as well."""

    @property
    def prompts_too_large(self) -> int:
        """How many prompts were not kept since the load because each alone is more than the prompt cache may hold."""

    async def prepare(self, request: GenerationRequest) -> PreparedPrompt:
        """Render and tokenize off the event loop; a rendering ends when the awaiting task is cancelled.

        Raises:
            TemplateFailed: the chat template does not end in time, or takes too much.
            RequestCancelled: the model was unloaded meanwhile.
            InvalidRequest: the template refuses the messages, the prompt is empty, or a token id is out of range.
            ContextLengthExceeded: the prompt alone is over the context; both numbers are in the message and its data.
        """

    def submit(self, submit: Submit, listener: Listener) -> None:
        """Start a sequence; *listener* gets its events on the event loop."""

    async def prepare_inputs(self, request: EmbeddingRequest) -> PreparedInputs:
        """Tokenize texts on a worker thread.

        Raises:
            InvalidRequest: the model makes no vectors of that kind, a text is empty, or a token id is out of range.
            ContextLengthExceeded: a text is over the context; both numbers are in the message.
        """

    def embed(self, sequence_id: int, inputs: PreparedInputs, kv_tokens: int, listener: Listener) -> None:
        """Make vectors: a sequence that ends with `Embedded` and `Finished`, paused and cancelled like others."""

    def grant(self, sequence_id: int, kv_tokens: int) -> None:
        """Raise the sequence's grant to *kv_tokens*; ignored when it has ended or paused."""

    def pause(self, sequence_id: int) -> None:
        """Take the sequence out of the batch and drop its KV; answered by `Paused`, or by its end if that was first."""

    def resume(self, sequence_id: int, kv_tokens: int) -> None:
        """Go on with a paused sequence; no text is lost or repeated."""

    def cancel(self, sequence_id: int) -> None:
        """End the sequence within one step; answered by `Finished(CANCELLED)`, or by its end if that came first."""

    def set_prompt_cache_limit(self, max_bytes: int) -> None:
        """Bound the prompt cache from now on; shrinks it when it is over."""

    async def trim_prompt_cache(self, max_bytes: int) -> int:
        """Shrink the prompt cache to *max_bytes* once, oldest first, and free the memory; return the bytes left."""


LoadProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class BackendMemory:
    """MLX's own counters, in bytes."""

    active_bytes: int
    cache_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class BackendLimits:
    """What MLX is told: guidelines, the pool's admission is what enforces the limit."""

    memory_bytes: int
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class SchedulingParams:
    """How prefill shares the device with running streams."""

    prefill_step_tokens: int | None  # most prompt tokens in one step; None: what suits the device
    target_gap_ms: int  # longest pause that prefill aims to put between two tokens of other rows


class Backend(Protocol):
    """The device: everything that loads and unloads."""

    async def load(self, spec: LoadSpec, on_progress: LoadProgress) -> Engine:
        """Load a model in slices between decode steps; *on_progress* gets (done, total) bytes on the event loop.

        Loads take turns. To abort one, cancel the task that awaits it: the load ends within one slice, and the task
        when nothing of the model is resident any more (at once while the folder is still read, however slow its disk
        is). A model that was complete by then is unloaded again. A second cancellation does not wait for that.

        Raises:
            LoadFailed: with the cause in words; nothing of the model stays resident.
            OutOfMemory: an allocation failed; likewise.
        """

    async def unload(self, engine: Engine) -> None:
        """Free the model; sequences that still run fail with `RequestCancelled`. Returns when the memory is free."""

    def set_limits(self, limits: BackendLimits) -> None:
        """Pass the limits on to MLX; applied before the next step."""

    def set_scheduling(self, params: SchedulingParams) -> None:
        """Change how prefill shares the device; applied before the next step."""

    async def memory(self) -> BackendMemory:
        """Read MLX's counters on the device thread."""

    async def close(self) -> None:
        """Unload everything and join the device thread."""
