"""One contract for every decoder: whatever shares a batch, each row says what mlx-lm says of it alone."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from mlxd.engine.base import Decoding, FinishReason, SamplingParams
from mlxd.engine.batch_decoder import make_decoder
from mlxd.engine.decoder import Decoder, Entry, Kept, Made, Prefilled
from mlxd.engine.kv import CacheMaker, detach
from mlxd.engine.sampling import SamplerCache
from tests.support.every_architecture import config_of, make_model

# Attention with windows, in chunks, without either; states; states beside attention.
CASES = (
    *(("llama", decoding) for decoding in Decoding),
    ("gpt_oss", Decoding.BATCHED),
    ("llama4", Decoding.ONE_BY_ONE),
    ("mamba2", Decoding.SINGLE_PREFILL),
    ("qwen3_next", Decoding.BATCHED),
    ("qwen3_next", Decoding.ONE_BY_ONE),
)
END = 7
PROMPTS = ([3, 4, 5], [9], list(range(20, 90)), [50, 40] * 60, [11] * 200)
# Of an answer, where a test makes none of its own.
ANSWER_TOKENS = 6
# Of an answer that is compared with what mlx-lm makes alone.
MOST_TOKENS = 14
# Longer than what one batch takes of short rows.
FAR_TOKENS = 9000


class Model:
    """A tiny model, and what it says alone."""

    def __init__(self, model_type: str) -> None:
        mx.random.seed(1)
        self.model = make_model(config_of(model_type))
        mx.eval(self.model.parameters())
        self.caches = CacheMaker(self.model)
        self._alone: dict[tuple[tuple[int, ...], bool], list[int]] = {}

    def alone(self, prompt: list[int], max_tokens: int, *, can_end: bool = True) -> list[int]:
        """Return what mlx-lm's own loop makes of a prompt, greedily; each prompt is run once for all tests."""
        key = (tuple(prompt), can_end)
        if key not in self._alone:
            steps = generate_step(
                mx.array(prompt),
                self.model,
                max_tokens=MOST_TOKENS,
                prompt_cache=self.caches.make(),
                logits_processors=[] if can_end else [_no_end],
            )
            self._alone[key] = [token for token, _ in steps]
        return self._alone[key][:max_tokens]


MODELS: dict[str, Model] = {}


@pytest.fixture(scope="module", autouse=True)
def few_objects() -> Iterator[None]:
    """Let a collection look at no object that was there before, such as all of transformers: 0.2 s each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].name}")
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """A decoder that is stepped by hand; models are made once."""
    model_type, decoding = request.param
    if model_type not in MODELS:
        MODELS[model_type] = Model(model_type)
    model = MODELS[model_type]
    run = Run(model, make_decoder(model.model, model.caches, [END], decoding))
    yield run
    run.decoder.close()


class Run:
    """A decoder, and what its rows have made."""

    def __init__(self, model: Model, decoder: Decoder) -> None:
        self.model = model
        self.decoder = decoder
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[Any]] = {}
        self.ends: dict[int, tuple[FinishReason, Kept]] = {}
        self.prefills: dict[int, list[Prefilled]] = {}

    def start(self, prompt: list[int], max_tokens: int = ANSWER_TOKENS, **changes: Any) -> int:
        entry = Entry(prompt, 0, None, len(prompt) + max_tokens, max_tokens, _greedy)
        uid = self.decoder.insert(dataclasses.replace(entry, **changes))
        self.tokens[uid], self.logprobs[uid], self.prefills[uid] = [], [], []
        return uid

    def step(self, steps: int = 1, chunk: int = 64) -> None:
        for _ in range(steps):
            prefilled, made = self.decoder.step(lambda remaining: chunk)
            for event in prefilled:
                self.prefills[event.uid].append(event)
            for tokens in made:
                self._note(tokens)

    def finish(self, uids: Iterable[int]) -> None:
        waiting = set(uids)
        while waiting - set(self.ends):
            self.step()

    def _note(self, made: Made) -> None:
        self.tokens[made.uid] += made.tokens
        self.logprobs[made.uid] += made.logprobs
        if made.end is not None:
            assert made.kept is not None
            self.ends[made.uid] = (made.end, made.kept)


def _greedy(logprobs: mx.array) -> mx.array:
    return mx.argmax(logprobs, axis=-1)


def _no_end(tokens: mx.array, logits: mx.array) -> mx.array:
    """Never let a row end by itself, so that lengths are known."""
    return mx.where(mx.arange(logits.shape[-1]) == END, -mx.inf, logits)


def test_rows_say_together_what_each_says_alone(run: Run) -> None:
    """Prompts of unequal length that come at different moments change no row's tokens."""
    uids = []
    for prompt in PROMPTS:
        uids.append(run.start(prompt))
        run.step(2)
    run.finish(uids)
    for uid, prompt in zip(uids, PROMPTS, strict=True):
        expected = run.model.alone(prompt, ANSWER_TOKENS)
        made = run.tokens[uid]
        assert made == expected[: len(made)]
        assert len(made) == ANSWER_TOKENS or made[-1] == END


def test_unequal_prompts_that_begin_together(run: Run) -> None:
    """The same, when all of them wait for the same step."""
    uids = [run.start(prompt) for prompt in PROMPTS]
    run.finish(uids)
    for uid, prompt in zip(uids, PROMPTS, strict=True):
        assert run.tokens[uid] == run.model.alone(prompt, len(run.tokens[uid]))


def test_prompts_are_processed_in_chunks(run: Run) -> None:
    """Progress counts up to the whole prompt; the first token comes with the step after the last."""
    uid = run.start(list(range(20, 90)), 3)
    run.step(1, chunk=50)
    assert run.prefills[uid] == [Prefilled(uid, 50, is_done=False)]
    run.step(2, chunk=50)
    assert run.prefills[uid][1:] == [Prefilled(uid, 69, is_done=False), Prefilled(uid, 70, is_done=True)]
    assert run.tokens[uid] == []
    run.step()
    assert len(run.tokens[uid]) == 1


def test_every_row_gets_its_token_in_every_step(run: Run) -> None:
    """Rows take turns: none waits for another one's answer."""
    uids = [run.start([number, 5, 6], 40, processors=[_no_end]) for number in range(20, 25)]
    while not all(run.tokens[uid] for uid in uids):
        run.step()
    before = [len(run.tokens[uid]) for uid in uids]
    run.step(7)
    assert [len(run.tokens[uid]) for uid in uids] == [count + 7 for count in before]


def test_length_and_stop_end_a_row(run: Run) -> None:
    """A row ends with its last token, or with a token that ends; what is kept is the KV of all that it returned."""
    short = run.start([3, 4, 5], 2, processors=[_no_end])
    stopped = run.start([3, 4, 5], 9, processors=[lambda tokens, logits: mx.where(mx.arange(110) == END, 99.0, logits)])
    run.finish([short, stopped])
    assert (len(run.tokens[short]), run.ends[short][0]) == (2, FinishReason.LENGTH)
    assert (run.tokens[stopped], run.ends[stopped][0]) == ([END], FinishReason.STOP)
    assert run.ends[short][1].tokens == [3, 4, 5, *run.tokens[short]]


def test_a_removed_row_leaves_the_others_alone(run: Run) -> None:
    """A row goes in the middle of its prompt, another in the middle of its answer, a third before its first step."""
    stays = run.start(PROMPTS[0], MOST_TOKENS, processors=[_no_end])
    decoding = run.start([8, 9], 30, processors=[_no_end])
    run.step(4)
    prefilling = run.start([60] * 200, 30)
    run.step(chunk=32)
    waiting = run.start([61] * 20, 30)
    kept = run.decoder.remove([decoding, prefilling, waiting, 12345], keep=True)
    assert set(kept) == {decoding, prefilling}
    assert kept[decoding].tokens == [8, 9, *run.tokens[decoding]]
    assert kept[prefilling].tokens == [60] * 32
    run.finish([stays])
    assert run.tokens[stays] == run.model.alone(PROMPTS[0], MOST_TOKENS, can_end=False)
    assert not run.tokens[prefilling]
    assert not run.tokens[waiting]


def test_a_row_continues_from_kept_kv(run: Run) -> None:
    """What was kept of a cut prompt or of an answer continues as if it had never been out."""
    prompt = [60, 61, 62] * 40
    uid = run.start(prompt)
    run.step(2, chunk=32)
    kept = run.decoder.remove([uid], keep=True)[uid]
    detach(kept.cache)
    assert kept.tokens == prompt[: len(kept.tokens)]
    again = run.start(prompt, known=len(kept.tokens), cache=kept.cache)
    other = run.start(PROMPTS[3])
    run.finish([again, other])
    assert run.tokens[again] == run.model.alone(prompt, len(run.tokens[again]))
    text = prompt + run.tokens[again]
    last = run.start([*text, 33, 34], known=len(text), cache=run.ends[again][1].cache)
    run.finish([last])
    assert run.tokens[last] == run.model.alone([*text, 33, 34], len(run.tokens[last]))


def test_an_extracted_copy_serves_several_rows(run: Run) -> None:
    """A prompt is processed once; others begin with a copy of its KV, which no row of them changes."""
    prompt = list(range(20, 80))
    first = run.start(prompt)
    while sum(event.done for event in run.prefills[first][-1:]) < len(prompt) - 1:
        run.step()
    kept = run.decoder.extract(first)
    assert kept.tokens == prompt[:-1]
    uids = [run.start(prompt, known=len(prompt) - 1, cache=kept.cache) for _ in range(3)]
    run.finish([first, *uids])
    for uid in uids:
        assert run.tokens[uid] == run.tokens[first] == run.model.alone(prompt, len(run.tokens[uid]))


def test_a_seed_decides_whatever_runs_beside(run: Run) -> None:
    """A sampler of a row's own draws the same in any company."""
    samplers = SamplerCache(110, [])
    params = SamplingParams(temperature=1.0, seed=4)
    alone = run.start(PROMPTS[2], 10, sampler=samplers.row_sampler(params), processors=[_no_end])
    run.finish([alone])
    beside = run.start(PROMPTS[1], 20, processors=[_no_end])
    run.step(3)
    again = run.start(PROMPTS[2], 10, sampler=samplers.row_sampler(params), processors=[_no_end])
    run.finish([again, beside])
    assert run.tokens[again] == run.tokens[alone]


def test_processors_see_all_tokens_and_change_one_row(run: Run) -> None:
    """A processor is called with the prompt first and one more token each time, and touches its own row only."""
    seen: list[Any] = []

    def force(tokens: mx.array, logits: mx.array) -> mx.array:
        seen.append(tokens.tolist())
        return mx.where(mx.arange(110) == 42, 99.0, logits)

    other = run.start(PROMPTS[0])
    uid = run.start([3, 4, 5], 4, processors=[force])
    run.finish([uid, other])
    assert run.tokens[uid] == [42] * 4
    assert seen[:3] == [[3, 4, 5], [3, 4, 5, 42], [3, 4, 5, 42, 42]]
    assert run.tokens[other] == run.model.alone(PROMPTS[0], len(run.tokens[other]))


def test_logprobs_are_of_the_tokens(run: Run) -> None:
    """Each token comes with the float32 log-softmax that it was chosen from."""
    uid = run.start([3, 4, 5], 5)
    run.finish([uid])
    for token, logprobs in zip(run.tokens[uid], run.logprobs[uid], strict=True):
        assert logprobs.dtype == mx.float32
        assert logprobs.shape == (110,)
        assert int(mx.argmax(logprobs)) == token
        assert float(mx.logsumexp(logprobs)) == pytest.approx(0, abs=1e-4)


def test_a_grown_row_continues_among_longer_ones(run: Run) -> None:
    """A row whose grant becomes long goes on where it was, and so do those that it leaves and those that it joins."""
    long = run.start(PROMPTS[4], MOST_TOKENS, kv_tokens=FAR_TOKENS, processors=[_no_end])
    grows = run.start(PROMPTS[2], MOST_TOKENS, processors=[_no_end])
    short = run.start(PROMPTS[0], MOST_TOKENS, processors=[_no_end])
    while not all(run.tokens[uid] for uid in (long, grows, short)):
        run.step(chunk=128)
    run.step(2)
    assert not run.ends
    run.decoder.grant(grows, FAR_TOKENS)
    run.decoder.grant(12345, FAR_TOKENS)
    run.finish([long, grows, short])
    for uid, prompt in ((long, PROMPTS[4]), (grows, PROMPTS[2]), (short, PROMPTS[0])):
        assert run.tokens[uid] == run.model.alone(prompt, MOST_TOKENS, can_end=False)


@pytest.mark.parametrize(("known", "max_tokens"), [(3, 5), (0, 0)])
def test_what_cannot_continue_is_refused(run: Run, known: int, max_tokens: int) -> None:
    """A row needs a token to continue from, and one to make; nothing else notices."""
    with pytest.raises(ValueError, match="token"):
        run.start([3, 4, 5], max_tokens, known=known, cache=run.model.caches.make())
    uid = run.start([3, 4, 5])
    run.finish([uid])


def test_close_frees_everything(run: Run) -> None:
    """Nothing that counts is held after `close`, not even by whoever holds the decoder.

    Compiled functions keep a few constants for each new shape of their arguments; the KV of one token is more.
    """
    mx.synchronize()
    gc.collect()
    before_bytes = mx.get_active_memory()
    for prompt in PROMPTS:
        run.start(prompt, 40, processors=[_no_end])
    run.step(6)
    run.decoder.close()
    for made in (run.tokens, run.logprobs, run.ends):
        made.clear()
    mx.synchronize()
    gc.collect()
    assert mx.get_active_memory() < before_bytes + 500
