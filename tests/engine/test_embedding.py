"""Vectors for real: what they are made of, and what making them costs."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import load_model
from numpy.typing import NDArray

from mlxd.engine.base import Engine
from mlxd.engine.device import Device
from mlxd.engine.hidden import Encoder
from mlxd.engine.loader import SlicedLoad
from mlxd.engine.source import read_model_files
from mlxd.engine.vector import EmbeddingRequest, Pooling
from mlxd.protocol.errors import InvalidRequest, LoadFailed
from tests.engine.bench import WriteModel, load_spec
from tests.support.adapter import write_adapter
from tests.support.minilm import minilm_folder
from tests.support.sequence import Recorder, embed, prepare, start
from tests.support.tiny_encoder import write_tiny_encoder

CAT, FELINE, GUITAR = "The cat sits outside", "The feline is outdoors", "A man is playing guitar"
POOLS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "mean": lambda states: states.mean(0),
    "cls": lambda states: states[0],
    "lasttoken": lambda states: states[-1],
}


async def load(device: Device, folder: Path, **changes: object) -> Engine:
    """Load a model."""
    return await device.load(load_spec(folder, **changes), lambda done, total: None)


async def vectors(engine: Engine, *texts: str, **options: Any) -> Recorder:
    """Make the vectors of texts."""
    prepared = await engine.prepare_inputs(EmbeddingRequest(texts, **options))
    return await embed(engine, prepared).ended()


def copy_with(source: Path, target: Path, pooling: dict[str, Any] | None = None, **config: Any) -> Path:
    """Return a copy of a model that pools like this, with some values of its config changed."""
    shutil.copytree(source, target)
    changed = json.loads((target / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps(changed))
    if pooling is not None:
        (target / "1_Pooling").mkdir()
        (target / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return target


@pytest.mark.parametrize("pooling", POOLS)
async def test_vectors_of_a_text_model_are_its_pooled_states(
    device: Device, write_model: WriteModel, tmp_path: Path, pooling: str
) -> None:
    """In one slice or in several, among others or alone: pooled as the folder says, the mean if it says nothing."""
    said = None if pooling == "mean" else {"pooling_mode_mean_tokens": False, f"pooling_mode_{pooling}": True}
    folder = copy_with(write_model(), tmp_path / "model", said)
    texts = ["x", "one text", "another", "long " * 140]
    engine = await load(device, folder)
    prepared = await engine.prepare_inputs(EmbeddingRequest(tuple(texts)))
    made = (await embed(engine, prepared).ended()).vectors

    model, _ = load_model(folder)
    for row, vector in zip(prepared.rows, made, strict=True):
        pooled = POOLS[pooling](np.array(model.model(mx.array([row])))[0])
        np.testing.assert_allclose(vector, pooled / np.linalg.norm(pooled), atol=2e-5)


@pytest.mark.parametrize(("pooling", "name"), list(zip(Pooling, POOLS, strict=True)))
@pytest.mark.parametrize("said", [None, {"pooling_mode_cls_token": True}, {"pooling_mode_max_tokens": True}])
async def test_the_setting_decides_the_pooling(
    device: Device, write_model: WriteModel, tmp_path: Path, pooling: Pooling, name: str, said: dict[str, Any] | None
) -> None:
    """It goes before what the folder says, also where that is nothing or not known; it is no guess."""
    folder = copy_with(write_model(), tmp_path / "model", said)
    engine = await load(device, folder, pooling=pooling)
    prepared = await engine.prepare_inputs(EmbeddingRequest(("one text",)))
    (vector,) = (await embed(engine, prepared).ended()).vectors
    model, _ = load_model(folder)
    pooled = POOLS[name](np.array(model.model(mx.array([prepared.rows[0]])))[0])
    np.testing.assert_allclose(vector, pooled / np.linalg.norm(pooled), atol=2e-5)
    assert engine.facts.vectors is not None
    assert not engine.facts.vectors.is_assumed


async def test_an_adapter_has_a_pooling_of_its_own(device: Device, write_model: WriteModel, tmp_path: Path) -> None:
    """Where no setting gives it one, its base's holds."""
    model = write_model()
    base = await load(device, model, pooling=Pooling.FIRST)
    write_adapter(tmp_path / "a", model)
    for given, expected in ((None, Pooling.FIRST), (Pooling.LAST, Pooling.LAST)):
        changes = {"model_id": f"tiny+{expected}", "base": base, "adapter_path": tmp_path / "a", "pooling": given}
        adapter = await load(device, model, **changes)
        assert adapter.facts.vectors is not None
        assert adapter.facts.vectors.pooling is expected


@pytest.mark.parametrize("is_encoder", [False, True])
async def test_a_guessed_pooling_is_warned_of_once(
    device: Device, write_model: WriteModel, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_encoder: bool
) -> None:
    """What mlx-lm converts has lost its pooling: its vectors may be poor, and the first request says so."""
    folder = write_tiny_encoder(tmp_path / "bert", "bert") if is_encoder else write_model()
    engine = await load(device, folder, is_encoder=is_encoder)
    assert engine.facts.vectors is not None
    assert engine.facts.vectors.is_assumed
    assert "pools" not in caplog.text
    await vectors(engine, "one")
    await vectors(engine, "two")
    (warning,) = [record.getMessage() for record in caplog.records if "pools" in record.getMessage()]
    assert "mlxctl model set tiny pooling=mean (or first, last)" in warning


async def test_dimensions_follow_the_config(device: Device, write_model: WriteModel, tmp_path: Path) -> None:
    """Listed lengths are beginnings at unit length; others are refused with what there is."""
    some = await load(device, copy_with(write_model(), tmp_path / "some", matryoshka_dimensions=[16, 32]))
    every = await load(device, copy_with(write_model(), tmp_path / "every", is_matryoshka=True))
    whole, cut = (await vectors(some, "text")).vectors[0], (await vectors(some, "text", dimensions=16)).vectors[0]
    np.testing.assert_allclose(cut, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-6)
    assert (await vectors(every, "text", dimensions=3)).vectors.shape == (1, 3)
    for engine, wanted, words in ((some, 24, "64 dimensions, or of 16, 32"), (every, 65, "or of 1 to 63")):
        with pytest.raises(InvalidRequest, match=words):
            await engine.prepare_inputs(EmbeddingRequest(("text",), dimensions=wanted))


async def test_an_unknown_pooling_is_no_reason_not_to_chat(
    device: Device, write_model: WriteModel, tmp_path: Path
) -> None:
    """Such a text model answers, and says that it makes no vectors."""
    engine = await load(device, copy_with(write_model(), tmp_path / "model", {"pooling_mode_max_tokens": True}))
    assert (await start(engine, await prepare(engine)).ended()).text()
    with pytest.raises(InvalidRequest, match="a pooling that is not known"):
        await engine.prepare_inputs(EmbeddingRequest(("text",)))


async def test_streams_go_on_between_slices(device: Device, write_model: WriteModel) -> None:
    """While a list of long texts is worked on, a stream gets a token with every slice."""
    engine = await load(device, write_model())
    stream = start(engine, await prepare(engine, max_tokens=1500))
    await stream.until(lambda: bool(stream.deltas))
    before = len(stream.deltas)
    made = await vectors(engine, *["word " * 100] * 5)
    assert len(made.vectors) == 5
    # 500 tokens each; a slice beside a stream begins with 128 and is at most doubled from one to the next.
    assert len(stream.deltas) - before >= 5
    engine.cancel(stream.sequence_id)
    await stream.ended()


async def test_minilm_is_what_it_is_elsewhere(device: Device, baseline_bytes: int) -> None:
    """The real model: 384 dimensions, unit length, known cosines, padding of no effect; all memory comes back."""
    engine = await load(device, minilm_folder(), is_encoder=True)
    made = (await vectors(engine, CAT, FELINE, GUITAR, "word " * 150)).vectors
    alone = (await vectors(engine, CAT)).vectors

    assert made.shape == (4, 384)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert made[0] @ made[1] == pytest.approx(0.555, abs=0.001)
    assert made[0] @ made[2] == pytest.approx(0.036, abs=0.001)
    np.testing.assert_allclose(alone[0], made[0], atol=1e-5)
    assert (engine.facts.context_length, engine.facts.weights_bytes) == (512, 90_852_864)
    await device.unload(engine)
    assert (await device.memory()).active_bytes < baseline_bytes + 50_000


async def test_an_encoder_makes_no_text(device: Device, tmp_path: Path) -> None:
    """Its prompt is refused with the route that it serves."""
    engine = await load(device, write_tiny_encoder(tmp_path / "bert", "bert"), is_encoder=True, model_id="tiny-bert")
    with pytest.raises(InvalidRequest, match="'tiny-bert' makes embeddings and no text") as refused:
        await prepare(engine)
    assert refused.value.hint == "POST /v1/embeddings"


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
async def test_encoders_of_every_type(device: Device, tmp_path: Path, model_type: str, pooling: str) -> None:
    """Short texts go together and have the vectors that they have alone; memory keeps within what is reserved."""
    folder = write_tiny_encoder(tmp_path / model_type, model_type)
    folder = copy_with(folder, tmp_path / "model", {f"pooling_mode_{pooling}_tokens": True})
    engine = await load(device, folder, is_encoder=True)
    texts = ("one", "another one", "x", "word " * 20)
    together = (await vectors(engine, *texts)).vectors
    alone = [(await vectors(engine, text)).vectors[0] for text in texts]
    np.testing.assert_allclose(together, alone, atol=2e-4)
    assert together.shape == (4, 64)
    before = await device.memory()
    mx.reset_peak_memory()
    await vectors(engine, "a" * (engine.facts.context_length - 2))
    grown = (await device.memory()).peak_bytes - before.active_bytes
    assert grown <= engine.facts.kv.bytes_for(engine.facts.context_length)


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "modernbert"])
async def test_an_encoder_is_read_in_slices(tmp_path: Path, model_type: str) -> None:
    """No slice is larger than it may be, and the arrays are those that a whole load has."""
    from mlx_embeddings.utils import load_model as load_encoder

    folder = write_tiny_encoder(tmp_path / model_type, model_type)
    spec = load_spec(folder, is_encoder=True)
    load = SlicedLoad(spec, await asyncio.to_thread(read_model_files, spec))
    load.advance(3_000)
    done = [0]
    while done[-1] < load.total_bytes:
        load.advance(3_000)
        done.append(load.done_bytes)
    assert max(after - before for before, after in itertools.pairwise(done)) == 3_000  # the largest array has 32 kB
    whole = dict(tree_flatten(load_encoder(folder, path_to_repo=str(folder)).parameters()))
    read = dict(tree_flatten(load._model.parameters()))
    assert whole.keys() == read.keys()
    assert all(mx.array_equal(read[name], array) for name, array in whole.items())


def test_pooling_decides_what_an_encoder_makes(tmp_path: Path) -> None:
    """Mean and first are different vectors of one text, for models that pool by themselves too."""
    pytest.importorskip("mlx_embeddings")
    from mlx_embeddings.utils import load_model as load_encoder

    folder = write_tiny_encoder(tmp_path / "bert", "bert")
    pooled = []
    for pooling in (Pooling.MEAN, Pooling.FIRST):
        model = load_encoder(folder, path_to_repo=str(folder))
        encoder = Encoder(model, pooling)
        texts = encoder.begin([(5, 6, 7)], 100)
        while not texts.is_done:
            texts.advance(100, others_decode=True)
        pooled.append(np.array(texts.pooled()))
    assert not np.allclose(pooled[0], pooled[1])
    assert tree_map(lambda array: array.shape, pooled) == [(1, 64), (1, 64)]


def test_parts_of_a_text_that_failed_are_in_no_other(tmp_path: Path) -> None:
    """An encoder whose pass ended halfway begins the next text with its own parts only."""
    pytest.importorskip("mlx_embeddings")
    from mlx_embeddings.utils import load_model as load_encoder

    folder = write_tiny_encoder(tmp_path / "bert", "bert")
    encoder = Encoder(load_encoder(folder, path_to_repo=str(folder)), Pooling.MEAN)

    def steps() -> int:
        texts = encoder.begin([(5, 6, 7)], 100)
        count = 0
        while not texts.is_done:
            texts.advance(100, others_decode=True)
            count += 1
        return count

    alone = steps()
    encoder._tapped.append(mx.zeros(1))  # as a layer leaves it whose successor raises
    assert steps() == alone


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"pooling_mode_max_tokens": True}, "pools by max"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "pools by cls and mean"),
        ({"pooling_mode": "lasttoken"}, "last token, which no encoder here does"),
        ({}, "pools by nothing"),
        ([], "does not hold a JSON object"),
    ],
)
async def test_poolings_that_an_encoder_cannot_have(device: Device, tmp_path: Path, said: Any, words: str) -> None:
    """The load fails and says which it is."""
    folder = copy_with(write_tiny_encoder(tmp_path / "bert", "bert"), tmp_path / "model", said)
    with pytest.raises(LoadFailed, match=words):
        await load(device, folder, is_encoder=True)


async def test_no_encoder_pools_by_its_last_token_by_a_setting(device: Device, tmp_path: Path) -> None:
    """A setting that cannot be applied fails the load and says so."""
    folder = write_tiny_encoder(tmp_path / "bert", "bert")
    with pytest.raises(LoadFailed, match="last token, which no encoder here does"):
        await load(device, folder, is_encoder=True, pooling=Pooling.LAST)


async def test_without_the_extra_the_command_is_named(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder that is loaded where mlx-embeddings is missing says how to get it."""
    monkeypatch.setitem(sys.modules, "mlx_embeddings", None)
    monkeypatch.delitem(sys.modules, "mlx_embeddings.utils", raising=False)
    with pytest.raises(LoadFailed, match="mlx-embeddings") as failed:
        await load(device, write_tiny_encoder(tmp_path / "bert", "bert"), is_encoder=True)
    assert failed.value.hint == "pip install 'mlxd[embeddings]' && mlxctl restart"


async def test_cut_texts_keep_their_ending(device: Device, tmp_path: Path) -> None:
    """A text that is cut ends with the token that every text of the tokenizer ends with."""
    engine = await load(device, write_tiny_encoder(tmp_path / "bert", "bert"), is_encoder=True)
    prepared = await engine.prepare_inputs(EmbeddingRequest(("ab", "ab" * 500), truncate=True))
    short, long = prepared.rows
    assert len(long) == engine.facts.context_length
    assert (long[0], long[-1]) == (short[0], short[-1])
    assert long[1:5] == (short[1], short[2]) * 2


async def test_a_failing_model_fails_its_request_only(
    device: Device, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a model raises ends that request with an error; the next one is served."""
    engine = await load(device, write_model())
    with monkeypatch.context() as patch:
        patch.setattr("mlxd.engine.embedding.unit", lambda vectors, dimensions: 1 / 0)
        failed = await vectors(engine, "text")
    assert "failed while answering" in failed.error.message
    assert (await vectors(engine, "text")).vectors.shape == (1, 64)
    await asyncio.sleep(0)
