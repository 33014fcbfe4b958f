"""The device as the event loop sees it: starts the one thread that touches MLX, sends it commands, delivers its posts.

Imports no mlx, so that the daemon's sockets answer at once: mlx-lm is imported on the device thread at `warm_up`, or
at the first load.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import dataclasses
import itertools
import logging
import platform
import sys
import threading
from collections.abc import Callable

from mlxd.engine.base import (
    BackendLimits,
    BackendMemory,
    Engine,
    EngineFacts,
    Failed,
    LoadProgress,
    LoadSpec,
    SchedulingParams,
)
from mlxd.engine.command import (
    Close,
    Command,
    Inbox,
    Load,
    ModelFiles,
    Post,
    PromptCacheUse,
    ReadMemory,
    SetLimits,
    SetScheduling,
    Start,
    StartEmbedding,
    TrimPromptCache,
    Unload,
    WarmUp,
)
from mlxd.engine.fault import in_words
from mlxd.engine.folder_reader import FolderReaders, WorkingOn, read_adapter, read_files, unmarked
from mlxd.engine.handle import LoadedEngine
from mlxd.engine.inputs import InputReader
from mlxd.engine.process import Processes
from mlxd.engine.prompt import PromptRenderer
from mlxd.protocol.errors import EngineError, GenerationFailed, LoadFailed, MlxdError

_log = logging.getLogger(__name__)


def recommended_working_set_bytes() -> int | None:
    """Return what Metal recommends to keep resident at most; None without Metal. Imports mlx on a Mac only."""
    if platform.system() != "Darwin":
        return None
    from mlxd.engine import memory

    return memory.recommended_working_set_bytes()


class Device:
    """Implements `base.Backend`; one per process, because MLX's limits and the device are."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: BackendLimits,
        scheduling: SchedulingParams,
        on_failed: Callable[[MlxdError], None] = lambda _: None,
        working_on: WorkingOn = unmarked,
    ) -> None:
        """Start the device thread, which waits; everything is called on, and delivered to, *loop*.

        Should the thread fail, *on_failed* gets the error first, then all that runs ends with it, and every later
        command is answered with it. A device does not recover from that: the process is to end. *working_on* is entered
        by the threads of the device while they work on a load.
        """
        self._loop = loop
        self._on_failed = on_failed
        self._working_on = working_on
        self._inbox = Inbox()
        self._keys = itertools.count()
        self._engines: dict[int, LoadedEngine] = {}
        self._files: dict[int, ModelFiles] = {}  # of the loaded models, for their adapters
        self._readers = FolderReaders(working_on)
        self._processes = Processes()
        # A daemon thread, so that a process that forgets `close` still gets to `atexit`, which ends it in order: MLX
        # aborts a process that exits around a thread of its own.
        self._thread = threading.Thread(target=self._run, args=(limits, scheduling), name="mlxd-device", daemon=True)
        self._thread.start()
        atexit.register(self._end_thread)

    def warm_up(self, on_imported: Callable[[], None]) -> None:
        """Begin to import mlx-lm (a second), for when the sockets are open, and call *on_imported* after it."""
        self._inbox.put(WarmUp(lambda _: on_imported()))

    async def load(self, spec: LoadSpec, on_progress: LoadProgress) -> Engine:
        """Load a model; see `base.Backend.load`."""
        await self._inbox.ask(WarmUp)
        base = None if spec.base is None else self._own(spec.base)
        if base is None:
            files = await self._readers.run(read_files, spec)
        else:
            tensors = await self._readers.run(read_adapter, spec)
            files = dataclasses.replace(self._files_of(spec, base), tensors=tensors)
            if spec.pooling is not None:  # its own, not its base's
                files = dataclasses.replace(files, pooling=spec.pooling, is_pooling_assumed=False)
        key = next(self._keys)
        base_key = None if base is None else base.key
        try:
            facts: EngineFacts = await self._inbox.ask(
                lambda reply: Load(key, spec, files, base_key, on_progress, reply)
            )
        except asyncio.CancelledError:
            await self._inbox.ask(lambda reply: Unload(key, reply))
            raise
        renderer = None if spec.is_encoder else self._renderer(spec, files, facts)
        inputs = InputReader(spec.model_id, files.tokenizer, facts)
        engine = LoadedEngine(key, spec.model_id, facts, renderer, inputs, self._inbox)
        self._engines[key] = engine
        self._files[key] = files
        return engine

    async def unload(self, engine: Engine) -> None:
        """Free a model; see `base.Backend.unload`."""
        own = self._own(engine)
        key = own.key
        own.close()
        await self._inbox.ask(lambda reply: Unload(key, reply))
        self._engines.pop(key, None)
        self._files.pop(key, None)

    def set_limits(self, limits: BackendLimits) -> None:
        """Pass the limits on to MLX."""
        self._inbox.put(SetLimits(limits))

    def set_scheduling(self, params: SchedulingParams) -> None:
        """Change how prefill shares the device."""
        self._inbox.put(SetScheduling(params))

    async def memory(self) -> BackendMemory:
        """Read MLX's counters; zeros before mlx was imported."""
        memory: BackendMemory = await self._inbox.ask(ReadMemory)
        return memory

    async def close(self) -> None:
        """Unload everything and join the thread."""
        for engine in self._engines.values():
            engine.close()
        await asyncio.to_thread(self._end_thread)
        self._engines.clear()
        self._files.clear()

    def _renderer(self, spec: LoadSpec, files: ModelFiles, facts: EngineFacts) -> PromptRenderer:
        from mlxd.engine.grammar import Grammars  # imports mlx, which the device thread has done by now

        grammars = Grammars(files.tokenizer, files.vocabulary, facts.vocab_size, self._processes)
        return PromptRenderer(spec.model_id, files.tokenizer, facts, grammars, self._processes)

    def _files_of(self, spec: LoadSpec, base: LoadedEngine) -> ModelFiles:
        if base.key not in self._files:
            raise LoadFailed(f"model '{spec.model_id}' cannot be loaded: '{base.model_id}' was unloaded meanwhile")
        return self._files[base.key]

    def _own(self, engine: Engine) -> LoadedEngine:
        if not isinstance(engine, LoadedEngine):
            raise TypeError(f"{engine!r} is not of this device")
        return engine

    def _end_thread(self) -> None:
        atexit.unregister(self._end_thread)
        self._inbox.close()
        self._thread.join()
        self._readers.close()
        self._processes.close()

    # On the device thread

    def _run(self, limits: BackendLimits, scheduling: SchedulingParams) -> None:
        """Wait until MLX is needed, import it, and run."""
        while not isinstance(command := self._inbox.get(), WarmUp):
            match command:
                case SetLimits():
                    limits = command.limits
                case SetScheduling():
                    scheduling = command.params
                case ReadMemory():
                    self._hand_over([(command.reply, BackendMemory(0, 0, 0))])
                case Unload():
                    self._hand_over([(command.reply, None)])
                case Close():
                    return
        try:
            from mlxd.engine.runner import Runner
        except Exception as error:  # noqa: BLE001 a broken installation can fail in any way
            _log.exception("mlx-lm cannot be imported")
            self._refuse(command, LoadFailed(f"mlx-lm cannot be imported: {in_words(error)}"))
            mlx = sys.modules.get("mlx.core")
            if mlx is not None:  # half an import has made streams, and a process that ends around them aborts
                mlx.clear_streams()
            return
        self._hand_over([(command.reply, None)])
        try:
            runner = Runner(
                self._inbox,
                self._hand_over,
                self._on_prompt_cache,
                self._on_failed,
                limits,
                scheduling,
                self._working_on,
            )
            runner.run()
        except BaseException as error:  # noqa: BLE001 a bug in the run loop; models' failures do not get here
            _log.critical("the device thread failed", exc_info=error)
            self._refuse(self._inbox.get(), GenerationFailed(f"the device thread failed: {in_words(error)}"))

    def _refuse(self, command: Command, error: EngineError) -> None:
        """Answer everything with *error*, until `Close`."""
        while not isinstance(command, Close):
            match command:
                case WarmUp() | Load() | Unload() | ReadMemory() | TrimPromptCache():
                    self._hand_over([(command.reply, error)])
                case Start():
                    self._hand_over([(command.listener, Failed(command.submit.sequence_id, error))])
                case StartEmbedding():
                    self._hand_over([(command.listener, Failed(command.sequence_id, error))])
            command = self._inbox.get()

    def _hand_over(self, posts: list[Post]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._on_posts, posts)

    # On the event loop

    def _on_posts(self, posts: list[Post]) -> None:
        for receive, value in posts:
            try:
                receive(value)
            except Exception:  # noqa: BLE001 one listener's failure is none of the others' business
                # Its type only: a value may hold the text of an answer.
                _log.exception("a listener failed on a %s", type(value).__name__)

    def _on_prompt_cache(self, key_use: tuple[int, PromptCacheUse]) -> None:
        key, use = key_use
        if key in self._engines:
            self._engines[key]._on_prompt_cache(use)  # noqa: SLF001 its other half
