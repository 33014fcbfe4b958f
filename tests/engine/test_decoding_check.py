"""The check at a load: which of mlx-lm's models may be decoded in a batch, and how the others are decoded instead."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxd.engine.base import Decoding
from mlxd.engine.decoding_check import DecodingCheck, Finding, as_texts
from mlxd.engine.device import Device
from mlxd.engine.kv import CacheMaker
from mlxd.engine.loader import MOST_CHECKED, Checked, SlicedLoad
from mlxd.engine.model_file import read_signature
from mlxd.engine.source import read_model_files
from mlxd.pool import ledger
from mlxd.protocol.errors import LoadFailed
from tests.engine.bench import WriteModel, load_spec
from tests.support.every_architecture import PRECISIONS, every_type, make_any
from tests.support.model_on_disk import write_any_model
from tests.support.sequence import prepare, start
from tests.support.stepped_model import SteppedModel, load_now

# Padding runs through the state of all of these when prompts of unequal length are processed together.
SINGLE_PREFILL = (
    *("baichuan_m1", "bailing_moe_linear", "jamba", "longcat_flash_ngram", "mamba", "nemotron_h", "olmo_hybrid"),
    *("recurrent_gemma", "rwkv7"),
)
# afm7 takes one position for all rows in the layers that share KV, gpt_bigcode in all layers; gemma2's mask has one
# axis too few; the caches of the others have no batch.
ONE_BY_ONE = ("afm7", "deepseek_v41", "gemma2", "gpt_bigcode", "llama4")
EXPECTED = {
    **dict.fromkeys(SINGLE_PREFILL, Decoding.SINGLE_PREFILL),
    **dict.fromkeys(ONE_BY_ONE, Decoding.ONE_BY_ONE),
}
TEXTS = [[(17 + 29 * place + 31 * text) % 100 for place in range(9)] for text in range(2)]
# A text without an end of its own, for models whose vocabulary has 110 tokens.
PROMPTS = ("The quick brown fox", "jumps over the lazy dog, and again, and once more, until the evening")
MOST_PASSES = 4


def check(model: Any, texts: list[list[int]] = TEXTS) -> tuple[Finding, int]:
    """Run a check to its end; return what it found and how many passes it took."""
    started = DecodingCheck(model, CacheMaker(model), texts)
    for passes in range(1, 20):
        found = started.advance()
        if found is not None:
            return found, passes
    raise AssertionError("the check does not end")


def a_part() -> list[tuple[str, str]]:
    """Return every type in one precision, another one from type to type, and those that fail in all of them."""
    precisions = list(PRECISIONS)
    return [
        (model_type, precision)
        for number, model_type in enumerate(every_type())
        for precision in precisions
        if model_type in EXPECTED or precision == precisions[number % len(precisions)]
    ]


@pytest.mark.parametrize(("model_type", "precision"), a_part())
def test_types_are_told_apart(model_type: str, precision: str) -> None:
    """A type that answers alike in a batch is decoded in batches, and one that does not is found out."""
    found, passes = check(make_any(model_type, precision))
    assert found.decoding is EXPECTED.get(model_type, Decoding.BATCHED), found.reason
    assert passes <= (MOST_PASSES if found.decoding is Decoding.BATCHED else 2 * MOST_PASSES)


def test_all_types_are_here() -> None:
    """The table names types that mlx-lm has."""
    assert set(EXPECTED) <= set(every_type())


class Disturbed:
    """A model whose logits are changed when rows are decoded together."""

    def __init__(self, change: Callable[[mx.array], mx.array], model_type: str = "llama") -> None:
        self.model = make_any(model_type)
        self.layers = self.model.layers
        self.make_cache = self.model.make_cache
        self._change = change

    def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
        logits = self.model(tokens, cache=cache)
        return self._change(logits) if tokens.shape[0] > 1 and tokens.shape[1] == 1 else logits


def test_one_disagreement_is_chance() -> None:
    """A second text decides: a router that was undecided once demotes no model."""
    seen: list[int] = []

    def change(logits: mx.array) -> mx.array:
        seen.append(1)
        return logits + (len(seen) < 2) * mx.random.normal(logits.shape)

    found, passes = check(Disturbed(change))
    assert (found.decoding, passes) == (Decoding.BATCHED, 2 * MOST_PASSES)


def test_single_prefills_are_checked_too() -> None:
    """A model whose states are mixed up by prompts, and its answers by others, is decoded one row at a time."""
    assert check(Disturbed(lambda logits: logits, "mamba"))[0].decoding is Decoding.SINGLE_PREFILL
    found, _ = check(Disturbed(lambda logits: logits[:, :, ::-1], "mamba"))
    assert found.decoding is Decoding.ONE_BY_ONE


@pytest.mark.parametrize(("share", "decoding"), [(0.09, Decoding.BATCHED), (0.11, Decoding.ONE_BY_ONE)])
def test_the_tolerance_is_a_share_of_the_spread(share: float, decoding: Decoding) -> None:
    """Logits may be off by a tenth of their own spread, however large they are, and all of them by any number."""

    def change(logits: mx.array) -> mx.array:
        centered = logits - logits.mean(-1, keepdims=True)
        flipped = centered * mx.where(mx.arange(110) % 2, 1.0, -1.0)  # as large, and without a mean of its own
        return logits + 100 + share * (flipped - flipped.mean(-1, keepdims=True))

    assert check(Disturbed(change))[0].decoding is decoding


def test_a_token_that_is_never_chosen_is_no_failure() -> None:
    """Logits of -inf for some tokens are a model's way to say never, and are compared as such."""
    never = mx.where(mx.arange(110) > 105, -mx.inf, 0.0)

    class Padded(Disturbed):
        def __call__(self, tokens: mx.array, cache: list[Any]) -> mx.array:
            return super().__call__(tokens, cache) + never

    assert check(Padded(lambda logits: logits))[0].decoding is Decoding.BATCHED
    assert (
        check(Padded(lambda logits: mx.where(mx.arange(110) == 3, -mx.inf, logits)))[0].decoding is Decoding.ONE_BY_ONE
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_logits_that_are_no_numbers_fail_the_load(device: Device, tmp_path: Path, value: float) -> None:
    """Weights that make every logit NaN are told at the load, with what to do, and the next model loads."""
    path = write_any_model(tmp_path / "model", "llama")
    weights = mx.load(str(path / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.norm.weight"] = mx.full(64, value)
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    del weights
    gc.collect()
    before_bytes = mx.get_active_memory()
    with pytest.raises(LoadFailed, match="the first logits are NaN or infinite") as failure:
        await device.load(load_spec(path), lambda done, total: None)
    assert failure.value.hint is not None
    assert "download the model again" in failure.value.hint
    # pytest keeps the logged traceback, and that the KV of three tokens; the weights have 746 kB.
    assert (await device.memory()).active_bytes < before_bytes + 400_000


async def test_a_rope_theta_of_zero_fails_the_load(device: Device, tmp_path: Path) -> None:
    """A config that makes every logit NaN is told at the load."""
    path = write_any_model(tmp_path / "model", "llama", rope_theta=0.0)
    with pytest.raises(LoadFailed, match="NaN or infinite"):
        await device.load(load_spec(path), lambda done, total: None)


@pytest.mark.parametrize("model_type", sorted(EXPECTED))
async def test_two_requests_at_once_answer_as_each_alone(device: Device, tmp_path: Path, model_type: str) -> None:
    """Types that mlx-lm's batches get wrong answer the same beside another request as alone."""
    engine = await device.load(load_spec(write_any_model(tmp_path / "model", model_type)), lambda done, total: None)
    assert engine.facts.decoding is EXPECTED[model_type]
    assert engine.facts.decoding_reason
    prompts = [await prepare(engine, prompt, max_tokens=24) for prompt in PROMPTS]
    alone = [(await start(engine, prompt).ended()).text() for prompt in prompts]
    together = await asyncio.gather(*(start(engine, prompt).ended() for prompt in prompts))
    assert [sequence.text() for sequence in together] == alone
    assert len(set(alone)) == 2


def test_files_are_checked_once(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second load of the same files takes what was found; of changed ones it does not."""
    spec = load_spec(write_model())
    checked: Checked = {}
    runs: list[int] = []
    advance = DecodingCheck.advance

    def count(self: DecodingCheck) -> Finding | None:
        runs.append(1)
        return advance(self)

    monkeypatch.setattr(DecodingCheck, "advance", count)

    def load() -> Decoding:
        load = SlicedLoad(spec, read_model_files(spec), None, checked)
        while (loaded := load.advance(2**62)) is None:
            pass
        return loaded.facts.decoding

    assert load() is Decoding.BATCHED
    assert len(runs) == 4
    checked[next(iter(checked))] = Finding(Decoding.ONE_BY_ONE, "as found")
    assert load() is Decoding.ONE_BY_ONE
    assert len(runs) == 4
    config = spec.path / "config.json"
    config.write_text(config.read_text() + " ")
    assert load() is Decoding.BATCHED
    assert len(runs) == 8


def test_checks_of_many_models_are_forgotten(write_model: WriteModel) -> None:
    """What was found of the last models is kept, and not of every one that there ever was."""
    spec = load_spec(write_model())
    found = Finding(Decoding.ONE_BY_ONE, "as found")
    checked: Checked = {((f"model-{number}", 0, 0),): found for number in range(MOST_CHECKED)}
    load = SlicedLoad(spec, read_model_files(spec), None, checked)
    while load.advance(2**62) is None:
        pass
    assert len(checked) == MOST_CHECKED
    assert (("model-0", 0, 0),) not in checked
    assert checked[read_signature(spec.path)].decoding is Decoding.BATCHED


def test_streams_get_tokens_between_the_passes(write_model: WriteModel) -> None:
    """Each advance of a load makes one pass of the check at most."""
    path = write_model()
    running = SteppedModel(load_now(path))
    row = running.start("a", max_tokens=100)
    running.step(3)
    spec = load_spec(path)
    load = SlicedLoad(spec, read_model_files(spec))
    while load.done_bytes < load.total_bytes or load.total_bytes == 0:
        load.advance(2**62)
    advances = 1
    while load.advance(2**62) is None:
        before = len(row.deltas)
        running.step()
        assert len(row.deltas) == before + 1
        advances += 1
    assert advances == 4


def test_a_check_stays_within_the_reserve(write_model: WriteModel) -> None:
    """Its memory is less than the margin and the KV of one short sequence, which a load reserves."""
    spec = load_spec(write_model(layers=4, width=256, heads=8, kv_heads=8))
    load = SlicedLoad(spec, read_model_files(spec))
    while load.done_bytes < load.total_bytes or load.total_bytes == 0:
        load.advance(2**62)
    mx.clear_cache()
    before_bytes = mx.get_active_memory()
    mx.reset_peak_memory()
    while (loaded := load.advance(2**62)) is None:
        pass
    kv_bytes = loaded.facts.kv.batch_bytes([ledger.SHORT_SEQUENCE_TOKENS])
    assert mx.get_peak_memory() - before_bytes < kv_bytes + 1_000_000


def test_texts_fit_any_vocabulary() -> None:
    """A tokenizer that makes few tokens of a text, or larger ids than the model has, still gives a text."""

    class Short:
        def encode(self, text: str) -> list[int]:
            return [500, 0]

    assert as_texts(Short(), 110) == [[60, 1] * 4 + [60]] * 2


def test_out_of_memory_is_no_verdict() -> None:
    """A batch that has no memory fails the load instead of demoting the model."""

    def change(logits: mx.array) -> mx.array:
        raise RuntimeError("[metal::malloc] Unable to allocate 5 bytes")

    with pytest.raises(RuntimeError, match="Unable to allocate"):
        check(Disturbed(change))
