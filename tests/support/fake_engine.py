"""One loaded model of `FakeBackend`: rows, grants, pauses, a prompt cache, made-up text."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping

from mlxd.engine.base import (
    ChatPrompt,
    Delta,
    EngineFacts,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    KvLow,
    Listener,
    LoadSpec,
    Paused,
    Prefilling,
    PreparedPrompt,
    PromptScored,
    SequenceEvent,
    Submit,
    TextKind,
    TextPrompt,
    Usage,
)
from mlxd.engine.kv_shape import length_class
from mlxd.engine.prompt_check import PromptLength
from mlxd.engine.vector import EmbeddingRequest, PreparedInputs
from mlxd.protocol.errors import InvalidRequest, MlxdError, RequestCancelled
from tests.support import fake_embedding
from tests.support.fake_row import LOW_TOKENS, Row, answer_start, made_up_logprob

Post = tuple[Listener, SequenceEvent]


class FakeEngine:
    """The contract of `mlxd.engine.base.Engine`."""

    def __init__(
        self,
        spec: LoadSpec,
        facts: EngineFacts,
        weights_bytes: int,
        wake: Callable[[], None],
        run_trim: Callable[[FakeEngine, int], Awaitable[int]],
    ) -> None:
        self.spec = spec
        self._facts = facts
        self.weights_bytes = weights_bytes  # what it holds, whatever its facts say
        self._wake = wake
        self._run_trim = run_trim
        self._commands: list[Callable[[list[Post]], None]] = []
        self._rows: dict[int, Row] = {}
        self._jobs: dict[int, fake_embedding.Job] = {}
        self._cache: dict[tuple[int, ...], int] = {}  # prompt → bytes, least recently used first
        self._cache_limit_bytes = spec.prompt_cache_limit_bytes
        self.grammar_bytes = 0  # as if so much had been compiled
        self.prompts_too_large = 0
        self.closed = False

    @property
    def model_id(self) -> str:
        return self.spec.model_id

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def prompt_cache_bytes(self) -> int:
        return sum(self._cache.values()) + self.grammar_bytes

    # What the fake backend and the tests look at

    @property
    def running(self) -> int:
        """How many rows hold KV."""
        paused = [row.paused for row in self._rows.values()] + [job.paused for job in self._jobs.values()]
        return paused.count(False)

    @property
    def sequences(self) -> int:
        """How many sequences it knows, the paused ones included."""
        return len(self._rows) + len(self._jobs)

    @property
    def sequence_ids(self) -> set[int]:
        """The sequences that it knows."""
        return {*self._rows, *self._jobs}

    @property
    def has_commands(self) -> bool:
        return bool(self._commands)

    @property
    def held_bytes(self) -> int:
        """Weights, padded batches and the prompt cache."""
        rows = [(row.granted_tokens, row.tokens) for row in self._rows.values() if not row.paused and row.prefilled]
        rows += [(job.tokens, job.tokens) for job in self._jobs.values() if not job.paused]
        batches: defaultdict[int, list[int]] = defaultdict(list)
        for granted, tokens in rows:
            batches[length_class(granted)].append(tokens)
        kv = self._facts.kv
        rows_bytes = sum(kv.batch_bytes([max(lengths)] * len(lengths)) for lengths in batches.values())
        rows_bytes += sum(row.checkpoint_bytes for row in self._rows.values() if row.prefilled)
        return self.weights_bytes + rows_bytes + self.prompt_cache_bytes

    @property
    def prompt_cache_limit_bytes(self) -> int:
        return self._cache_limit_bytes

    # Engine

    async def prepare(self, request: GenerationRequest) -> PreparedPrompt:
        await asyncio.sleep(0)  # a worker thread
        prompt = request.prompt
        if isinstance(prompt, ChatPrompt):
            tokens = tuple(ord(letter) for message in prompt.messages for letter in _content(message))
        elif isinstance(prompt, TextPrompt):
            tokens = tuple(ord(letter) for letter in prompt.text)
        else:
            tokens = prompt.tokens
        if not all(0 <= token < self._facts.vocab_size for token in tokens):
            raise InvalidRequest(f"a token is outside 0..{self._facts.vocab_size - 1}", param="prompt")
        length = PromptLength(self.model_id, None, self._facts.context_length)
        field = "messages" if isinstance(prompt, ChatPrompt) else "prompt"
        return PreparedPrompt(tokens, length.max_tokens(len(tokens), request, field))

    def submit(self, submit: Submit, listener: Listener) -> None:
        assert submit.sequence_id not in self._rows
        assert submit.kv_tokens > len(submit.prompt.tokens)

        def run(posts: list[Post]) -> None:
            start = answer_start(submit.prompt.tokens, submit.sampling.seed)
            self._rows[submit.sequence_id] = Row(submit, listener, submit.kv_tokens, submit.checkpoint_bytes, start)

        self._post(run)

    async def prepare_inputs(self, request: EmbeddingRequest) -> PreparedInputs:
        await asyncio.sleep(0)  # a worker thread
        return fake_embedding.prepare(self._facts, request)

    def embed(self, sequence_id: int, inputs: PreparedInputs, kv_tokens: int, listener: Listener) -> None:
        assert sequence_id not in self.sequence_ids
        assert kv_tokens >= max(map(len, inputs.rows))

        def run(posts: list[Post]) -> None:
            self._jobs[sequence_id] = fake_embedding.Job(sequence_id, listener, inputs)

        self._post(run)

    def grant(self, sequence_id: int, kv_tokens: int) -> None:
        def run(posts: list[Post]) -> None:
            row = self._rows.get(sequence_id)
            if row is not None and not row.paused:
                row.granted_tokens, row.asked = kv_tokens, False

        self._post(run)

    def pause(self, sequence_id: int) -> None:
        def run(posts: list[Post]) -> None:
            row, job = self._rows.get(sequence_id), self._jobs.get(sequence_id)
            if row is not None and not row.paused:
                self._pause(row, posts)
            if job is not None and not job.paused:
                job.paused = True
                posts.append((job.listener, Paused(sequence_id, job.inputs.prefill_tokens)))

        self._post(run)

    def resume(self, sequence_id: int, kv_tokens: int) -> None:
        def run(posts: list[Post]) -> None:
            row, job = self._rows.get(sequence_id), self._jobs.get(sequence_id)
            if job is not None:
                job.paused = False
            if row is not None and row.paused:
                assert kv_tokens > row.tokens
                row.paused, row.prefilled, row.asked, row.granted_tokens = False, False, False, kv_tokens

        self._post(run)

    def cancel(self, sequence_id: int) -> None:
        def run(posts: list[Post]) -> None:
            row = self._rows.get(sequence_id)
            if row is not None:
                self._finish(row, FinishReason.CANCELLED, posts)
            job = self._jobs.pop(sequence_id, None)
            if job is not None:
                posts.append((job.listener, job.end(FinishReason.CANCELLED)))

        self._post(run)

    def set_prompt_cache_limit(self, max_bytes: int) -> None:
        def run(posts: list[Post]) -> None:
            self._cache_limit_bytes = max_bytes
            self.shrink_cache(max_bytes)

        self._post(run)

    async def trim_prompt_cache(self, max_bytes: int) -> int:
        return await self._run_trim(self, max_bytes)

    # The device's side

    def shrink_cache(self, max_bytes: int) -> int:
        """Drop grammars, then entries, least recently used first, until they fit; return the bytes left."""
        self.grammar_bytes = max(0, min(self.grammar_bytes, max_bytes - sum(self._cache.values())))
        while self._cache and self.prompt_cache_bytes > max_bytes:
            del self._cache[next(iter(self._cache))]
        return self.prompt_cache_bytes

    def fail(self, error: MlxdError) -> None:
        """End all sequences with an error, at the next pass."""

        def run(posts: list[Post]) -> None:
            posts.extend((row.listener, Failed(number, error)) for number, row in self._rows.items())
            posts.extend((job.listener, Failed(number, error)) for number, job in self._jobs.items())
            self._rows.clear()
            self._jobs.clear()

        self._post(run)

    def close(self) -> None:
        """End all sequences; nothing is started any more."""
        self.fail(RequestCancelled(f"{self.model_id} was unloaded"))
        self.closed = True

    def step(self, posts: list[Post], pass_tokens: int) -> None:
        """Run the commands, then make tokens for every row."""
        commands, self._commands = self._commands, []
        for command in commands:
            command(posts)
        for row in list(self._rows.values()):
            if not row.paused:
                self._advance(row, posts, pass_tokens)
        for number, job in list(self._jobs.items()):
            if not job.paused and job.make(posts):
                del self._jobs[number]

    def _post(self, command: Callable[[list[Post]], None]) -> None:
        assert not self.closed, f"{self.model_id} was used after its unload"
        self._commands.append(command)
        self._wake()

    def _advance(self, row: Row, posts: list[Post], most_tokens: int) -> None:
        number = row.submit.sequence_id
        if not row.prefilled:
            row.prefilled = True
            if row.generated == 0:
                row.cached_tokens = len(row.submit.prompt.tokens) - 1 if self._take(row.submit.prompt.tokens) else 0
            posts.append((row.listener, Prefilling(number, row.tokens, row.tokens)))
            return
        if row.tokens >= row.granted_tokens:
            self._pause(row, posts)
            return
        if row.submit.scores_prompt and not row.scored:
            row.scored = True
            scores = tuple(made_up_logprob(token, place > 0) for place, token in enumerate(row.submit.prompt.tokens))
            posts.append((row.listener, PromptScored(number, scores)))
        text, ended = row.make(most_tokens)
        posts.append((row.listener, Delta(number, text, TextKind.CONTENT, row.generated, row.logprobs(text))))
        if ended:
            self._finish(row, FinishReason.STOP, posts)
        elif row.tokens >= row.final_tokens:
            self._finish(row, FinishReason.LENGTH, posts)
        elif not row.asked and row.granted_tokens - row.tokens < LOW_TOKENS and row.final_tokens > row.granted_tokens:
            row.asked = True
            posts.append((row.listener, KvLow(number, row.granted_tokens)))

    def _pause(self, row: Row, posts: list[Post]) -> None:
        row.paused = True
        row.checkpoint_bytes = 0
        posts.append((row.listener, Paused(row.submit.sequence_id, row.tokens)))

    def _finish(self, row: Row, reason: FinishReason, posts: list[Post]) -> None:
        number = row.submit.sequence_id
        del self._rows[number]
        if not row.paused and row.prefilled:
            self._keep(row)
        usage = Usage(len(row.submit.prompt.tokens), row.cached_tokens, row.generated)
        posts.append((row.listener, Finished(number, reason, usage, row.stopped_by)))

    def _take(self, tokens: tuple[int, ...]) -> bool:
        """Whether the prompt cache has the prompt; it is then its most recently used entry."""
        if tokens not in self._cache:
            return False
        self._cache[tokens] = self._cache.pop(tokens)
        return True

    def _keep(self, row: Row) -> None:
        """Move the row's KV into the prompt cache if it fits its bound."""
        row_bytes = self._facts.kv.bytes_for(row.tokens) + row.checkpoint_bytes
        if row_bytes <= self._cache_limit_bytes:
            self._cache.pop(row.submit.prompt.tokens, None)
            self.shrink_cache(self._cache_limit_bytes - row_bytes)
            self._cache[row.submit.prompt.tokens] = row_bytes


def _content(message: Mapping[str, object]) -> str:
    return str(message["content"])
