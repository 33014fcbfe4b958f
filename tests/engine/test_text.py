"""`engine.text`: rows of many sequences in one batch, grants, pauses, failures."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest

from mlxd.engine.base import FinishReason, PreparedPrompt, SamplingParams, SchedulingParams, Usage
from mlxd.engine.decoder import ChunkTokens, Made, Prefilled
from mlxd.engine.loader import LoadedModel
from mlxd.protocol.errors import GenerationFailed, OutOfMemory, RequestCancelled
from tests.engine.bench import WriteModel
from tests.support.sequence import GREEDY, Recorder
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.tiny_model import END, token_id

PROMPTS = ("a", "Hello there", "The quick brown fox jumps over the lazy dog", "x" * 200, "1 + 1 =")
SEEDED = [SamplingParams(temperature=0.9, top_p=0.95, top_k=30, min_p=0.01, seed=seed) for seed in (1, 2, 2**63, 1, 5)]
FORCE_END = SamplingParams(temperature=0, logit_bias=((token_id(END), 100.0),))


@pytest.fixture(scope="module")
def loaded(write_model: WriteModel) -> LoadedModel:
    """The tiny model of seed 0."""
    return load_now(write_model())


@pytest.fixture(scope="module", params=["full", "sliding window"])
def any_loaded(request: pytest.FixtureRequest, write_model: WriteModel) -> LoadedModel:
    """A model with full attention, and one of which every second layer looks at 32 tokens."""
    return load_now(write_model() if request.param == "full" else write_model(sliding_window=32))


@pytest.fixture
def stepped(loaded: LoadedModel) -> SteppedModel:
    """A model with no prompt cache."""
    return SteppedModel(loaded)


def test_rows_of_several_requests_decode_in_one_batch(stepped: SteppedModel) -> None:
    """Every step makes one token for each of the rows, in one batch."""
    sequences = [stepped.start(text, max_tokens=30) for text in PROMPTS]
    while stepped.decoding_rows < len(PROMPTS):
        stepped.step()
    for _ in range(10):
        before = [len(sequence.deltas) for sequence in sequences]
        stepped.step()
        assert stepped.decoding_rows == len(PROMPTS)
        assert [len(sequence.deltas) for sequence in sequences] == [count + 1 for count in before]


@pytest.mark.parametrize("samplings", [[GREEDY] * 5, SEEDED], ids=["greedy", "seeded"])
def test_batch_says_what_each_says_alone(any_loaded: LoadedModel, samplings: list[SamplingParams]) -> None:
    """Neighbours, padding and the moment of joining change no row's text."""
    stepped = SteppedModel(any_loaded)
    alone = [stepped.say(text, params, max_tokens=60).text() for text, params in zip(PROMPTS, samplings, strict=True)]
    together = []
    for text, params in zip(PROMPTS, samplings, strict=True):
        together.append(stepped.start(text, params, max_tokens=60))
        stepped.step(3)
    stepped.run(*together)
    assert [sequence.text() for sequence in together] == alone
    assert len(set(alone)) == 5


def test_a_neighbor_with_logprobs_changes_no_text(write_model: WriteModel) -> None:
    """In half precision too, seeded rows say the same whether or not a row beside them has its logprobs read."""
    loaded = load_now(write_model())
    loaded.model.set_dtype(mx.bfloat16)
    texts = []
    for logprobs in (None, 3):
        stepped = SteppedModel(loaded)
        rows = [stepped.start("Hello", SamplingParams(seed=seed), max_tokens=40) for seed in range(12)]
        neighbor = stepped.start("Bye", max_tokens=40, logprobs=logprobs)
        stepped.run(*rows, neighbor)
        texts.append([row.text() for row in (*rows, neighbor)])
    assert texts[0] == texts[1]


def test_seed_decides(stepped: SteppedModel) -> None:
    """Equal seeds say the same, others something else; without a seed two runs differ."""
    texts = [stepped.say("Hello", SamplingParams(seed=seed), max_tokens=40).text() for seed in (3, 3, 4, None, None)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_rows_without_a_seed_share_a_sampler(stepped: SteppedModel) -> None:
    """Rows with equal parameters hold the same sampler object, which makes it one call; a seed is a row's own."""
    sequences = [
        stepped.start("a", params, max_tokens=5)
        for params in (SamplingParams(temperature=0.5), SamplingParams(temperature=0.5), SamplingParams(seed=1))
    ]
    while stepped.decoding_rows < 3:
        stepped.step()
    first, second, seeded = stepped.groups[0].samplers
    assert first is second is not seeded
    stepped.run(*sequences)


def test_no_logprob_is_read(stepped: SteppedModel) -> None:
    """Reading one would wait for the step in flight."""
    decoder_step = stepped.decoder.step

    class Guarded:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    def guarded_step(chunk_tokens: ChunkTokens) -> tuple[list[Prefilled], list[Made]]:
        prefilled, made = decoder_step(chunk_tokens)
        return prefilled, [replace(tokens, logprobs=(Guarded(),)) for tokens in made]

    stepped.decoder.step = guarded_step
    assert stepped.say("Hello", stop=("~~",)).usage.completion_tokens == 20


def test_end_token_stops(stepped: SteppedModel) -> None:
    """The model's own end is a stop; its token is counted, and is no text."""
    sequence = stepped.say("Hello", FORCE_END)
    assert (sequence.reason, sequence.text()) == (FinishReason.STOP, "")
    assert sequence.usage == Usage(prompt_tokens=5, cached_tokens=0, completion_tokens=1)


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_length_is_exact(stepped: SteppedModel, max_tokens: int) -> None:
    """`max_tokens` tokens are made, not one more or less."""
    sequence = stepped.say("Hello", max_tokens=max_tokens)
    assert (sequence.reason, sequence.usage.completion_tokens) == (FinishReason.LENGTH, max_tokens)
    assert len(sequence.text()) == max_tokens


def test_stop_string_on_the_last_token_is_a_stop(stepped: SteppedModel) -> None:
    """A stop string that is complete with the last token counts as a stop, not as the end of the length."""
    text = stepped.say("Hello").text()
    sequence = stepped.say("Hello", stop=(text[-2:],), max_tokens=text.index(text[-2:]) + 2)
    assert (sequence.reason, sequence.text()) == (FinishReason.STOP, text[: text.index(text[-2:])])


def test_stopped_row_leaves_the_batch_at_once(stepped: SteppedModel) -> None:
    """No further token is made for a row whose stop string was matched, and its neighbours go on."""
    text = stepped.say("Hello").text()
    stopped, other = stepped.start("Hello", stop=(text[5:7],)), stepped.start("Bye", max_tokens=30)
    while not stopped.has_ended:
        stepped.step()
    assert stepped.decoding_rows == 1
    stepped.run(other)
    assert other.usage.completion_tokens == 30


def test_kv_never_passes_the_grant(any_loaded: LoadedModel) -> None:
    """At no step does a row have more tokens in its KV than were granted, and it stops with the grant used up."""
    stepped = SteppedModel(any_loaded)
    sequence = stepped.start("Hello", kv_tokens=40, max_tokens=100)
    seen = set()
    while not sequence.pauses:
        stepped.step()
        seen |= {part.offset.item() for group in stepped.groups for part in group.prompt_cache}
    assert max(seen) == 39  # with the 40th token it left
    assert sequence.pauses[-1].tokens == 40
    stepped.model.resume(sequence.sequence_id, 41)
    stepped.run()
    assert sequence.pauses[-1].tokens == 41


def test_grant_that_holds_no_token_pauses_before_the_prefill(stepped: SteppedModel) -> None:
    """A grant that the prompt fills is no place to make a token in."""
    sequence = stepped.start("Hello", kv_tokens=5)
    assert [pause.tokens for pause in sequence.pauses] == [5]
    assert not stepped.model.is_busy
    stepped.model.resume(sequence.sequence_id, 100)
    stepped.run(sequence)
    assert sequence.text() == stepped.say("Hello").text()


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED[0], replace(SEEDED[1], presence_penalty=1.5)])
@pytest.mark.parametrize("prompt_cache_bytes", [0, 100_000_000])
def test_resumed_text_is_that_of_an_unhurried_run(
    any_loaded: LoadedModel, sampling: SamplingParams, prompt_cache_bytes: int
) -> None:
    """Pauses at any moment change nothing: not the draws of a seed, nor penalties, nor held-back text."""
    unhurried = SteppedModel(any_loaded).say("Hello", sampling, max_tokens=60, stop=("\0never",)).text()
    stepped = SteppedModel(any_loaded, prompt_cache_bytes=prompt_cache_bytes)
    other = stepped.start(PROMPTS[2], max_tokens=150)
    sequence = stepped.start("Hello", sampling, max_tokens=60, stop=("\0never",))
    for steps in (0, 1, 2, 3, 5, 8, 13):
        stepped.step(steps)
        stepped.model.pause(sequence.sequence_id)
        stepped.step(2)
        stepped.model.resume(sequence.sequence_id, 1000)
    stepped.run(sequence, other)
    assert sequence.text() == unhurried
    assert len(sequence.pauses) == 7


def test_cancelled_prefill_is_kept_for_the_next_try(loaded: LoadedModel) -> None:
    """What was processed of a cancelled prompt need not be processed again."""
    stepped = SteppedModel(loaded, prompt_cache_bytes=100_000_000, prefill_step_tokens=64)
    text = "x" * 300
    alone = stepped.say("y" + text).text()
    sequence = stepped.start(text)
    stepped.step(2)
    stepped.model.cancel(sequence.sequence_id)
    assert sequence.usage == Usage(prompt_tokens=300, cached_tokens=0, completion_tokens=0)
    again = stepped.say(text)
    assert again.usage.cached_tokens == 128
    assert (again.prefills[0].done, again.prefills[-1].done) == (128, 300)
    assert again.text() == SteppedModel(loaded).say(text).text()
    assert stepped.say("y" + text).text() == alone


def test_cancel_before_the_first_step_keeps_nothing(loaded: LoadedModel) -> None:
    """KV of no token is not worth an entry."""
    stepped = SteppedModel(loaded, prompt_cache_bytes=100_000_000)
    sequence = stepped.start("Hello")
    stepped.model.cancel(sequence.sequence_id)
    assert sequence.reason is FinishReason.CANCELLED
    assert stepped.model.prompts.stored_bytes == 0
    assert not stepped.model.is_busy


def test_conversation_hits_the_prompt_cache(loaded: LoadedModel) -> None:
    """A prompt that goes on from an earlier prompt and its answer is processed from there on."""
    stepped = SteppedModel(loaded, prompt_cache_bytes=100_000_000)
    first = stepped.say("Hello")
    longer = "Hello" + first.text() + " and so on"
    assert len(longer) == 5 + 20 + 10
    second = stepped.say(longer)
    assert second.usage.cached_tokens == 25
    assert second.text() == SteppedModel(loaded).say(longer).text()


def test_cancel_takes_effect_before_the_next_step(stepped: SteppedModel) -> None:
    """Not one more token is made for a cancelled row."""
    sequence, other = stepped.start("Hello", max_tokens=50), stepped.start("Bye", max_tokens=50)
    stepped.step(10)
    made = len(sequence.deltas)
    stepped.model.cancel(sequence.sequence_id)
    assert sequence.usage.completion_tokens == made
    assert stepped.decoding_rows == 1
    stepped.run(other)


def test_failed_step_fails_the_batch_and_no_more(stepped: SteppedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in the batch fail, a paused one does not, and the next sequence runs in a fresh batch."""
    expected = stepped.say("Hello").text()
    paused = stepped.start("Hello", kv_tokens=10)
    stepped.run()
    sequence = stepped.start("Bye")
    stepped.step(3)
    stepped.model.fail_batch(GenerationFailed("it broke"))
    assert sequence.error.message == "it broke"
    assert not stepped.model.is_busy
    assert stepped.say("Hello").text() == expected
    stepped.model.resume(paused.sequence_id, 100)
    stepped.run(paused)
    assert paused.text() == expected


def test_failing_text_fails_one_row(stepped: SteppedModel) -> None:
    """A row whose tokens cannot be turned into text fails; its neighbours do not notice."""
    expected = stepped.say("Bye").text()
    sequence, other = stepped.start("Hello"), stepped.start("Bye")
    stepped.step(5)

    def fail(token: int) -> None:
        raise KeyError(token)

    stepped.model._rows[sequence.sequence_id].output._detokenizer.add_token = fail
    stepped.run(sequence, other)
    assert isinstance(sequence.error, GenerationFailed)
    assert "KeyError" in sequence.error.message
    assert other.text() == expected


@pytest.mark.parametrize("first_failing_token", [0, 4])
@pytest.mark.parametrize(
    ("sampling", "broken"),
    [
        (SamplingParams(temperature=0, logit_bias=((70, 1.0),)), "processor"),
        (SamplingParams(seed=4), "sampler of its own"),
        (SamplingParams(temperature=0.5), "shared sampler"),
    ],
)
def test_failing_choice_fails_one_row(
    stepped: SteppedModel, sampling: SamplingParams, broken: str, first_failing_token: int
) -> None:
    """A row whose sampler or logits processor raises fails with that, from the first token on too, and no other row."""
    params = SamplingParams(seed=9, presence_penalty=0.5)
    expected = stepped.say("Bye", params, max_tokens=30).text()
    other = stepped.start("Bye", params, max_tokens=30)
    stepped.step(3)
    sequence = stepped.start("Hello", sampling)
    row = stepped.model._rows[sequence.sequence_id]
    guard = row.guards[0] if broken == "processor" else row.sampler
    choose, calls = guard._call, itertools.count()

    def fail(*arguments: mx.array) -> mx.array:
        if next(calls) == first_failing_token:
            raise IndexError("no such token")
        return choose(*arguments)

    guard._call = fail
    stepped.run(sequence, other)
    assert sequence.error.message == "model 'tiny' failed while answering: IndexError: no such token"
    assert sum(len(delta.text) > 0 for delta in sequence.deltas) <= first_failing_token
    assert (other.text(), other.usage.completion_tokens) == (expected, 30)
    assert stepped.say("Hello", sampling).reason is FinishReason.LENGTH


def test_failure_after_the_last_token_is_none(stepped: SteppedModel) -> None:
    """The token after the last is computed and thrown away, whatever became of it."""
    sampling = SamplingParams(seed=4)
    expected = stepped.say("Hello", sampling, max_tokens=3)
    sequence = stepped.start("Hello", sampling, max_tokens=3)
    guard = stepped.model._rows[sequence.sequence_id].sampler
    choose, calls = guard._call, itertools.count()

    def fail(logprobs: mx.array) -> mx.array:
        if next(calls) == 3:
            raise IndexError("no such token")
        chosen: mx.array = choose(logprobs)
        return chosen

    guard._call = fail
    stepped.run(sequence)
    assert isinstance(guard.failure, IndexError)
    assert (sequence.text(), sequence.reason) == (expected.text(), FinishReason.LENGTH)


def test_refused_insert_fails_one_row(stepped: SteppedModel) -> None:
    """A sequence that mlx-lm refuses fails alone."""
    other = stepped.start("Bye")
    stepped.step(3)
    sequence = stepped.start(PreparedPrompt((), 5))
    assert isinstance(sequence.error, GenerationFailed)
    stepped.run(other)
    assert other.reason is FinishReason.LENGTH


def test_out_of_memory_is_told_apart(stepped: SteppedModel) -> None:
    """MLX's allocator speaks in words only; its failure has an error of its own."""
    sequence = stepped.start("Hello")

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[malloc] Unable to allocate 123 bytes.")

    stepped.model.prompts.fetch = fail  # type: ignore[method-assign,assignment]
    assert isinstance(stepped.start("Bye").error, OutOfMemory)
    stepped.run(sequence)


def test_close_fails_what_runs(stepped: SteppedModel) -> None:
    """Sequences of a model that is let go fail with the reason, paused ones too."""
    running, paused = stepped.start("Hello"), stepped.start("Hello", kv_tokens=5)
    stepped.model.close(RequestCancelled("over"))
    assert [sequence.error.message for sequence in (running, paused)] == ["over", "over"]


def test_long_prefill_yields_to_a_stream(loaded: LoadedModel) -> None:
    """While another row decodes, a long prompt is processed in several steps, and the stream gets a token in each."""
    stepped = SteppedModel(loaded, target_gap_ms=1)
    stream = stepped.start("Hello", max_tokens=200)
    stepped.step(5)
    prompt = stepped.start("x" * 1500, max_tokens=5)
    before = len(stream.deltas)
    steps = 0
    while not prompt.deltas:
        stepped.step()
        steps += 1
    assert steps > 1500 // 128
    assert len(stream.deltas) - before == steps
    stepped.run(stream, prompt)


def test_lone_prefill_takes_whole_steps(loaded: LoadedModel) -> None:
    """With nobody to wait for it, a prompt is processed in the largest steps allowed; a change applies at once."""
    stepped = SteppedModel(loaded, prefill_step_tokens=250)
    prompt = stepped.start("x" * 1001, max_tokens=1)
    stepped.step(2)
    stepped.model.set_scheduling(SchedulingParams(prefill_step_tokens=200, target_gap_ms=30))
    stepped.run(prompt)
    assert [event.done for event in prompt.prefills] == [0, 250, 500, 700, 900, 1000, 1001]


def test_short_prompt_does_not_wait_for_a_long_one(stepped: SteppedModel) -> None:
    """Of two prompts that are processed side by side, the short one is not padded to the whole of the long one."""
    long, short = stepped.start("x" * 1500, max_tokens=5), stepped.start("Hello", max_tokens=5)
    stepped.step(3)
    assert len(short.deltas) == 1
    assert long.prefills[-1].done < 1500
    stepped.run(long, short)


def _distinct(sequence: Recorder) -> bool:
    return len(set(sequence.text())) == len(sequence.text())


def test_presence_penalty_counts_the_answer(stepped: SteppedModel) -> None:
    """A strong penalty makes all characters of the answer distinct, and does not touch those of the prompt."""
    text = stepped.say("Hello", max_tokens=40).text()
    prompt = "Hello" + text[:1]
    plain = stepped.say(prompt, max_tokens=40)
    penalized = stepped.say(prompt, SamplingParams(temperature=0, presence_penalty=100), max_tokens=40)
    assert not _distinct(plain)
    assert _distinct(penalized)
    assert penalized.text()[0] == plain.text()[0]


def test_frequency_penalty_grows_with_each_use(stepped: SteppedModel) -> None:
    """A character can come back under a small penalty until its uses add up."""
    plain = stepped.say("Hello", max_tokens=60).text()
    penalized = stepped.say("Hello", SamplingParams(temperature=0, frequency_penalty=1.5), max_tokens=60).text()
    assert max(map(penalized.count, penalized)) < max(map(plain.count, plain))


def test_repetition_penalty_changes_the_answer(stepped: SteppedModel) -> None:
    """It acts, and 1 is neutral."""
    plain, neutral, strong = (
        stepped.say("Hello", SamplingParams(temperature=0, repetition_penalty=value), max_tokens=40).text()
        for value in (1.0, 1, 50.0)
    )
    assert plain == neutral != strong


def test_logit_bias_bans_and_forces(stepped: SteppedModel) -> None:
    """A strong bias decides which token comes."""
    first = stepped.say("Hello").text()[0]
    banned = stepped.say("Hello", SamplingParams(temperature=0, logit_bias=((token_id(first), -100.0),))).text()
    forced = stepped.say("Hello", SamplingParams(temperature=1, logit_bias=((token_id("z"), 100.0),))).text()
    assert first not in banned
    assert forced == "z" * 20


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, top_p=0.1, seed=1),
        SamplingParams(temperature=1, top_p=0),
        SamplingParams(temperature=1, top_p=1e-9),
        SamplingParams(temperature=1, top_k=1),
        SamplingParams(temperature=1, min_p=1),
        SamplingParams(temperature=1e-30),
    ],
)
def test_zero_is_a_value(stepped: SteppedModel, params: SamplingParams) -> None:
    """Temperature 0, top_p 0, and what comes down to the most likely token, are greedy."""
    assert stepped.say("Hello", params).text() == stepped.say("Hello").text()
