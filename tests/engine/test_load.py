"""Loading: facts as measured, slices, and what is said when it fails."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.utils import load_model

from mlxd.engine import load_queue, loader, placed, source
from mlxd.engine.base import LoadSpec, SamplingParams
from mlxd.engine.command import ModelFiles
from mlxd.engine.device import Device
from mlxd.engine.fault import in_words
from mlxd.engine.kv import CacheMaker
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.loader import SlicedLoad
from mlxd.engine.source import context_length, read_model_files
from mlxd.protocol.errors import LoadFailed
from tests.engine.bench import WriteModel, load_spec
from tests.support.every_architecture import make_model
from tests.support.sequence import prepare, start
from tests.support.stepped_model import SteppedModel, load_now
from tests.support.tiny_model import write_tiny_model


def change_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_facts_are_measured(write_model: WriteModel) -> None:
    """Weights are what the arrays take, the vocabulary is that of the logits, the rest is what the files declare."""
    path = write_model(thinking=True, tools=True, context=777)
    facts = load_now(path).facts
    assert facts.weights_bytes == pytest.approx((path / "model.safetensors").stat().st_size, rel=0.02)
    assert (facts.vocab_size, facts.context_length) == (96 + 3 + 4, 777)
    assert (facts.has_thinking, facts.tool_format, facts.chat_template) == (True, "json_tools", True)


def test_weights_are_what_became_active(write_model: WriteModel, baseline_bytes: int) -> None:
    """The weights of a model that loads alone count as MLX's memory grew with them."""
    mx.clear_cache()  # a buffer that other tests have left may be larger than what is put into it
    loaded = load_now(write_model(layers=3))
    assert loaded.facts.weights_bytes == pytest.approx(mx.get_active_memory() - baseline_bytes, abs=10_000)


def test_weights_are_measured_beside_running_streams(write_model: WriteModel) -> None:
    """What a decoding batch takes and frees during the load is not mixed into the weights."""
    path = write_model(layers=3)
    alone_bytes = load_now(path).facts.weights_bytes
    streams = SteppedModel(load_now(write_model(all_bytes=True)))
    for seed in range(8):
        streams.start("hello", SamplingParams(top_p=0.9, seed=seed), max_tokens=200)
    streams.step(3)
    spec = load_spec(path)
    load = SlicedLoad(spec, read_model_files(spec))
    loaded = None
    while loaded is None:
        loaded = load.advance(10_000)
        streams.step()
    assert streams.decoding_rows == 8
    assert loaded.facts.weights_bytes == alone_bytes


def test_arrays_of_a_shared_layer_count_once(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that a model uses in two places is in memory once."""
    path = write_model(layers=3)
    apart_bytes = load_now(path).facts.weights_bytes
    norm_bytes = 64 * 4

    def load_shared(folder: Path, **options: Any) -> tuple[Any, Any]:
        model, config = load_model(folder, **options)
        model.model.layers[1].input_layernorm = model.model.layers[0].input_layernorm
        return model, config

    monkeypatch.setattr(loader, "load_model", load_shared)
    assert load_now(path).facts.weights_bytes == apart_bytes - norm_bytes


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": 3}, KvShape(((3 * 2 * 2 * 16 * 4, None),))),
        ({"layers": 2, "kv_heads": 4}, KvShape(((2 * 2 * 4 * 16 * 4, None),))),
        ({"layers": 4, "sliding_window": 32}, KvShape(((2 * 2 * 2 * 16 * 4, None), (2 * 2 * 2 * 16 * 4, 32)))),
    ],
)
def test_kv_shape_is_read_off_the_caches(write_model: WriteModel, options: dict[str, int], expected: KvShape) -> None:
    """2 · kv_heads · head_dim · itemsize per layer; layers with a window are capped."""
    assert load_now(write_model(**options)).facts.kv == expected


def test_fixed_state_is_counted_once() -> None:
    """State-space layers hold the same whatever the length."""
    from mlx_lm.models.cache import ArraysCache, CacheList, KVCache

    class Hybrid:
        def make_cache(self) -> list[Any]:
            return [CacheList(ArraysCache(size=1), KVCache())]

        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            state, attention = cache[0].caches
            state[0] = mx.zeros((1, 10), mx.float32)
            attention.update_and_fetch(mx.zeros((1, 1, 1, 8)), mx.zeros((1, 1, 1, 8)))
            return mx.zeros((1, 1, 50))

    assert CacheMaker(Hybrid()).probe() == (KvShape(((2 * 8 * 4, None),), fixed_bytes=40), 50)


def test_caches_that_cannot_be_merged_are_counted_too() -> None:
    """Attention in chunks keeps a chunk, and grows by steps beyond it; its model is decoded one row at a time."""
    from mlx_lm.models.cache import ChunkedKVCache

    class Chunked:
        def make_cache(self) -> list[Any]:
            return [ChunkedKVCache(16)]

        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            cache[0].update_and_fetch(mx.zeros((1, 1, 1, 8)), mx.zeros((1, 1, 1, 8)))
            return mx.zeros((1, 1, 50))

    caches = CacheMaker(Chunked())
    assert caches.probe() == (KvShape(((2 * 8 * 4, 16 + 256),)), 50)
    assert not caches.can_merge


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}


@pytest.mark.parametrize(
    ("setting", "changes", "expected"),
    [
        (None, {}, 2048),
        (500, {}, 500),
        (4096, {}, 2048),  # never more than the model's own
        (4096, {"max_position_embeddings": None}, 2048),
        (None, {"max_position_embeddings": None}, 2048),  # the tokenizer's
        (None, {"max_position_embeddings": None, "text_config": {"max_position_embeddings": 300}}, 300),
        (None, {"max_position_embeddings": None, "max_seq_len": 400}, 400),
        (None, {"max_position_embeddings": -80}, 2048),
        (None, {"rope_scaling": _YARN}, 2048),
        (5000, {"rope_scaling": _YARN}, 5000),
        (9000, {"rope_scaling": _YARN}, 8192),
    ],
)
def test_context_comes_from_the_first_that_knows(
    tmp_path: Path, setting: int | None, changes: dict[str, Any], expected: int
) -> None:
    """The setting counts up to the model's longest; its own is its configuration's, or else its tokenizer's."""
    change_config(write_tiny_model(tmp_path), **changes)
    spec = load_spec(tmp_path, context_length=setting)
    assert context_length(spec, read_model_files(spec), None) == expected


@pytest.mark.parametrize(("setting", "expected"), [(None, 32768), (1000, 1000), (100_000, 32768)])
def test_context_of_a_type_counts_where_no_file_states_one(tmp_path: Path, setting: int | None, expected: int) -> None:
    """Gemma 3 of several modalities leaves it out: what mlx-lm takes for the part that makes text is its own."""
    folder = write_tiny_model(tmp_path)
    change_config(folder, max_position_embeddings=None)
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"model_max_length": 10**30}))
    text_config = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 2}
    model = make_model({"model_type": "gemma3", "text_config": text_config})
    spec = load_spec(tmp_path, context_length=setting)
    assert context_length(spec, read_model_files(spec), model) == expected


def _slices(load: SlicedLoad, slice_bytes: int) -> list[int]:
    """Load all, and return the bytes of each slice."""
    done = [0]
    while load.advance(slice_bytes) is None:
        done.append(load.done_bytes)
    return [after - before for before, after in itertools.pairwise(done) if after > before]


def test_load_is_sliced(write_model: WriteModel) -> None:
    """No slice is larger than it may be, the sum is the whole, and the model answers as one that was loaded at once."""
    path = write_model()
    spec = load_spec(path)
    load = SlicedLoad(spec, read_model_files(spec))
    assert max(_slices(load, 3_000)) == 3_000  # the largest array has 32 kB
    assert load.done_bytes == load.total_bytes
    whole = load_now(path).model
    for (name, array), (_, expected) in zip(_weights(load._model), _weights(whole), strict=True):
        assert mx.array_equal(array, expected), name


def _weights(model: Any) -> list[tuple[str, mx.array]]:
    return cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))


def test_a_large_tensor_takes_its_memory_once(write_model: WriteModel, baseline_bytes: int) -> None:
    """Reading an array in pieces needs no second copy of it, at no moment."""
    spec = load_spec(write_model(layers=1, width=256))
    load = SlicedLoad(spec, read_model_files(spec))
    mx.clear_cache()
    mx.reset_peak_memory()
    load.advance(3_000)
    while load.done_bytes < load.total_bytes:
        load.advance(3_000)
    assert mx.get_peak_memory() - baseline_bytes < load.total_bytes + 20_000


def test_a_tensor_that_a_model_converts_is_loaded_whole(
    write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is computed from the file is evaluated at once, and its value is the computed one."""
    path = write_model()
    head = load_now(path).model.lm_head.weight
    sanitize = llama.Model.sanitize

    def double(self: Any, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        changed: dict[str, mx.array] = sanitize(self, weights)
        return changed | {"lm_head.weight": changed["lm_head.weight"] * 2}

    monkeypatch.setattr(llama.Model, "sanitize", double)
    spec = load_spec(path)
    load = SlicedLoad(spec, read_model_files(spec))
    assert max(_slices(load, 3_000)) == head.nbytes
    assert mx.array_equal(load._model.lm_head.weight, head * 2)


def test_arrays_that_cannot_be_read_in_place_are_read_whole(
    write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should MLX hand out other memory than the array's, the load takes longer steps and is as right."""
    readinto = placed._ShownFile.readinto
    monkeypatch.setattr(placed._ShownFile, "readinto", lambda file, memory: _hide(file, readinto(file, memory)))
    spec = load_spec(write_model())
    load = SlicedLoad(spec, read_model_files(spec))
    assert max(_slices(load, 3_000)) > 30_000
    assert mx.array_equal(load._model.lm_head.weight, load_now(write_model()).model.lm_head.weight)


def _hide(file: Any, n_bytes: int) -> int:
    """Have the file note a copy of the memory that it was given."""
    file.memory = memoryview(bytearray(file.memory))
    return n_bytes


async def test_loads_take_turns(device: Device, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model is ready long before a large one whose load began first."""
    monkeypatch.setattr(load_queue, "IDLE_SLICE_BYTES", 2_000)
    both_are_read = threading.Barrier(2)
    read = source.read_model_files

    def read_together(spec: LoadSpec) -> ModelFiles:
        files = read(spec)
        both_are_read.wait(timeout=60)
        return files

    small_model, large_model = write_model(layers=1), write_model(layers=12)
    small_bytes = load_now(small_model).facts.weights_bytes
    monkeypatch.setattr(source, "read_model_files", read_together)
    large_bytes = 0
    seen: list[tuple[int, int]] = []  # how far the small one was, and the large one then, since both have begun

    def watch_large(done: int, total: int) -> None:
        nonlocal large_bytes
        large_bytes = done

    def watch_small(done: int, total: int) -> None:
        if large_bytes > 0:
            seen.append((done, large_bytes))

    large = asyncio.ensure_future(device.load(load_spec(large_model, model_id="large"), watch_large))
    await device.load(load_spec(small_model, model_id="small"), watch_small)
    (small_begun, large_begun), (small_ended, large_ended) = seen[0], seen[-1]
    assert large_ended - large_begun == pytest.approx(small_ended - small_begun, abs=0.1 * small_bytes)
    assert small_ended - small_begun > 0.5 * small_bytes
    assert (await large).model_id == "large"


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])


def _remove_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def _break_normalizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _link_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut short": (_truncate, "is cut short: 344024 of 349024 bytes"),
    "weights are garbage": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 500),
        "is not a safetensors file",
    ),
    "weights are empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is cut short"),
    "weights missing": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "configuration missing": (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    "configuration damaged": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
    "configuration is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "does not hold a JSON object",
    ),
    "unknown model": (lambda folder: change_config(folder, model_type="nosuch"), "Model type nosuch not supported"),
    "a layer too many": (lambda folder: change_config(folder, num_hidden_layers=3), "Missing 9 parameters"),
    "a layer too few": (lambda folder: change_config(folder, num_hidden_layers=1), "9 parameters not in model"),
    "tokenizer missing": (_remove_tokenizer, "the tokenizer cannot be read"),
    "tokenizer damaged": (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
    "tokenizer panics": (_break_normalizer, "the tokenizer cannot be read: PanicException: Precompiled"),
    "tokenizer without an end": (_link_tokenizer, "tokenizer.json is no regular file"),
    "more layers than tensors": (lambda folder: change_config(folder, num_hidden_layers=10**9), "the maximum is 16384"),
    "ends of another type": (
        lambda folder: change_config(folder, eos_token_id=["x"]),
        "eos_token_id is neither a token",
    ),
    "folder missing": (lambda folder: folder.rename(folder.with_name("elsewhere")), "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_failed_load_says_why_and_leaves_nothing(
    device: Device, tmp_path: Path, damage: str, baseline_bytes: int
) -> None:
    """The error names the model and the cause in words, without a traceback, and no byte stays resident."""
    folder = write_tiny_model(tmp_path / "model")
    hurt, words = DAMAGES[damage]
    hurt(folder)
    with pytest.raises(LoadFailed, match=words) as error:
        await device.load(load_spec(folder, model_id="hurt"), lambda done, total: None)
    assert "'hurt'" in error.value.message
    assert "Traceback" not in error.value.message
    assert len(error.value.message) < 500
    assert (await device.memory()).active_bytes < baseline_bytes + 1000


async def test_failed_load_disturbs_no_stream(device: Device, write_model: WriteModel, tmp_path: Path) -> None:
    """A stream of another model goes on to its whole answer."""
    engine = await device.load(load_spec(write_model()), lambda done, total: None)
    prompt = await prepare(engine, max_tokens=200)
    alone = (await start(engine, prompt).ended()).text()
    stream = start(engine, prompt)
    await stream.until(lambda: bool(stream.deltas))
    _truncate(write_tiny_model(tmp_path))
    with pytest.raises(LoadFailed):
        await device.load(load_spec(tmp_path), lambda done, total: None)
    assert (await stream.ended()).text() == alone


async def test_code_that_comes_with_a_model_is_not_run(device: Device, tmp_path: Path) -> None:
    """A folder that asks for its own Python is refused, and nothing is asked on a terminal."""
    folder = write_tiny_model(tmp_path)
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    change_config(folder, model_file="evil.py")
    with pytest.raises(LoadFailed, match="custom module"):
        await device.load(load_spec(folder), lambda done, total: None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("too\n  many   spaces"), "too many spaces"),
        (KeyError("name"), "KeyError: 'name'"),
        (RuntimeError(""), "RuntimeError: "),
        (ValueError("x" * 1000), "x" * 300 + " …"),
        (LoadFailed("ours"), "ours"),
    ],
)
def test_foreign_errors_in_words(error: Exception, words: str) -> None:
    """One short line, with the type where the text says nothing."""
    assert in_words(error) == words
