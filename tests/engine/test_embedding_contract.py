"""What `base.Engine` promises of vectors, on the fake (the pool's tests stand on it) and for real."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlxd.engine.base import Engine, Failed, Finished, FinishReason, Paused, Usage
from mlxd.engine.vector import Embedded, EmbeddingRequest, PreparedInputs
from mlxd.protocol.errors import ContextLengthExceeded, InvalidRequest, RequestCancelled
from tests.engine.bench import Bench
from tests.support.sequence import Recorder, embed, prepare, start

TEXTS = ("one", "another one", "x" * 700, "a", "one")


async def inputs(bench: Bench, engine: Engine, *texts: str | tuple[int, ...], **options: Any) -> PreparedInputs:
    """Prepare texts."""
    return await bench.wait(engine.prepare_inputs(EmbeddingRequest(texts, **options)))


async def vectors(bench: Bench, engine: Engine, *texts: str) -> Recorder:
    """Make the vectors of texts."""
    return await bench.wait(embed(engine, await inputs(bench, engine, *texts)).ended())


async def test_vectors_come_in_the_order_of_the_texts(bench: Bench, loaded: Engine) -> None:
    """Each text has the vector that it has alone, at unit length, and the usage counts all tokens."""
    together = await vectors(bench, loaded, *TEXTS)
    alone = [(await vectors(bench, loaded, text)).vectors[0] for text in TEXTS]

    facts = loaded.facts.vectors
    assert facts is not None
    assert together.vectors.shape == (len(TEXTS), facts.dimensions)
    np.testing.assert_allclose(together.vectors, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together.vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(together.vectors[0], together.vectors[1])
    assert [type(event) for event in together.events] == [Embedded, Finished]
    assert (together.reason, together.usage) == (FinishReason.STOP, Usage(sum(map(len, TEXTS)), 0, 0))


async def test_requests_run_side_by_side(bench: Bench, loaded: Engine) -> None:
    """A short text is not behind all of a long list, and a stream beside them says what it says alone."""
    prompt = await bench.wait(prepare(loaded, max_tokens=30))
    alone = await bench.wait(start(loaded, prompt).ended())
    long = embed(loaded, await inputs(bench, loaded, *["y" * 300] * 6))
    stream = start(loaded, prompt)
    short = embed(loaded, await inputs(bench, loaded, "a"))
    await bench.wait(short.ended())
    assert not long.has_ended
    assert (await bench.wait(stream.ended())).text() == alone.text()
    assert len((await bench.wait(long.ended())).vectors) == 6


async def test_pause_gives_the_memory_back_and_loses_nothing(bench: Bench, loaded: Engine) -> None:
    """A paused request stands still; resumed, it makes the vectors of an unhurried one."""
    texts = [letter * 300 for letter in "abcd"]
    unhurried = await vectors(bench, loaded, *texts)
    prepared = await inputs(bench, loaded, *texts)
    hurried = embed(loaded, prepared)
    loaded.pause(hurried.sequence_id)
    await bench.wait(hurried.until(lambda: bool(hurried.pauses)))
    assert hurried.pauses == [Paused(hurried.sequence_id, prepared.prefill_tokens)]
    await vectors(bench, loaded, "another")
    assert not hurried.has_ended
    loaded.resume(hurried.sequence_id, prepared.final_tokens)
    await bench.wait(hurried.ended())
    np.testing.assert_allclose(hurried.vectors, unhurried.vectors, atol=1e-6)


async def test_cancel_ends_a_request(bench: Bench, loaded: Engine) -> None:
    """Running or paused: answered by the end, without vectors; commands that come later are ignored."""
    prepared = await inputs(bench, loaded, *["z" * 300] * 20)
    running, paused = embed(loaded, prepared), embed(loaded, prepared)
    loaded.pause(paused.sequence_id)
    for sequence in (running, paused):
        loaded.cancel(sequence.sequence_id)
        await bench.wait(sequence.ended())
        loaded.cancel(sequence.sequence_id)
        loaded.resume(sequence.sequence_id, 1000)
    after = await vectors(bench, loaded, "a")
    assert after.reason is FinishReason.STOP
    for sequence in (running, paused):
        assert (sequence.reason, sequence.of(Embedded)) == (FinishReason.CANCELLED, [])


async def test_unload_ends_requests(bench: Bench, loaded: Engine) -> None:
    """Requests of an unloaded model fail as cancelled."""
    prepared = await inputs(bench, loaded, *["z" * 300] * 20)
    running, paused = embed(loaded, prepared), embed(loaded, prepared)
    loaded.pause(paused.sequence_id)
    await bench.wait(paused.until(lambda: bool(paused.pauses)))
    await bench.wait(bench.backend.unload(loaded))
    for sequence in (running, paused):
        await bench.wait(sequence.ended())
        assert isinstance(sequence.events[-1], Failed)
        assert isinstance(sequence.error, RequestCancelled)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (EmbeddingRequest(("abc" * 5000,)), ContextLengthExceeded),
        (EmbeddingRequest(((),)), InvalidRequest),
        (EmbeddingRequest(((1, 2_000_000),)), InvalidRequest),
        (EmbeddingRequest(("abc",), dimensions=3), InvalidRequest),
    ],
)
async def test_prepare_inputs_refuses(
    bench: Bench, loaded: Engine, request_: EmbeddingRequest, error: type[Exception]
) -> None:
    """A text that is too long, empty, or of unknown tokens is refused, and so is a length that was not trained."""
    with pytest.raises(error):
        await bench.wait(loaded.prepare_inputs(request_))


async def test_long_texts_are_cut_where_that_is_asked_for(bench: Bench, loaded: Engine) -> None:
    """The beginning that fits the context is what counts."""
    prepared = await inputs(bench, loaded, "abc" * 5000, truncate=True)
    assert [len(row) for row in prepared.rows] == [loaded.facts.context_length]
