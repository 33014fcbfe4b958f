"""Log-probabilities of answers and of prompts, held against a plain forward pass."""

from __future__ import annotations

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxd.engine.base import FinishReason, Prefilling, PromptScored, SamplingParams
from mlxd.engine.loader import LoadedModel
from mlxd.engine.logprob import TokenLogprob
from mlxd.engine.scoring import LEAST_LOGPROB, token_logprob
from tests.engine.bench import WriteModel
from tests.support.sequence import Recorder
from tests.support.stepped_model import SteppedModel, load_now


@pytest.fixture(scope="module")
def loaded(write_model: WriteModel) -> LoadedModel:
    """The tiny model."""
    return load_now(write_model())


@pytest.fixture
def stepped(loaded: LoadedModel) -> SteppedModel:
    """The model, to be stepped by hand."""
    return SteppedModel(loaded)


def forward(loaded: LoadedModel, tokens: list[int]) -> Any:
    """Return the log-softmax of the logits after each token, [tokens, vocabulary]."""
    logits = loaded.model(mx.array([tokens]))[0].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def reported(sequence: Recorder) -> list[TokenLogprob]:
    """Return the logprobs of all deltas."""
    return [logprob for delta in sequence.deltas for logprob in delta.logprobs]


@pytest.mark.parametrize("company", [0, 3])
def test_each_token_comes_with_its_logprob(stepped: SteppedModel, loaded: LoadedModel, company: int) -> None:
    """The chosen token's and the likeliest ones' are those of a forward pass, alone and in a batch."""
    others = [stepped.start(f"Other {number}") for number in range(company)]
    sequence = stepped.start("Once upon", logprobs=4)
    stepped.run(sequence, *others)

    prompt = stepped.prompt("Once upon").tokens
    answer = [entry.token for entry in reported(sequence)]
    expected = forward(loaded, [*prompt, *answer])[len(prompt) - 1 :]
    assert len(answer) == sequence.usage.completion_tokens == 20
    assert b"".join(entry.raw for entry in reported(sequence)).decode() == sequence.text()
    for entry, row in zip(reported(sequence), expected, strict=False):
        best = np.argsort(-row)[:4]
        assert [other.token for other in entry.top] == list(best)
        assert entry.logprob == pytest.approx(row[entry.token], abs=1e-4)
        assert [other.logprob for other in entry.top] == pytest.approx(row[best].tolist(), abs=1e-4)


def test_logprobs_are_taken_before_temperature(stepped: SteppedModel) -> None:
    """They say what the model thinks, not how it was sampled."""
    hot, cold = (
        stepped.say("Once upon", SamplingParams(temperature=temperature, seed=4), logprobs=3, max_tokens=1)
        for temperature in (2.0, 0.5)
    )

    assert reported(hot)[0].top == reported(cold)[0].top


def test_nothing_is_reported_unasked(stepped: SteppedModel) -> None:
    """Rows that did not ask pay nothing."""
    assert reported(stepped.say("Once upon")) == []


def test_zero_alternatives_still_report_the_token(stepped: SteppedModel) -> None:
    """0 is a number of alternatives, and not "no logprobs"."""
    entries = reported(stepped.say("Once upon", logprobs=0))

    assert len(entries) == 20
    assert all(entry.top == () and entry.logprob is not None for entry in entries)


def test_tokens_of_a_stop_string_are_not_reported(stepped: SteppedModel) -> None:
    """What is not in the text is not in the logprobs."""
    text = stepped.say("Once upon").text()
    sequence = stepped.say("Once upon", stop=(text[5:8],), logprobs=1)

    assert sequence.reason is FinishReason.STOP
    assert b"".join(entry.raw for entry in reported(sequence)).decode().startswith(sequence.text())
    assert len(reported(sequence)) < 8


def test_prompt_is_scored_token_by_token(stepped: SteppedModel, loaded: LoadedModel) -> None:
    """Every token of the prompt but the first has its logprob, over the borders of slices."""
    text = "The prompt of an evaluation harness, longer than one slice. " * 3
    sequence = stepped.say(text, logprobs=2, scores_prompt=True)

    (scored,) = sequence.of(PromptScored)
    tokens = list(stepped.prompt(text).tokens)
    expected = forward(loaded, tokens)
    assert [entry.token for entry in scored.logprobs] == tokens
    assert scored.logprobs[0].logprob is None
    assert scored.logprobs[0].top == ()
    values = [entry.logprob for entry in scored.logprobs[1:]]
    assert values == pytest.approx([expected[place, token] for place, token in enumerate(tokens[1:])], abs=1e-4)
    assert all(len(entry.top) == 2 for entry in scored.logprobs[1:])
    assert sequence.text() == stepped.say(text).text()
    assert sequence.events.index(scored) < sequence.events.index(sequence.deltas[0])


def test_prompt_of_one_token_has_nothing_to_score(stepped: SteppedModel) -> None:
    """Its only token has nothing before it."""
    (scored,) = stepped.say("O", logprobs=2, scores_prompt=True).of(PromptScored)

    assert [entry.logprob for entry in scored.logprobs] == [None]


def test_scoring_is_shared_by_the_answers_of_one_prompt(stepped: SteppedModel) -> None:
    """Each of them reports the prompt, which is read once."""
    prompt = stepped.prompt("Score me once, and then answer twice.")
    rows = [stepped.start(prompt, logprobs=1, scores_prompt=True) for _ in range(2)]
    stepped.run(*rows)

    assert rows[0].of(PromptScored)[0].logprobs == rows[1].of(PromptScored)[0].logprobs
    assert rows[0].text() == rows[1].text()


def test_scoring_can_be_paused_cancelled_and_taken_up_again(stepped: SteppedModel) -> None:
    """A row that is being scored obeys as any other does, and reports its prompt once."""
    text = "A long prompt, to be scored in several slices. " * 5
    alone = stepped.say(text).text()
    paused, cancelled = (stepped.start(text, logprobs=1, scores_prompt=True) for _ in range(2))
    stepped.step()
    stepped.model.pause(paused.sequence_id)
    stepped.model.cancel(cancelled.sequence_id)
    assert not stepped.model.is_busy
    stepped.model.resume(paused.sequence_id, 2000)
    stepped.run(paused)

    assert cancelled.reason is FinishReason.CANCELLED
    assert (paused.text(), len(paused.of(PromptScored))) == (alone, 1)


def test_impossible_token_has_a_finite_logprob(loaded: LoadedModel) -> None:
    """JSON has no infinity."""
    tokens = loaded.vocabulary.tokens(loaded.facts.vocab_size, "logprobs")
    logprobs = np.full(loaded.facts.vocab_size, -np.inf, np.float32)
    logprobs[3] = 0.0

    entry = token_logprob(tokens, logprobs, 5, 2)

    assert entry.logprob == LEAST_LOGPROB
    assert [other.logprob for other in entry.top] == [0.0, LEAST_LOGPROB]


def test_slices_are_short_while_others_wait_for_tokens(loaded: LoadedModel) -> None:
    """Alone a prompt is read in whole slices; beside a stream they shrink to what the target allows."""
    text = "A prompt of some length, to be read in slices. " * 6
    sizes = {}
    for name, company in (("alone", False), ("beside a stream", True)):
        stepped = SteppedModel(loaded, target_gap_ms=0)  # no slice is quick enough
        stream = stepped.start("Someone streams", max_tokens=400)
        stepped.step(3)
        if not company:
            stepped.model.cancel(stream.sequence_id)
        sequence = stepped.start(text, scores_prompt=True)
        while not any(isinstance(event, PromptScored) for event in sequence.events):
            stepped.step()
        # The first event of the row in the batch has all but the last token too.
        done = sorted({event.done for event in sequence.events if isinstance(event, Prefilling)})
        sizes[name] = [after - before for before, after in itertools.pairwise([1, *done])]

    assert sizes["alone"][:4] == [64, 64, 64, 64]
    assert sizes["beside a stream"][:5] == [64, 32, 16, 16, 16]
