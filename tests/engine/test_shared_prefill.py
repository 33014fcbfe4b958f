"""Several answers to one prompt: one prefill for all of them, whatever becomes of the row that does it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxd.engine.base import FinishReason, PromptScored, SamplingParams
from mlxd.engine.loader import LoadedModel
from mlxd.protocol.errors import GenerationFailed
from tests.engine.bench import WriteModel
from tests.support.counting_model import CountingModel
from tests.support.stepped_model import SteppedModel, load_now

TEXT = "A prompt that several answers share, longer than a step of the prefill. " * 3


@pytest.fixture(scope="module")
def loaded(write_model: WriteModel) -> LoadedModel:
    """The tiny model."""
    tiny = load_now(write_model())
    return replace(tiny, model=CountingModel(tiny.model))


@pytest.fixture
def stepped(loaded: LoadedModel) -> SteppedModel:
    """Without a prompt cache, so that nothing is shared by way of it."""
    return SteppedModel(loaded, prefill_step_tokens=64)


def prefilled_tokens(stepped: SteppedModel) -> int:
    """Return how many prompt tokens went through the model."""
    return int(stepped.loaded.model.prefilled_tokens)


def test_rows_of_one_prompt_are_prefilled_once(stepped: SteppedModel) -> None:
    """The others begin with the first one's KV, and each says what it says alone."""
    alone = [stepped.say(TEXT, SamplingParams(temperature=1.0, seed=seed)).text() for seed in (1, 2, 3)]
    before = prefilled_tokens(stepped)

    prompt = stepped.prompt(TEXT)
    rows = [stepped.start(prompt, SamplingParams(temperature=1.0, seed=seed)) for seed in (1, 2, 3)]
    stepped.run(*rows)

    assert [row.text() for row in rows] == alone
    assert prefilled_tokens(stepped) - before == len(prompt.tokens) - 1
    assert [row.usage.prompt_tokens for row in rows] == [len(prompt.tokens)] * 3


def test_equal_prompts_of_different_requests_are_not_tied_together(stepped: SteppedModel) -> None:
    """Two requests never wait for each other, even when their texts are equal."""
    rows = [stepped.start(stepped.prompt(TEXT)) for _ in range(2)]
    before = prefilled_tokens(stepped)
    stepped.run(*rows)

    assert prefilled_tokens(stepped) - before == 2 * (rows[0].usage.prompt_tokens - 1)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_another_row_takes_over_when_the_first_is_cancelled(stepped: SteppedModel, steps: int) -> None:
    """Whoever waits for a prefill does not wait forever."""
    alone = stepped.say(TEXT).text()
    prompt = stepped.prompt(TEXT)
    rows = [stepped.start(prompt) for _ in range(3)]
    stepped.step(steps)
    stepped.model.cancel(rows[0].sequence_id)
    stepped.run(*rows)

    assert rows[0].reason is FinishReason.CANCELLED
    assert [row.text() for row in rows[1:]] == [alone] * 2


def test_waiting_row_can_be_paused_and_cancelled(stepped: SteppedModel) -> None:
    """A row without KV obeys as any other does."""
    alone = stepped.say(TEXT).text()
    prompt = stepped.prompt(TEXT)
    first, paused, cancelled = (stepped.start(prompt) for _ in range(3))
    stepped.step()
    stepped.model.pause(paused.sequence_id)
    stepped.model.cancel(cancelled.sequence_id)
    stepped.run(first, cancelled)
    assert len(paused.pauses) == 1
    stepped.model.resume(paused.sequence_id, len(prompt.tokens) + 20)
    stepped.run(paused)

    assert [first.text(), paused.text(), cancelled.reason] == [alone, alone, FinishReason.CANCELLED]


def test_row_that_comes_late_goes_its_own_way(stepped: SteppedModel) -> None:
    """When the first is decoding already there is nothing left to share."""
    prompt = stepped.prompt(TEXT)
    first = stepped.start(prompt)
    while not first.deltas:
        stepped.step()
    late = stepped.start(prompt)
    stepped.run(first, late)

    assert late.text() == first.text()


def test_cancelling_a_row_that_waits_leaves_rows_of_a_fresh_batch_alone(stepped: SteppedModel) -> None:
    """After a failure the generator gives its names for rows again; a row that waits for its prompt has none."""
    prompt = stepped.prompt(TEXT)
    scored = stepped.start(prompt, scores_prompt=True)
    while not any(isinstance(event, PromptScored) for event in scored.events):
        stepped.step()
    stepped.model.pause(scored.sequence_id)
    leader = stepped.start(prompt, scores_prompt=True)
    stepped.model.resume(scored.sequence_id, 2000)
    stepped.model.fail_batch(GenerationFailed("it broke"))
    other = stepped.start("Someone else")
    stepped.model.cancel(scored.sequence_id)
    stepped.run(leader, other)

    assert other.reason is FinishReason.LENGTH
    assert leader.reason is FinishReason.LENGTH
