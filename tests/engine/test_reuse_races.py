"""Rows that come, end and fail while others wait for their KV: nobody is lost, and nobody waits for nothing."""

from __future__ import annotations

import dataclasses
import gc

import mlx.core as mx
import pytest

from mlxd.engine.base import PreparedPrompt
from mlxd.engine.kv import CacheMaker
from mlxd.engine.kv_shape import LONG_PROMPT_TOKENS
from mlxd.engine.loader import LoadedModel
from mlxd.protocol.errors import GenerationFailed
from tests.engine.bench import WriteModel
from tests.engine.test_reuse import prompt, words
from tests.support.every_architecture import config_of, make_model
from tests.support.stepped_model import SteppedModel, load_now

STEP = 64
HEAD = words(1, 14 * STEP)
KNOWN = HEAD[: 11 * STEP]


@pytest.fixture(scope="module")
def loaded(write_model: WriteModel) -> LoadedModel:
    """A tiny model whose KV can be cut anywhere."""
    tiny = load_now(write_model())
    mx.random.seed(7)
    model = make_model(config_of("qwen3"))
    mx.eval(model.parameters())
    kv, vocab_size = CacheMaker(model).probe()
    return dataclasses.replace(tiny, model=model, facts=dataclasses.replace(tiny.facts, kv=kv, vocab_size=vocab_size))


def text(*parts: tuple[int, ...], max_tokens: int = 4) -> PreparedPrompt:
    """Return a prompt that says nothing of its ends."""
    return prompt(*parts, max_tokens=max_tokens, checkpoints=())


def test_who_takes_over_after_a_failure_stays_in_the_batch(loaded: LoadedModel) -> None:
    """The rows of a fresh batch are not forgotten with those of the old one that had the same names."""
    stepped = SteppedModel(loaded, prompt_cache_bytes=10**9, prefill_step_tokens=STEP)
    scored = stepped.start(text(KNOWN, words(9, 2), max_tokens=1), scores_prompt=True)
    stepped.step(9)
    leader, other = stepped.start(text(HEAD, words(2, 30))), stepped.start(text(words(3, 1500)))
    waiting = [stepped.start(text(HEAD, words(number, 30))) for number in (4, 5)]
    while not scored.has_ended:
        stepped.step()
    stepped.model.fail_batch(GenerationFailed("the step failed"))
    assert leader.error.message == other.error.message == "the step failed"
    stepped.run(*waiting)
    assert [len(row.deltas) > 0 for row in waiting] == [True, True]


@pytest.mark.parametrize("max_tokens", range(1, 7))
def test_a_row_that_ends_in_the_same_step_gives_nothing(max_tokens: int, loaded: LoadedModel) -> None:
    """Whoever has waited for one row does not fail because another one that it is like has just ended."""
    stepped = SteppedModel(loaded, prefill_step_tokens=STEP)
    ending = stepped.start(text(HEAD, words(2, 62), max_tokens=max_tokens), scores_prompt=True)
    stepped.step(4)
    leader = stepped.start(text(HEAD, words(3, 30)))
    waiting = stepped.start(text(HEAD, words(2, 62), words(4, 30)))
    stepped.run(ending, leader, waiting)
    assert waiting.usage.cached_tokens >= len(HEAD)


def test_a_short_prompt_does_not_stand_in_line_with_a_long_one(loaded: LoadedModel) -> None:
    """Long prompts are processed one after the other; a short one that begins like the last of them is not kept."""
    stepped = SteppedModel(loaded, prefill_step_tokens=STEP)
    first = stepped.start(text(words(2, LONG_PROMPT_TOKENS + 500)))
    stepped.step()
    second = stepped.start(text(words(1, 300), words(3, LONG_PROMPT_TOKENS)))
    short = stepped.start(text(words(1, 300), words(4, 20)))
    while not short.has_ended:
        assert not first.deltas
        stepped.step()
    stepped.run(first, second)


def test_what_waits_does_not_hold_the_batch_it_was_taken_from(loaded: LoadedModel) -> None:
    """A prompt that stands in line has a copy of its head, not a view of all rows from which it comes."""
    stepped = SteppedModel(loaded, prefill_step_tokens=512)
    rows = [stepped.start(text(HEAD, words(number, 1000), max_tokens=600)) for number in (2, 3, 4, 5)]
    while not all(row.deltas for row in rows):
        stepped.step()
    long = stepped.start(text(words(6, 3000)))
    before = _held_bytes(stepped)
    waiting = stepped.start(text(HEAD, words(7, 3000)))
    taken = _held_bytes(stepped) - before
    more = loaded.facts.kv.bytes_for(512)  # of the long one, in a step
    assert 0 < taken < loaded.facts.kv.bytes_for(len(HEAD)) + 2 * more
    for row in [*rows, long, waiting]:
        stepped.model.cancel(row.sequence_id)


def _held_bytes(stepped: SteppedModel) -> int:
    stepped.step()
    gc.collect()
    mx.synchronize()
    return mx.get_active_memory()
