"""A `Backend` without MLX whose time is the clock it is given: same contract, same order of events as the real one.

One pass of its device happens every `step_s` while anything runs: commands first, in order, then one token for every
running row, then the pass's events. Text is a function of the prompt, the seed and the position, so that a paused and
resumed sequence can be compared with an unhurried one. Faults: `fail_load`, `fail_sequences`, `mismeasure`,
`hold_loads`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import defaultdict, deque
from collections.abc import Mapping

from mlxd.clock import Clock, Timer
from mlxd.engine.base import BackendLimits, BackendMemory, Engine, EngineFacts, LoadProgress, LoadSpec, SchedulingParams
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.vector import Pooling, VectorFacts
from mlxd.protocol.errors import MlxdError
from tests.support.fake_engine import FakeEngine, Post

DEFAULT_FACTS = EngineFacts(
    weights_bytes=1_000_000,
    kv=KvShape(groups=((100, None),)),
    context_length=8192,
    vocab_size=0x110000,  # a token is a character's code point
    has_thinking=False,
    tool_format="",
    chat_template=True,
    vectors=VectorFacts(16, Pooling.MEAN, (4, 8)),
)


class FakeBackend:
    """Loads and runs made-up models."""

    def __init__(
        self,
        clock: Clock,
        models: Mapping[str, EngineFacts] | None = None,
        *,
        load_s: float = 1.0,
        unload_s: float = 0.1,
        abort_s: float = 0,
        step_s: float = 0.01,
        pass_tokens: int = 1,
    ) -> None:
        """Take the clock and what each model id turns out to be; ids that are not named are `DEFAULT_FACTS`."""
        self.clock = clock
        self.models = dict(models or {})
        self.load_s = load_s
        self.unload_s = unload_s
        self.abort_s = abort_s
        self.step_s = step_s
        self.pass_tokens = pass_tokens  # what a running row makes in one pass; long histories take more than one
        self.engines: list[FakeEngine] = []  # resident, the ones in unload included
        self.calls: list[str] = []  # "load a", "unload a", in order
        self.specs: list[LoadSpec] = []  # of the loads, in order
        self.cancelled_loads = 0
        self.limits: BackendLimits | None = None
        self.scheduling: SchedulingParams | None = None
        self.holding_loads = False
        self._held: list[asyncio.Event] = []
        self._load_faults: dict[str, deque[MlxdError]] = defaultdict(deque)
        self._measured_bytes: dict[str, int] = {}
        self._loading_bytes: dict[int, int] = {}  # by the identity of the spec
        self._peak_bytes = 0
        self._pass: Timer | None = None

    # Faults

    def fail_load(self, model_id: str, error: MlxdError) -> None:
        """Let the next load of the model fail."""
        self._load_faults[model_id].append(error)

    def mismeasure(self, model_id: str, weights_bytes: int) -> None:
        """Let loads of the model report these weights, whatever they hold."""
        self._measured_bytes[model_id] = weights_bytes

    def fail_sequences(self, model_id: str, error: MlxdError) -> None:
        """Let all sequences that the model runs fail at the next pass."""
        for engine in self.engines:
            if engine.model_id == model_id and not engine.closed:
                engine.fail(error)

    def hold_loads(self, *, hold: bool) -> None:
        """Keep loads from ending, or let the held ones end."""
        self.holding_loads = hold
        if not hold:
            for event in self._held:
                event.set()
            self._held.clear()

    # Backend

    async def load(self, spec: LoadSpec, on_progress: LoadProgress) -> Engine:
        """Load in four slices over `load_s`; cancelled, it ends after `abort_s` and holds its bytes until then."""
        self.calls.append(f"load {spec.model_id}")
        self.specs.append(spec)
        self._check_base(spec)
        try:
            return await self._load(spec, on_progress)
        except asyncio.CancelledError:
            self.cancelled_loads += 1
            self.calls.append(f"abort {spec.model_id}")
            if self.abort_s:  # the clock of a test that ends stands
                await self._wait(self.abort_s)
            raise
        finally:
            self._loading_bytes.pop(id(spec), None)

    async def _load(self, spec: LoadSpec, on_progress: LoadProgress) -> Engine:
        facts = self.models.get(spec.model_id, DEFAULT_FACTS)
        if spec.context_length is not None:
            facts = dataclasses.replace(facts, context_length=min(spec.context_length, facts.context_length))
        faults = self._load_faults[spec.model_id]
        for part in range(1, 5):
            await self._wait(self.load_s / 4)
            loaded_bytes = facts.weights_bytes * part // 4
            self._loading_bytes[id(spec)] = loaded_bytes
            self._measure()
            on_progress(loaded_bytes, facts.weights_bytes)
        if self.holding_loads:
            event = asyncio.Event()
            self._held.append(event)
            await event.wait()
        self._check_base(spec)
        if faults:
            raise faults.popleft()
        measured_bytes = self._measured_bytes.get(spec.model_id, facts.weights_bytes)
        measured = dataclasses.replace(facts, weights_bytes=measured_bytes)
        engine = FakeEngine(spec, measured, facts.weights_bytes, self._wake, self._run_trim)
        del self._loading_bytes[id(spec)]
        self.engines.append(engine)
        self._measure()
        return engine

    async def unload(self, engine: Engine) -> None:
        """Fail what still runs, and free the memory after `unload_s`."""
        self.calls.append(f"unload {engine.model_id}")
        fake = next(candidate for candidate in self.engines if candidate is engine)
        assert not any(other.spec.base is engine for other in self.engines), f"{engine.model_id} has adapters"
        fake.close()
        self._wake()
        await self._wait(self.unload_s)
        self.engines.remove(fake)

    def set_limits(self, limits: BackendLimits) -> None:
        """Remember the limits."""
        self.limits = limits

    def set_scheduling(self, params: SchedulingParams) -> None:
        """Remember how prefill is to be scheduled."""
        self.scheduling = params

    async def memory(self) -> BackendMemory:
        """Return the counters."""
        return BackendMemory(active_bytes=self.active_bytes, cache_bytes=0, peak_bytes=self._peak_bytes)

    async def close(self) -> None:
        """Unload everything."""
        self.hold_loads(hold=False)
        if self._pass is not None:
            self._pass.cancel()
        self.engines.clear()

    def _check_base(self, spec: LoadSpec) -> None:
        """An adapter lives on a loaded base, from the beginning of its load to the end of its unload."""
        assert (spec.base is None) == (spec.adapter_path is None)
        assert spec.base is None or any(engine is spec.base and not engine.closed for engine in self.engines)

    # The device

    @property
    def active_bytes(self) -> int:
        """What the device holds now."""
        return sum(self._loading_bytes.values()) + sum(engine.held_bytes for engine in self.engines)

    @property
    def running(self) -> int:
        """How many rows there are, over all models."""
        return sum(engine.running for engine in self.engines)

    def _measure(self) -> None:
        self._peak_bytes = max(self._peak_bytes, self.active_bytes)

    def _wake(self) -> None:
        if self._pass is None:
            self._pass = self.clock.call_later(self.step_s, self._run_pass)

    def _run_pass(self) -> None:
        """Do one pass of the device and post its events, all at the end and in order."""
        self._pass = None
        posts: list[Post] = []
        for engine in self.engines:
            engine.step(posts, self.pass_tokens)
        self._measure()
        if self.running or any(engine.has_commands for engine in self.engines):
            self._wake()
        for listener, event in posts:
            listener(event)

    async def _run_trim(self, engine: FakeEngine, max_bytes: int) -> int:
        await self._wait(self.step_s)
        return engine.shrink_cache(max_bytes)

    async def _wait(self, seconds: float) -> None:
        done = asyncio.Event()
        self.clock.call_later(seconds, done.set)
        await done.wait()
