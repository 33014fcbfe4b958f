"""What models are asked for, what is kept of their answers, and the guess where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxd import kv_estimate
from mlxd.atomic_file import AtomicFile
from mlxd.engine.kv_shape import KvShape
from mlxd.engine.process import Processes
from mlxd.kv_estimate import KvShapes, guess_kv
from tests.support.every_architecture import config_of

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FULL_HEADS = KvShape(((2 * 4 * 64 * 2, None),))


class CountingProcesses(Processes):
    """Processes that note what they are asked."""

    asked: list[str]

    def shape(self, job: Any) -> KvShape | None:
        self.asked.append(job["module"])
        return super().shape(job)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules that a process was asked to build."""
    modules: list[str] = []
    monkeypatch.setattr(CountingProcesses, "asked", modules, raising=False)
    monkeypatch.setattr(kv_estimate, "Processes", CountingProcesses)
    return modules


@pytest.fixture
def shapes(tmp_path: Path) -> Callable[[], KvShapes]:
    """Return what a new daemon has."""
    return lambda: KvShapes(AtomicFile(tmp_path / "cache" / "kv.json"))


def test_the_answer_is_kept(shapes: Callable[[], KvShapes], asked: list[str]) -> None:
    """A model is asked once, by its config and its activations, and not again by the next daemon."""
    qwen = config_of("qwen3")
    expected = KvShape(((4 * 2 * 2 * 32 * 4, None),))
    with shapes().asking() as ask:
        assert (ask(qwen, 4), ask(dict(qwen), 4)) == (expected, expected)
        assert ask(qwen, 2) == KvShape(((4 * 2 * 2 * 32 * 2, None),))
        assert ask(qwen | {"head_dim": 64}, 4) == KvShape(((4 * 2 * 2 * 64 * 4, None),))
    assert asked == ["qwen3"] * 3
    with shapes().asking() as ask:
        assert ask(qwen, 4) == expected
        assert ask(config_of("gemma3_text"), 4) == KvShape(((1024, 64), (1024, None)))
    assert asked == ["qwen3"] * 3 + ["gemma3_text"]


def test_another_mlx_lm_is_asked_again(
    shapes: Callable[[], KvShapes], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one version of mlx-lm keeps tells nothing of what another does."""
    for version in ("0.32.2", "0.32.3", "0.32.2"):
        monkeypatch.setattr("importlib.metadata.version", lambda name, version=version: version)
        with shapes().asking() as ask:
            assert ask(config_of("mamba"), 4) == KvShape((), fixed_bytes=29184)
    assert asked == ["mamba"] * 2


@pytest.mark.parametrize("config", [{}, {"hidden_size": -1}, {"num_hidden_layers": 10**400}, {"hidden_size": [{}] * 9}])
def test_what_cannot_tell(shapes: Callable[[], KvShapes], asked: list[str], config: dict[str, Any]) -> None:
    """A config of which no model can be made is no answer, and is asked once by each daemon."""
    same = shapes()
    for daemon in (same, same, shapes()):
        with daemon.asking() as ask:
            assert ask({"model_type": "llama"} | config, 4) is None
    assert asked == ["llama"] * 2


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 1}', '{"x": [[["a", null]], 1]}', "\x00"])
def test_a_damaged_file_is_left_aside(tmp_path: Path, shapes: Callable[[], KvShapes], content: str) -> None:
    """A file that holds no answers is replaced by one that does."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "kv.json").write_text(content)
    with shapes().asking() as ask:
        assert ask(config_of("qwen2"), 4) == KvShape(((1024, None),))
    assert len(json.loads((tmp_path / "cache" / "kv.json").read_text())) == 1


def test_a_file_that_cannot_be_written(tmp_path: Path, shapes: Callable[[], KvShapes]) -> None:
    """Answers that cannot be kept are answers."""
    (tmp_path / "cache").write_text("in the way")
    with shapes().asking() as ask:
        assert ask(config_of("qwen2"), 4) == KvShape(((1024, None),))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(LLAMA, FULL_HEADS, id="grouped-query"),
        pytest.param(
            LLAMA | {"num_hidden_layers": 10**9}, KvShape(((2 * 10**9 * 64 * 2, None),)), id="too-many-layers"
        ),
        pytest.param({}, KvShape(((1024, None),)), id="empty"),
        pytest.param({"num_hidden_layers": 4}, KvShape(((1024, None),)), id="no-width"),
        pytest.param(LLAMA | {"v_head_dim": 32}, KvShape(((2 * 4 * 4 * 32 * 2, None),)), id="wide-heads"),
    ],
)
def test_a_guess_is_on_the_safe_side(config: dict[str, Any], expected: KvShape) -> None:
    """A guess is full multi-head attention in every layer, or a share of the weights."""
    assert guess_kv(config, 2, 10**6) == expected


_NUMBERS = st.one_of(st.none(), st.integers(-3, 300), st.booleans(), st.text(max_size=3), st.lists(st.integers(0, 9)))
_KEYS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "text_config")


@given(st.dictionaries(st.sampled_from(_KEYS), _NUMBERS))
def test_no_config_breaks_a_guess(config: dict[str, Any]) -> None:
    """Whatever stands in a config, the guess is of some bytes."""
    assert guess_kv(config, 2, 10**6).bytes_for(1000) > 0
