"""A text model that a test steps by hand, on its own thread, with the events kept per sequence."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from mlxd.engine.base import (
    GenerationRequest,
    Listener,
    LoadSpec,
    PreparedPrompt,
    SamplingParams,
    SchedulingParams,
    SequenceEvent,
    Submit,
    TextPrompt,
)
from mlxd.engine.grammar import Grammars
from mlxd.engine.loader import LoadedModel, SlicedLoad
from mlxd.engine.prompt import PromptRenderer
from mlxd.engine.source import read_model_files
from mlxd.engine.text import TextModel
from tests.support.processes import PROCESSES
from tests.support.sequence import GREEDY, Recorder


def load_now(path: Path) -> LoadedModel:
    """Load a model in one go."""
    spec = LoadSpec("tiny", path, None, 0)
    load = SlicedLoad(spec, read_model_files(spec))
    loaded = None
    while loaded is None:
        loaded = load.advance(2**62)
    return loaded


class SteppedModel:
    """One `TextModel` and its sequences."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        prompt_cache_bytes: int = 0,
        prefill_step_tokens: int = 2048,
        target_gap_ms: int = 30,
    ) -> None:
        self.loaded = loaded
        grammars = Grammars(loaded.tokenizer, loaded.vocabulary, loaded.facts.vocab_size, PROCESSES)
        self.renderer = PromptRenderer("tiny", loaded.tokenizer, loaded.facts, grammars, PROCESSES)
        scheduling = SchedulingParams(prefill_step_tokens, target_gap_ms)
        self.model = TextModel(loaded, prompt_cache_bytes, scheduling, self._post)
        self._ids = itertools.count(1)

    @property
    def decoder(self) -> Any:
        """What makes the tokens, for a look inside."""
        return self.model._decoder

    @property
    def groups(self) -> list[Any]:
        """The batches of the rows that the next token is made for."""
        return list(self.decoder._groups.values())

    @property
    def decoding_rows(self) -> int:
        """How many rows the next token is made for."""
        return sum(len(group) for group in self.groups)

    @property
    def kv_bytes(self) -> int:
        """What the caches of all rows hold, those of prompts included."""
        batches = [*self.groups, *(lane.batch for lane in self.decoder._lanes.values())]
        return sum(part.nbytes for batch in batches for part in batch.prompt_cache)

    def prompt(self, text: str, max_tokens: int | None = 20) -> PreparedPrompt:
        return self.renderer.prepare(GenerationRequest(TextPrompt(text), max_tokens=max_tokens))

    def start(
        self,
        prompt: PreparedPrompt | str,
        sampling: SamplingParams = GREEDY,
        *,
        stop: tuple[str, ...] = (),
        kv_tokens: int | None = None,
        max_tokens: int = 20,
        logprobs: int | None = None,
        scores_prompt: bool = False,
        thinking_budget: int | None = None,
        checkpoint_bytes: int = 10**9,
    ) -> Recorder:
        """Submit a sequence; without *kv_tokens* its grant holds all of it."""
        if isinstance(prompt, str):
            prompt = self.prompt(prompt, max_tokens)
        recorder = Recorder(next(self._ids))
        grant = len(prompt.tokens) + prompt.max_tokens if kv_tokens is None else kv_tokens
        submit = Submit(
            recorder.sequence_id,
            prompt,
            sampling,
            stop,
            grant,
            logprobs,
            scores_prompt,
            thinking_budget,
            checkpoint_bytes,
        )
        self.model.submit(submit, recorder)
        return recorder

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.model.step(others_decode=False)

    def run(self, *sequences: Recorder) -> None:
        """Step until nothing is left to do; *sequences* must have ended then."""
        while self.model.is_busy:
            self.step()
        assert all(sequence.has_ended for sequence in sequences)

    def say(self, prompt: PreparedPrompt | str, sampling: SamplingParams = GREEDY, **options: Any) -> Recorder:
        """Run one sequence to its end, with whatever else runs."""
        sequence = self.start(prompt, sampling, **options)
        self.run(sequence)
        return sequence

    def _post(self, listener: Listener, event: SequenceEvent) -> None:
        listener(event)
