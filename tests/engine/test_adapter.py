"""Adapters on the real engine: what they say, what they cost, and what they leave."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.utils import load_adapters

from mlxd.engine.base import Engine, LoadSpec
from mlxd.engine.device import Device
from mlxd.engine.loader import SlicedLoad
from mlxd.engine.source import read_adapter, read_model_files
from mlxd.protocol.errors import LoadFailed
from tests.engine.bench import WriteModel, load_spec
from tests.support.adapter import write_adapter
from tests.support.sequence import prepare, start
from tests.support.stepped_model import SteppedModel, load_now

# What the allocator and the batches may add.
SLACK_BYTES = 60_000


def adapter_spec(model: Path, adapter: Path, base: Engine) -> LoadSpec:
    """Return a spec of an adapter on a loaded base."""
    return load_spec(model, model_id=f"tiny+{adapter.name}", adapter_path=adapter, base=base)


async def load(device: Device, spec: LoadSpec) -> Engine:
    """Load without progress."""
    return await device.load(spec, lambda done, total: None)


async def answer(engine: Engine, tokens: int = 60) -> str:
    """Return a greedy answer."""
    return (await start(engine, await prepare(engine, max_tokens=tokens)).ended()).text()


def expected(model: Path, adapter: Path) -> str:
    """Return the answer of the model and its adapter loaded as mlx-lm loads them, in one."""
    loaded = load_now(model)
    merged = load_adapters(loaded.model, str(adapter))
    merged.eval()
    stepped = SteppedModel(dataclasses.replace(loaded, model=merged))
    return stepped.say("Once upon a time", max_tokens=60).text()


async def test_answers_of_base_and_adapters_side_by_side(
    device: Device, write_model: WriteModel, tmp_path: Path
) -> None:
    """Each says what a full load of it would say, also while all decode at once, and the base is not changed."""
    model = write_model()
    base = await load(device, load_spec(model))
    alone = await answer(base)
    engines, wanted = [base], [alone]
    for seed in (1, 2):
        write_adapter(tmp_path / f"a{seed}", model, seed=seed)
        engines.append(await load(device, adapter_spec(model, tmp_path / f"a{seed}", base)))
        wanted.append(expected(model, tmp_path / f"a{seed}"))
    assert len(set(wanted)) == 3
    assert list(await asyncio.gather(*(answer(engine) for engine in engines))) == wanted
    assert [engine.model_id for engine in engines] == ["tiny", "tiny+a1", "tiny+a2"]


async def test_an_adapter_costs_its_own_bytes_and_gives_them_back(
    device: Device, write_model: WriteModel, tmp_path: Path
) -> None:
    """The base is in memory once; the facts say what the adapter takes, and an unload frees it."""
    model = write_model(width=256, kv_heads=4)
    base = await load(device, load_spec(model))
    assert base.facts.weights_bytes > 20 * SLACK_BYTES
    before = (await device.memory()).active_bytes
    own_bytes = write_adapter(tmp_path / "big", model, rank=64, width=256, kv_width=256)
    adapter = await load(device, adapter_spec(model, tmp_path / "big", base))
    assert adapter.facts.weights_bytes == own_bytes
    assert (await device.memory()).active_bytes - before == pytest.approx(own_bytes, abs=SLACK_BYTES)
    assert adapter.facts.kv == base.facts.kv
    await answer(adapter, 5)
    await device.unload(adapter)
    assert (await device.memory()).active_bytes == pytest.approx(before, abs=SLACK_BYTES)
    assert len(await answer(base, 5)) > 0


async def test_prompt_caches_are_kept_apart(device: Device, write_model: WriteModel, tmp_path: Path) -> None:
    """The KV of a prompt on the base is no use to an adapter, nor the other way round."""
    model = write_model()
    base = await load(device, load_spec(model))
    write_adapter(tmp_path / "a", model)
    adapter = await load(device, adapter_spec(model, tmp_path / "a", base))
    prompt = await prepare(base)
    assert (await start(base, prompt).ended()).usage.cached_tokens == 0
    assert (await start(adapter, prompt).ended()).usage.cached_tokens == 0
    assert (await start(adapter, prompt).ended()).usage.cached_tokens > 0
    assert min(base.prompt_cache_bytes, adapter.prompt_cache_bytes) > 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("other model", "incompatible tensors"),
        ("no scale", "missing required key 'scale'"),
        ("another format", "num_layers"),
        ("cut short", "is cut short: 6000 of 8000 bytes"),
        ("a pipe", "adapter_config.json is no regular file"),
        ("a giant without weights", "lacks 8 of the 8 tensors that adapter_config.json asks for, model.layers.0"),
        ("a billion layers", "has 1000000000 for num_layers"),
    ],
)
async def test_an_adapter_that_cannot_be_loaded(
    device: Device, write_model: WriteModel, tmp_path: Path, damage: str, words: str
) -> None:
    """The error says why, nothing stays resident, and the base goes on as before."""
    model = write_model()
    base = await load(device, load_spec(model))
    alone = await answer(base)
    before = (await device.memory()).active_bytes
    folder = tmp_path / "bad"
    write_adapter(folder, model, width=32 if damage == "other model" else 64)
    config = json.loads((folder / "adapter_config.json").read_text())
    if damage == "no scale":
        del config["lora_parameters"]["scale"]
    if damage == "another format":
        config = {"peft_type": "LORA", "r": 8}
    if damage == "a billion layers":
        config["num_layers"] = 10**9
    if damage == "a giant without weights":  # memory that cannot be had would end the process
        config["lora_parameters"]["rank"] = 2**31 - 1
        mx.save_safetensors(str(folder / "adapters.safetensors"), {})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    if damage == "a pipe":
        (folder / "adapter_config.json").unlink()
        os.mkfifo(folder / "adapter_config.json")
    if damage == "cut short":
        weights = folder / "adapters.safetensors"
        weights.write_bytes(weights.read_bytes()[:-2000])
    with pytest.raises(LoadFailed, match=words):
        await load(device, adapter_spec(model, folder, base))
    assert (await device.memory()).active_bytes == pytest.approx(before, abs=SLACK_BYTES)
    assert await answer(base) == alone


async def test_an_adapter_of_a_base_that_has_gone(device: Device, write_model: WriteModel, tmp_path: Path) -> None:
    """An unload that came first is answered in words."""
    model = write_model()
    base = await load(device, load_spec(model))
    write_adapter(tmp_path / "a", model)
    loading = asyncio.ensure_future(load(device, adapter_spec(model, tmp_path / "a", base)))
    await device.unload(base)
    with pytest.raises(LoadFailed, match="unloaded meanwhile"):
        await loading
    with pytest.raises(LoadFailed, match="unloaded meanwhile"):
        await load(device, adapter_spec(model, tmp_path / "a", base))


def test_an_adapter_is_read_in_slices(write_model: WriteModel, tmp_path: Path) -> None:
    """No slice is larger than it may be, and the arrays are those of the file; the base's are not read again."""
    model = write_model()
    write_adapter(tmp_path / "a", model, rank=16)
    spec = load_spec(model, adapter_path=tmp_path / "a")
    files = dataclasses.replace(read_model_files(spec), tensors=read_adapter(spec))
    load = SlicedLoad(spec, files, load_now(model))
    done = [0]
    while load.advance(1_000) is None:
        done.append(load.done_bytes)
    assert max(after - before for before, after in itertools.pairwise(done)) == 1_000  # the largest array has 4 kB
    stored = cast("dict[str, mx.array]", mx.load(str(tmp_path / "a" / "adapters.safetensors")))
    assert done[-1] == sum(array.nbytes for array in stored.values())
    parameters: dict[str, Any] = dict(tree_flatten(load._model.parameters()))
    assert all(mx.array_equal(parameters[name], array) for name, array in stored.items())


def test_the_copy_is_out_of_training_mode(write_model: WriteModel, tmp_path: Path) -> None:
    """Dropout is off: the same prompt has the same logits twice."""
    from mlxd.engine.adapter import put_adapter_on

    model = write_model()
    write_adapter(tmp_path / "a", model)
    adapted, own = put_adapter_on(load_now(model).model, tmp_path / "a")
    mx.eval(own)
    tokens = mx.array([[1, 2, 3]])
    assert mx.array_equal(adapted(tokens), adapted(tokens)).item()
