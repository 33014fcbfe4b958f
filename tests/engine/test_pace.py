"""`engine.pace`: the prefill step follows the target gap while others decode."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mlxd.engine.base import SchedulingParams
from mlxd.engine.pace import PrefillPace, StepTurns


@pytest.fixture
def pace() -> PrefillPace:
    """At most 2048 tokens, and a target of 30 ms."""
    return PrefillPace(SchedulingParams(prefill_step_tokens=2048, target_gap_ms=30), device_tokens=256)


def settle(pace: PrefillPace, token_s: float, decode_s: float = 0.0) -> int:
    """Run prefill steps that cost *token_s* per token beside a decode step; return the size they settle at."""
    pace.record_decode(decode_s)
    for _ in range(40):
        tokens = pace.step_tokens([10_000], others_decode=True)
        pace.record_prefill(tokens, tokens * token_s + decode_s, decoding=decode_s > 0)
    return pace.step_tokens([10_000], others_decode=True)


@pytest.mark.parametrize(("token_s", "expected"), [(0.001, 30), (0.0001, 300), (0.1, 16), (0.000001, 2048)])
def test_step_settles_at_the_target(pace: PrefillPace, token_s: float, expected: int) -> None:
    """A step takes as many tokens as fit the target, at least 16, at most the setting."""
    assert settle(pace, token_s) == pytest.approx(expected, abs=1)


def test_time_of_decoding_is_not_counted(pace: PrefillPace) -> None:
    """Rows that are slow by themselves do not starve the prefill."""
    assert settle(pace, 0.001, decode_s=0.5) == pytest.approx(30, abs=1)


def test_steps_without_a_prompt_are_timed_too(pace: PrefillPace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step of decoding takes is taken off the next one with a prompt in it, which then keeps its size."""
    clock = iter((0.0, 0.5, 1.0, 1.53))
    monkeypatch.setattr("mlxd.engine.pace.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with pace.step(is_prefilling=False, decoding=True, others=False, most=None):
        pass
    with pace.step(is_prefilling=True, decoding=True, others=False, most=None) as chunk_tokens:
        tokens = chunk_tokens([10_000])
    assert pace.step_tokens([10_000], others_decode=True) == pytest.approx(tokens, abs=1)


def test_step_changes_by_two_at_most(pace: PrefillPace) -> None:
    """One odd measurement does not throw the pace away."""
    first = pace.step_tokens([10_000], others_decode=True)
    pace.record_prefill(first, 100.0, decoding=False)
    assert pace.step_tokens([10_000], others_decode=True) == first // 2
    pace.record_prefill(first, 0.0, decoding=False)
    assert pace.step_tokens([10_000], others_decode=True) == first * 2


def test_alone_takes_the_whole_step(pace: PrefillPace) -> None:
    """With nobody waiting for a token the setting is what bounds a step."""
    assert pace.step_tokens([10_000], others_decode=False) == 2048


@pytest.mark.parametrize(("remaining", "expected"), [([20, 2000], 128), ([300, 2000], 300), ([2000, 2000], 2048)])
def test_unequal_prompts_are_not_padded_to_the_longest(pace: PrefillPace, remaining: list[int], expected: int) -> None:
    """Side by side, a step is about as long as the shortest prompt."""
    assert pace.step_tokens(remaining, others_decode=False) == expected


def test_auto_takes_the_step_that_suits_the_device() -> None:
    """Where longer steps are no faster, `auto` makes none, alone or not."""
    pace = PrefillPace(SchedulingParams(prefill_step_tokens=None, target_gap_ms=30), device_tokens=256)
    assert pace.step_tokens([10_000], others_decode=False) == 256
    assert settle(pace, 0.000001) == 256


def test_change_applies_at_once(pace: PrefillPace) -> None:
    """A smaller setting bounds the very next step, shared or not."""
    pace.change(SchedulingParams(prefill_step_tokens=8, target_gap_ms=30))
    assert [pace.step_tokens([100], others_decode=others) for others in (False, True)] == [8, 8]
    assert settle(pace, 0.1) == 8


def test_short_steps_are_repeated_as_long_as_the_longest_takes() -> None:
    """All together, shared among the models with short steps; one that was never measured does one."""
    turns = StepTurns()
    for model, seconds in (("large", 0.100), ("small", 0.010), ("tiny", 0.001)):
        assert turns.plan([model]) == {model: 1}
        turns.record(model, seconds)
    assert turns.plan(["large", "small"]) == {"large": 1, "small": 10}
    assert turns.plan(["large", "small", "tiny"]) == {"large": 1, "small": 5, "tiny": 16}
    assert turns.plan(["small", "tiny"]) == {"small": 1, "tiny": 10}
    assert turns.plan(["large", "new"]) == {"large": 1, "new": 1}
    turns.forget("small")
    assert turns.plan(["large", "small"]) == {"large": 1, "small": 1}


def test_a_hiccup_is_no_long_step() -> None:
    """Two long steps in a row make a model a slow one."""
    turns = StepTurns()
    for model in ("a", "b"):
        turns.record(model, 0.001)
    turns.record("a", 1.0)
    assert turns.plan(["a", "b"]) == {"a": 1, "b": 1}
    turns.record("a", 1.0)
    assert turns.plan(["a", "b"])["b"] > 1
