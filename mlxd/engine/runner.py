"""The run loop of the device thread, the sole owner of weights, KV, prompt caches, batches and MLX's limits.

A pass: take the commands that lie in the inbox, let each busy model do its steps, give the load whose turn it is one
slice, hand this pass's posts to the event loop in one call. With nothing to do it blocks on the inbox. What is decided
here depends on the order of the commands and on steps, never on the clock (`pace.py` sizes chunks and counts steps by
it, which changes no result).

Importing this module imports mlx-lm, which takes a second: `device.py` does it on the device thread.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import mlx.core as mx

from mlxd.engine.base import BackendLimits, SchedulingParams
from mlxd.engine.command import (
    Cancel,
    Close,
    Command,
    Grant,
    Inbox,
    Load,
    Pause,
    Post,
    PromptCacheUse,
    ReadMemory,
    Resume,
    SetLimits,
    SetPromptCacheLimit,
    SetScheduling,
    Start,
    StartEmbedding,
    TrimPromptCache,
    Unload,
    WarmUp,
)
from mlxd.engine.fault import in_words, load_failure
from mlxd.engine.folder_reader import WorkingOn
from mlxd.engine.load_queue import LoadQueue
from mlxd.engine.loader import LoadedModel
from mlxd.engine.memory import MemoryLimits, read_memory
from mlxd.engine.model_set import ModelSet, free_or_log
from mlxd.protocol.errors import GenerationFailed, LoadFailed, MlxdError, RequestCancelled

_log = logging.getLogger(__name__)


class Runner:
    """Carries out commands and gives all models and loads their turns, on the thread that calls `run`.

    A fault of a model stays in it (`model_set.py`), and each command that is answered gets its answer. Any other fault
    ends the thread, and with it the process: nobody knows then what MLX still holds, and only a new process begins with
    nothing. A fresh thread would take over what is left, and hide it.
    """

    def __init__(
        self,
        inbox: Inbox,
        deliver: Callable[[list[Post]], None],
        on_prompt_cache: Callable[[tuple[int, PromptCacheUse]], None],
        on_failed: Callable[[MlxdError], None],
        limits: BackendLimits,
        scheduling: SchedulingParams,
        working_on: WorkingOn,
    ) -> None:
        """Take commands from *inbox*, hand posts to *deliver*.

        *on_prompt_cache* gets (key, use) when a prompt cache changes. *on_failed* gets the error that ends the thread,
        before the sequences get it. *working_on* is entered for each slice of a load.
        """
        self._inbox = inbox
        self._deliver = deliver
        self._on_prompt_cache = on_prompt_cache
        self._on_failed = on_failed
        self._working_on = working_on
        self._limits = MemoryLimits(limits)
        self._posts: list[Post] = []
        self._models = ModelSet(scheduling, self._post)
        self._loads = LoadQueue(self._post, free_or_log)
        self._prompt_caches: dict[int, PromptCacheUse] = {}  # as posted
        self._open = True

    def run(self) -> None:
        """Run until `Close`; then nothing of MLX is left on this thread."""
        # Without this every collection after an unload walks through all of transformers, 30 ms in which no row moves.
        gc.freeze()
        error: MlxdError = RequestCancelled("the daemon is shutting down")
        try:
            while self._open:
                self._run_pass()
        except BaseException as bug:
            error = GenerationFailed(f"the device thread failed: {in_words(bug)}")
            self._posts.insert(0, (self._on_failed, error))
            raise
        finally:
            self._end_all(error)
            free_or_log()
            # Last: a process that ends while a thread still has streams may abort.
            mx.clear_streams()

    def _run_pass(self) -> None:
        self._take_commands()
        is_shared = self._models.is_decoding
        self._models.step()
        if self._loads.is_busy:
            with self._working_on(self._loads.next_id, on_device=True):
                complete = self._loads.advance(is_shared=is_shared)
                if complete is not None:
                    self._add(*complete)
        self._post_prompt_caches()
        self._hand_over()

    def _take_commands(self) -> None:
        """Carry out what lies in the inbox; wait for the first command when there is nothing else to do."""
        if not self._loads.is_busy and not self._models.is_busy:
            self._carry_out(self._inbox.get())
        while self._open and not self._inbox.is_empty():
            self._carry_out(self._inbox.get())

    def _carry_out(self, command: Command) -> None:
        """Carry out a command; one that is answered is answered with the error, should it fail."""
        try:
            self._do(command)
        except BaseException as error:  # noqa: BLE001 it must not cost the commands behind it
            _log.error("the command %s failed", type(command).__name__, exc_info=error)
            match command:
                case Load():
                    self._post((command.reply, load_failure(command.spec.model_id, error)))
                case WarmUp() | Unload() | TrimPromptCache() | ReadMemory():
                    self._post((command.reply, GenerationFailed(f"the device failed: {in_words(error)}")))
            error.__traceback__ = None

    def _do(self, command: Command) -> None:  # noqa: C901 one case per command
        match command:
            case Start() | StartEmbedding() | Grant() | Pause() | Resume() | Cancel():
                self._models.carry_out(command)
            case Load():
                self._begin_load(command)
            case Unload():
                self._loads.abort(command.key, RequestCancelled("the load was cancelled"))
                self._models.remove(command.key)
                free_or_log()
                self._post((command.reply, None))
            case SetPromptCacheLimit():
                self._models.set_prompt_cache_limit(command.key, command.max_bytes)
            case TrimPromptCache():
                self._post((command.reply, self._models.trim_prompt_cache(command.key, command.max_bytes)))
            case SetLimits():
                self._limits.apply(command.limits)
            case SetScheduling():
                self._models.set_scheduling(command.params)
            case ReadMemory():
                self._post((command.reply, read_memory()))
            case WarmUp():
                self._post((command.reply, None))
            case Close():
                self._open = False

    def _begin_load(self, command: Load) -> None:
        base = None if command.base_key is None else self._models.loaded(command.base_key)
        if command.base_key is not None and base is None:
            error = LoadFailed(f"model '{command.spec.model_id}' cannot be loaded: its base was unloaded meanwhile")
            self._post((command.reply, error))
            return
        self._loads.begin(command, base)

    def _add(self, command: Load, loaded: LoadedModel) -> None:
        facts = loaded.facts
        try:
            self._models.add(command.key, loaded, command.spec.prompt_cache_limit_bytes)
        except BaseException as error:  # noqa: BLE001 the fault of this model
            _log.error("%s cannot be run", command.spec.model_id, exc_info=error)
            self._post((command.reply, load_failure(command.spec.model_id, error)))
            error.__traceback__ = None  # its frames hold weights
            del loaded
            free_or_log()
            return
        self._post((command.reply, facts))

    def _end_all(self, error: MlxdError) -> None:
        """End all sequences and loads with *error*, and let go of every model; what is ended by then is told."""
        try:
            self._loads.abort_all(error)
            self._models.close(error)
        finally:
            self._hand_over()

    def _post(self, post: Post) -> None:
        self._posts.append(post)

    def _post_prompt_caches(self) -> None:
        """Post what has changed of prompt caches, before the other posts of this pass."""
        caches = self._models.prompt_caches()
        nothing = PromptCacheUse()
        changed = [(key, use) for key, use in caches.items() if use != self._prompt_caches.get(key, nothing)]
        self._posts[:0] = [(self._on_prompt_cache, change) for change in changed]
        self._prompt_caches = caches

    def _hand_over(self) -> None:
        """Hand this pass's posts to the event loop."""
        if self._posts:
            posts, self._posts = self._posts, []
            self._deliver(posts)
