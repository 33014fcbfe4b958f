"""Model folders and files that go away while the catalog or a load looks at them."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mlxd.catalog import Catalog
from mlxd.engine.base import LoadSpec
from mlxd.engine.folder_reader import read_adapter, read_files
from mlxd.protocol.errors import LoadFailed
from tests.support.model_folder import LLAMA_CONFIG, write_model, write_repository, write_safetensors
from tests.support.tiny_model import write_tiny_model
from tests.support.vanish import Vanishing


def write_sharded(folder: Path) -> None:
    """Write a model with an index and code of its own."""
    write_model(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}')
    (folder / "tokenizer_config.json").write_text('{"auto_map": {}}')


def write_encoder(folder: Path) -> None:
    """Write a model that makes vectors, of which all folders are searched for weights."""
    config = {"model_type": "xlm-roberta", "intermediate_size": 256, "max_position_embeddings": 514}
    write_model(folder, {**LLAMA_CONFIG, **config})


def write_lora(folder: Path) -> None:
    """Write an adapter of the model that stays."""
    folder.mkdir(parents=True)
    config = {"model": "stays", "num_layers": 2, "lora_parameters": {}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    write_safetensors(folder / "adapters.safetensors")


# What is written, its id, and what of it goes.
CASES: Mapping[str, tuple[Callable[[Path], None], str, str]] = {
    "a model": (write_sharded, "m", ""),
    "a config": (write_sharded, "m", "config.json"),
    "an index": (write_sharded, "m", "model.safetensors.index.json"),
    "weights": (write_sharded, "m", "model.safetensors"),
    "a repository": (write_repository, "o/h", ""),
    "refs": (write_repository, "o/h", "refs"),
    "a snapshot": (write_repository, "o/h", "snapshots/abc"),
    "an encoder": (write_encoder, "m", ""),
    "an adapter": (write_lora, "stays+m", ""),
    "weights of an adapter": (write_lora, "stays+m", "adapters.safetensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_goes_away_during_a_scan_is_its_own_problem(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever it goes, the scan ends, the other model is found, and no model of another name is made of it."""
    write, model_id, part = CASES[case]
    caplog.set_level(logging.CRITICAL)
    problems = set()
    for place in itertools.count():
        root = tmp_path / str(place)
        write_model(root / "stays")
        folder = root / ("models--o--h" if model_id == "o/h" else "m")
        write(folder)
        catalog = Catalog([root])
        vanishing = Vanishing(folder / part, place)
        with vanishing.armed():
            catalog.scan()
        entries = {entry.id: entry for entry in catalog.entries()}
        assert entries.pop("stays").problem is None
        allowed = {model_id, "unknown+m"} if write is write_lora else {model_id}  # whose base its config named
        assert {name.partition("@")[0] for name in entries} <= allowed
        problems |= {entry.problem for entry in entries.values()}
        if not vanishing.is_gone:
            break
    assert place > 1
    assert not any("cannot be understood" in str(problem) or "Errno" in str(problem) for problem in problems)


@pytest.mark.parametrize("part", ["", "adapters.safetensors"])
def test_an_adapter_of_the_settings_is_listed_whenever_it_goes(tmp_path: Path, part: str) -> None:
    """What the settings define has an entry in any case, with the problem that its files are not there."""
    write_model(tmp_path / "models" / "stays")
    for place in itertools.count():
        folder = tmp_path / str(place)
        write_lora(folder)
        catalog = Catalog([tmp_path / "models"], adapters={"stays+x": folder})
        vanishing = Vanishing(folder / part, place)
        with vanishing.armed():
            catalog.scan()
        assert [entry.id for entry in catalog.entries()] == ["stays", "stays+x"]
        if not vanishing.is_gone:
            break
    assert place > 1


async def test_a_rescan_does_not_undo_a_change_of_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that began before other folders were adopted does not bring the models of the old ones back."""
    for name in ("old", "new"):
        write_model(tmp_path / name / f"model-{name}")
    catalog = Catalog([tmp_path / "old"])
    prepared = catalog.prepare([tmp_path / "new"], {})
    read = catalog._read

    def adopt_meanwhile(roots: tuple[Path, ...], adapters: Mapping[str, Path]) -> object:
        found = read(roots, adapters)
        asyncio.run_coroutine_threadsafe(adopt(), loop).result()
        return found

    async def adopt() -> None:
        catalog.adopt(prepared)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(catalog, "_read", adopt_meanwhile)
    await catalog.rescan()
    assert [entry.id for entry in catalog.entries()] == ["model-new"]


def fates_of_reads(
    tmp_path: Path, step: int, make: Callable[[Path], object], read: Callable[[Path], object]
) -> list[str]:
    """Return how reads of a folder fail whose files go away at every *step*-th look, until one sees none go."""
    fates: list[str] = []
    place = 0
    while True:
        folder = tmp_path / str(place)
        make(folder)
        vanishing = Vanishing(folder, place)
        with vanishing.armed():
            try:
                read(folder)
            except LoadFailed as error:
                fates.append(error.message)
        if not vanishing.is_gone:
            return fates
        place += step


def test_a_load_whose_files_go_away_fails_with_a_name(tmp_path: Path) -> None:
    """The folder of a model, and that of an adapter, may go at any look: the load fails, and says what is missing."""
    source = write_tiny_model(tmp_path / "source")

    def make(folder: Path) -> None:
        folder.mkdir()
        for file in source.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())

    def read(folder: Path) -> None:
        read_files(LoadSpec("m", folder, context_length=None, prompt_cache_limit_bytes=0))

    fates = fates_of_reads(tmp_path, 3, make, read)
    assert fates
    assert all(fate.startswith("model 'm'") for fate in fates)


def test_an_adapter_whose_files_go_away_fails_with_a_name(tmp_path: Path) -> None:
    """At any look, the check of an adapter's folder ends with what is missing."""

    def read(folder: Path) -> None:
        read_adapter(LoadSpec("m", tmp_path, context_length=None, prompt_cache_limit_bytes=0, adapter_path=folder))

    fates = fates_of_reads(tmp_path, 1, write_lora, read)
    assert fates
    assert all(fate.startswith("model 'm'") for fate in fates)
