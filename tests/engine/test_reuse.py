"""No prompt is computed twice: on real tiny models of every kind of cache, with the answers of cold runs."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from mlxd.engine.base import Decoding, FinishReason, PreparedPrompt, SamplingParams
from mlxd.engine.kv import CacheMaker
from mlxd.engine.loader import LoadedModel
from mlxd.protocol.errors import GenerationFailed
from tests.engine.bench import WriteModel
from tests.engine.test_decoding_check import EXPECTED
from tests.support.counting_model import CountingModel
from tests.support.every_architecture import make_any
from tests.support.sequence import GREEDY, Recorder
from tests.support.stepped_model import SteppedModel, load_now

# KV that can be cut, plain and latent; windows; states; both; a list of caches.
KINDS = [
    "qwen3",
    "deepseek_v3",
    "gemma3_text",
    "gpt_oss",
    "llama",
    "qwen3_next",
    "lfm2",
    "mamba2",
    "kimi_linear",
    "falcon_h1",
]
CUTTABLE = {"qwen3", "deepseek_v3"}
# What the model answers depends, in the last bits, on where its prompt is cut.
INEXACT = {"mamba2", "falcon_h1", "kimi_linear", "nemotron_h"}
PLENTY = 1_000_000_000
SEEDED = SamplingParams(temperature=1.0, seed=7)

Load = Callable[[str], LoadedModel]


@pytest.fixture(scope="module")
def load(write_model: WriteModel) -> Load:
    """Return what makes a tiny model of an architecture, with a tokenizer of bytes."""
    return loader(load_now(write_model()))


def loader(tiny: LoadedModel) -> Load:
    """Return what makes models with the tokenizer of *tiny*, each once."""

    @cache
    def load(model_type: str) -> LoadedModel:
        model = make_any(model_type)
        caches = CacheMaker(model)
        kv, vocab_size = caches.probe()
        decoding = EXPECTED.get(model_type, Decoding.BATCHED) if caches.can_merge else Decoding.ONE_BY_ONE
        facts = dataclasses.replace(tiny.facts, kv=kv, vocab_size=vocab_size, decoding=decoding)
        return dataclasses.replace(tiny, model=CountingModel(model), facts=facts)

    return load


def words(seed: int, length: int) -> tuple[int, ...]:
    """Return some text that no text of another seed begins like."""
    rng = random.Random(seed)
    return (3 + seed, *(rng.randrange(3, 100) for _ in range(length - 1)))


def prompt(*parts: tuple[int, ...], max_tokens: int = 8, checkpoints: tuple[int, ...] | None = None) -> PreparedPrompt:
    """Return a prompt of these parts; it is likely to be parted from where one of them ends."""
    tokens = tuple(token for part in parts for token in part)
    ends = [sum(len(part) for part in parts[: number + 1]) for number in range(len(parts) - 1)]
    return PreparedPrompt(tokens, max_tokens, checkpoints=tuple(ends) if checkpoints is None else checkpoints)


def answer(sequence: Recorder) -> list[tuple[int, float]]:
    """Return the tokens of an answer and their logprobs."""
    return [(item.token, float(item.logprob or 0)) for delta in sequence.deltas for item in delta.logprobs]


def check_answer(model_type: str, got: Recorder, cold: Recorder, *, is_alone: bool = True) -> None:
    """Compare an answer with that of a cold run; beside other rows the last bits may differ whatever is reused."""
    assert [token for token, _ in answer(got)] == [token for token, _ in answer(cold)]
    if model_type in INEXACT or not is_alone:
        for (_, one), (_, other) in zip(answer(got), answer(cold), strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    else:
        assert answer(got) == answer(cold)


@pytest.fixture
def warm(load: Load) -> Callable[[str], SteppedModel]:
    """Return what makes a model with a large prompt cache."""
    return lambda model_type: SteppedModel(load(model_type), prompt_cache_bytes=PLENTY, prefill_step_tokens=64)


@pytest.fixture
def cold(load: Load) -> Callable[..., Recorder]:
    """Return what answers without a prompt cache."""

    def say(model_type: str, asked: PreparedPrompt, sampling: SamplingParams = GREEDY) -> Recorder:
        stepped = SteppedModel(load(model_type), prefill_step_tokens=64)
        return stepped.say(asked, sampling, logprobs=0)

    return say


SYSTEM, QUESTION, GENERATE = words(1, 200), words(2, 90), words(3, 5)


@pytest.mark.parametrize("model_type", KINDS)
def test_later_prompts_begin_where_they_part(model_type: str, warm: Any, cold: Any) -> None:
    """The next turn, another question, and the same again compute what is new of them, and say what a cold run says."""
    stepped = warm(model_type)
    first = prompt(SYSTEM, QUESTION, GENERATE)
    assert stepped.say(first).usage.cached_tokens == 0
    whole = len(first.tokens) - 1 if model_type in CUTTABLE else len(SYSTEM + QUESTION)
    cases = [
        (prompt(SYSTEM, QUESTION, words(4, 70), words(5, 20), GENERATE), len(SYSTEM + QUESTION), GREEDY),
        (prompt(SYSTEM, words(6, 80), GENERATE), len(SYSTEM), SEEDED),
        (first, whole, SEEDED),
    ]
    for asked, cached, sampling in cases:
        before = stepped.loaded.model.prefilled_tokens
        again = stepped.say(asked, sampling, logprobs=0)
        assert again.usage.cached_tokens == cached
        assert stepped.loaded.model.prefilled_tokens - before <= len(asked.tokens) - cached
        check_answer(model_type, again, cold(model_type, asked, sampling))


@pytest.mark.parametrize("model_type", KINDS)
def test_a_cancelled_prompt_is_continued(model_type: str, warm: Any, cold: Any) -> None:
    """Whoever disconnects in the middle of a prompt and tries again computes the rest of it only."""
    stepped = warm(model_type)
    asked = prompt(words(1, 300), checkpoints=())
    sequence = stepped.start(asked)
    stepped.step(2)
    stepped.model.cancel(sequence.sequence_id)
    assert sequence.reason is FinishReason.CANCELLED
    again = stepped.say(asked, logprobs=0)
    assert again.usage.cached_tokens == 128
    check_answer(model_type, again, cold(model_type, asked))


@pytest.mark.parametrize("model_type", KINDS)
def test_a_head_is_computed_once_for_all_that_come_together(model_type: str, load: Load, cold: Any) -> None:
    """Requests with the same long head wait for the one that computes it, also where no prompt cache is kept."""
    head = words(1, 400)
    asked = [prompt(head, words(10 + number, 20 + number), checkpoints=()) for number in range(5)]
    stepped = SteppedModel(load(model_type), prefill_step_tokens=64)
    before = stepped.loaded.model.prefilled_tokens
    rows = [stepped.start(one, logprobs=0) for one in asked]
    stepped.run(*rows)
    padded = 5 * 64  # the ends are processed side by side, each as long as the longest
    assert stepped.loaded.model.prefilled_tokens - before <= len(head) + padded
    assert [row.usage.cached_tokens for row in rows] == [0, *[len(head)] * 4]
    for one, row in zip(asked, rows, strict=True):
        check_answer(model_type, row, cold(model_type, one), is_alone=False)


@pytest.mark.parametrize("model_type", ["qwen3", "qwen3_next", "gpt_oss"])
def test_a_running_row_gives_what_it_has(model_type: str, load: Load, cold: Any) -> None:
    """A request that comes while another answers takes the head out of its row."""
    stepped = SteppedModel(load(model_type), prompt_cache_bytes=PLENTY, prefill_step_tokens=64)
    first = stepped.start(prompt(SYSTEM, QUESTION, max_tokens=40))
    while not first.deltas:
        assert not first.has_ended
        stepped.step()
    asked = prompt(SYSTEM, words(9, 50))
    second = stepped.start(asked, logprobs=0)
    stepped.run(first, second)
    assert second.usage.cached_tokens == len(SYSTEM)
    check_answer(model_type, second, cold(model_type, asked), is_alone=False)


def test_rows_one_by_one_continue_from_chunks_whose_front_is_gone(warm: Any, cold: Any) -> None:
    """A model whose caches cannot be merged answers beside another row as it does alone, out of kept KV too."""
    stepped = warm("llama4")
    stepped.say(prompt(SYSTEM, QUESTION))
    asked = [prompt(SYSTEM, words(9, 50)), prompt(SYSTEM, words(10, 90), words(11, 20))]
    for _ in range(2):  # the second time nothing but their last tokens is new, and what is kept was changed by no row
        neighbor = stepped.start(prompt(words(12, 150), max_tokens=60))
        while not neighbor.deltas:
            stepped.step()
        kept = stepped.model.prompts.fetch([*SYSTEM, 3]).cache
        assert [getattr(part, "start_position", 0) > 0 for part in kept] == [True] * 3 + [False]
        rows = [stepped.start(one, logprobs=0) for one in asked]
        while not all(row.has_ended for row in rows):
            assert not neighbor.has_ended
            stepped.step()
        assert all(row.usage.cached_tokens >= len(SYSTEM) for row in rows)
        for row, one in zip(rows, asked, strict=True):
            check_answer("llama4", row, cold("llama4", one), is_alone=False)
        stepped.model.cancel(neighbor.sequence_id)


@pytest.mark.parametrize("end", ["cancel", "pause", "fail"])
def test_whoever_waits_for_a_head_goes_on_without_its_leader(end: str, load: Load, cold: Any) -> None:
    """A row that waits for another is not lost when that one leaves early."""
    stepped = SteppedModel(load("qwen3_next"), prefill_step_tokens=64)
    head = words(1, 400)
    asked = prompt(head, words(2, 30), checkpoints=())
    leader = stepped.start(prompt(head, words(3, 30), checkpoints=()))
    follower = stepped.start(asked, logprobs=0)
    stepped.step(2)
    if end == "cancel":
        stepped.model.cancel(leader.sequence_id)
    elif end == "pause":
        stepped.model.pause(leader.sequence_id)
    else:
        stepped.model.fail_batch(GenerationFailed("the step failed"))
    while not follower.has_ended:
        assert stepped.model.is_busy
        stepped.step()
    check_answer("qwen3_next", follower, cold("qwen3_next", asked))


def test_those_that_waited_outlive_a_failed_batch(load: Load, cold: Any) -> None:
    """Rows that begin anew in a fresh batch are not mistaken for those that failed in the old one."""
    stepped = SteppedModel(load("qwen3"), prefill_step_tokens=64)
    head = words(1, 400)
    asked = [prompt(head, words(number, 30), checkpoints=()) for number in (2, 3, 4, 5)]
    leader = stepped.start(asked[0])
    other = stepped.start(prompt(words(9, 300), checkpoints=()))
    followers = [stepped.start(one, logprobs=0) for one in asked[1:]]
    stepped.step(2)
    stepped.model.fail_batch(GenerationFailed("the step failed"))
    assert leader.has_ended
    assert other.has_ended
    stepped.run(*followers)
    for one, row in zip(asked[1:], followers, strict=True):
        check_answer("qwen3", row, cold("qwen3", one), is_alone=False)


def test_checkpoints_keep_to_their_bytes(load: Load) -> None:
    """A row keeps on its way what it was granted for that: the end of its prompt first, then the head."""
    loaded = load("qwen3_next")
    one = loaded.facts.kv.checkpoint_bytes(400)
    asked = prompt(SYSTEM, QUESTION, words(3, 40), words(4, 40))
    ends = [len(SYSTEM), len(SYSTEM + QUESTION), len(SYSTEM + QUESTION) + 40]
    for n_bytes, expected in [(0, []), (one - 1, []), (one, ends[2:]), (2 * one, ends[::2]), (3 * one, ends)]:
        stepped = SteppedModel(loaded, prompt_cache_bytes=PLENTY, prefill_step_tokens=64)
        stepped.say(asked, checkpoint_bytes=n_bytes)
        kept = [end for end in ends if stepped.model.prompts.fetch(asked.tokens[: end + 1]).known == end]
        assert kept == expected


def test_a_head_that_nobody_announced_is_found(warm: Any) -> None:
    """Where prompts part without a template that says so, the third one is served from there."""
    stepped = warm("qwen3_next")
    head = words(1, 150)
    cached = [
        stepped.say(prompt(head, words(number, 60), checkpoints=(len(head) + 55,))).usage.cached_tokens
        for number in (2, 3, 4)
    ]
    assert cached == [0, 0, len(head)]


def test_another_ending_of_a_text_finds_a_checkpoint(warm: Any) -> None:
    """A text without a template has checkpoints near its end."""
    stepped = warm("gpt_oss")
    text = words(1, 900)
    stepped.say(prompt(text, checkpoints=()))
    asked = prompt(text[:850], words(2, 50), checkpoints=())
    assert stepped.say(asked).usage.cached_tokens == 900 - 128
