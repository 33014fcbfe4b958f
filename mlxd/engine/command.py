"""The commands of the event loop to the device thread, one plain record each, and the inbox that hands them over.

Together they are a log: what the device thread decides depends on their order and on its steps. No mlx here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from mlxd.engine.base import BackendLimits, Listener, LoadProgress, LoadSpec, SchedulingParams, Submit
from mlxd.engine.model_file import Signature
from mlxd.engine.safetensors_header import Tensor
from mlxd.engine.vector import Pooling, PreparedInputs
from mlxd.engine.vocabulary import Vocabulary
from mlxd.protocol.errors import Draining, MlxdError

# Called on the event loop with the result, or with the `MlxdError` that came instead.
Reply = Callable[[Any], None]
# What the device thread hands over after a pass: these calls, in this order.
Post = tuple[Callable[[Any], None], Any]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a worker thread has read of a model's folder before the device thread loads the weights."""

    path: Path
    config: dict[str, Any]
    tokenizer: Any  # mlx_lm.tokenizer_utils.TokenizerWrapper
    vocabulary: Vocabulary
    pooling: Pooling | None  # of its hidden states; None: in no way that is known
    is_pooling_assumed: bool  # neither a setting nor the folder names it
    tensors: Mapping[str, tuple[Path, Tensor]]  # in its files (an adapter: in its own), but for names in several
    signature: Signature


@dataclass(frozen=True, slots=True)
class PromptCacheUse:
    """What the device thread says of the prompt cache of a model."""

    stored_bytes: int = 0
    too_large: int = 0  # prompts that were not kept because each alone is more than the cache may hold


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Import mlx-lm now."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model, known as *key* from then on; the reply is its `EngineFacts`."""

    key: int
    spec: LoadSpec
    files: ModelFiles
    base_key: int | None  # of the loaded model that an adapter is put on
    on_progress: LoadProgress
    reply: Reply


@dataclass(frozen=True, slots=True)
class Unload:
    """Fail the model's sequences and free it, or abort its load."""

    key: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a sequence."""

    key: int
    submit: Submit
    listener: Listener


@dataclass(frozen=True, slots=True)
class StartEmbedding:
    """Begin to make vectors."""

    key: int
    sequence_id: int
    inputs: PreparedInputs
    kv_tokens: int
    listener: Listener


@dataclass(frozen=True, slots=True)
class Grant:
    """Let a sequence grow to so many tokens."""

    key: int
    sequence_id: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Pause:
    """Drop a sequence's KV and keep its text."""

    key: int
    sequence_id: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on with a paused sequence."""

    key: int
    sequence_id: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a sequence."""

    key: int
    sequence_id: int


@dataclass(frozen=True, slots=True)
class SetPromptCacheLimit:
    """Bound a model's prompt cache from now on."""

    key: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class TrimPromptCache:
    """Shrink a model's prompt cache once; the reply is the bytes left."""

    key: int
    max_bytes: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class SetLimits:
    """Pass limits on to MLX."""

    limits: BackendLimits


@dataclass(frozen=True, slots=True)
class SetScheduling:
    """Change how prefill shares the device."""

    params: SchedulingParams


@dataclass(frozen=True, slots=True)
class ReadMemory:
    """Read MLX's counters; the reply is a `BackendMemory`."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Close:
    """Unload everything and end the thread."""


# These name a loaded model by its key and are answered by events of its sequences.
SequenceCommand = Start | StartEmbedding | Grant | Pause | Resume | Cancel
Command = (
    WarmUp | Load | Unload | SequenceCommand | SetPromptCacheLimit | TrimPromptCache
    | SetLimits | SetScheduling | ReadMemory | Close
)  # fmt: skip


class Inbox:
    """Commands in the order they were put; after `close` it takes no more."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Command] = SimpleQueue()
        self._open = True

    def put(self, command: Command) -> None:
        """Post *command*; dropped after `close`, which ends all that a command could be about."""
        if self._open:
            self._queue.put(command)

    async def ask(self, make: Callable[[Reply], Command]) -> Any:
        """Put the command that *make* returns for a reply, and wait for the answer.

        Raises:
            MlxdError: the answer was an error.
            Draining: the inbox is closed.
        """
        if not self._open:
            raise Draining("the device is shut down")
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def resolve(value: Any) -> None:
            if answer.done():  # the caller was cancelled
                return
            if isinstance(value, MlxdError):
                answer.set_exception(value)
            else:
                answer.set_result(value)

        self._queue.put(make(resolve))
        return await answer

    def close(self) -> None:
        """Put `Close`, once, and take no more commands."""
        if self._open:
            self._open = False
            self._queue.put(Close())

    # The device thread's side

    def get(self) -> Command:
        """Return the next command; waits for one without polling. After `Close` there is nothing but `Close`."""
        command = self._queue.get()
        if isinstance(command, Close):
            self._queue.put(command)
        return command

    def is_empty(self) -> bool:
        """Whether `get` would wait."""
        return self._queue.empty()
