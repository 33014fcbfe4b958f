"""Adapters and aliases in the catalog: what is found, what it is called, and why it cannot be used."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mlxd.alias import alias_targets, check_aliases
from mlxd.catalog import Catalog, ModelEntry
from mlxd.protocol.errors import InvalidValue, ModelNotFound
from tests.support.adapter import write_adapter
from tests.support.http_server import settings_of
from tests.support.model_folder import write_model


def scan(root: Path, adapters: dict[str, Path] | None = None) -> dict[str, ModelEntry]:
    """Return what a fresh catalog finds, by id."""
    catalog = Catalog([root], adapters=adapters)
    catalog.scan()
    return {entry.id: entry for entry in catalog.entries()}


@pytest.mark.parametrize("named", ["id", "path"])
def test_adapters_are_found_beside_models(tmp_path: Path, named: str) -> None:
    """A folder of LoRA weights is the model `BASE+NAME`, whichever way its config names the base."""
    model = write_model(tmp_path / "org" / "base")
    n_bytes = write_adapter(tmp_path / "style", "org/base" if named == "id" else model)
    entries = scan(tmp_path)
    assert list(entries) == ["org/base", "org/base+style"]
    entry = entries["org/base+style"]
    assert (entry.base, entry.problem, entry.weights_bytes) == ("org/base", None, n_bytes)
    assert (entry.path, entry.kind, entry.kv) == (tmp_path / "style", "text", entries["org/base"].kv)
    assert entry.context_length == entries["org/base"].context_length


def test_adapters_of_the_settings(tmp_path: Path) -> None:
    """They may lie anywhere, take the base from their id, and go before found ones of the same id."""
    write_model(tmp_path / "models" / "base")
    write_adapter(tmp_path / "models" / "style", "base")
    write_adapter(tmp_path / "far", "something else", rank=8)
    entry = scan(tmp_path / "models", {"base+style": tmp_path / "far"})["base+style"]
    assert (entry.path, entry.source, entry.problem) == (tmp_path / "far", "settings", None)


def test_a_fused_model_is_a_model(tmp_path: Path) -> None:
    """mlx-lm leaves the adapter's config beside a fused model's own."""
    write_model(tmp_path / "fused")
    (tmp_path / "fused" / "adapter_config.json").write_text("{}")
    assert list(scan(tmp_path)) == ["fused"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("no base", "its base model 'gone/base' is not on this disk"),
        ("broken base", "its base model 'base' cannot be served: no weights"),
        ("no weights", "no weights: there is no adapters.safetensors"),
        ("cut short", "adapters.safetensors is cut short"),
        ("another format", "is not mlx-lm's"),
        ("no JSON", "is not valid JSON"),
    ],
)
def test_adapters_that_cannot_be_used_say_why(tmp_path: Path, damage: str, problem: str) -> None:
    """They are listed all the same."""
    model = write_model(tmp_path / "base")
    folder = tmp_path / "style"
    write_adapter(folder, "gone/base" if damage == "no base" else "base")
    if damage == "broken base":
        (model / "model.safetensors").unlink()
    if damage == "no weights":
        (folder / "adapters.safetensors").unlink()
    if damage == "cut short":
        os.truncate(folder / "adapters.safetensors", 3000)
    if damage == "another format":
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"})
        )
    if damage == "no JSON":
        (folder / "adapter_config.json").write_text("{")
    (entry,) = (entry for entry in scan(tmp_path).values() if entry.base is not None)
    assert problem in str(entry.problem)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """An adapter of the settings is listed with what is missing, as is one without a base."""
    write_model(tmp_path / "base")
    write_adapter(tmp_path / "style", "base")
    entries = scan(tmp_path, {"base+a": tmp_path / "none", "base+b": tmp_path / "base", "x+c": tmp_path / "style"})
    assert "there is no folder" in str(entries["base+a"].problem)
    assert "there is no adapter_config.json" in str(entries["base+b"].problem)
    assert "'x' is not on this disk" in str(entries["x+c"].problem)


def test_the_signature_follows_what_a_load_reads(tmp_path: Path) -> None:
    """Other weights of the same size are another signature; a README is nothing."""
    folder = write_model(tmp_path / "a")
    before = scan(tmp_path)["a"]
    (folder / "README.md").write_text("hello")
    assert scan(tmp_path)["a"].signature == before.signature
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert scan(tmp_path)["a"].signature != before.signature


def test_an_alias_leads_to_its_model(tmp_path: Path) -> None:
    """Everywhere but in `get`, which takes ids; a model of that name on disk goes before."""
    write_model(tmp_path / "a")
    catalog = Catalog([tmp_path])
    catalog.scan()
    catalog.set_aliases({"small": "a", "lost": "gone", "a": "b"})
    assert (catalog.resolve("small").id, catalog.resolve("a").id) == ("a", "a")
    assert (catalog.has("small"), catalog.has("lost")) == (True, False)
    assert {alias: entry.id for alias, entry in catalog.aliases().items()} == {"small": "a"}
    with pytest.raises(ModelNotFound, match="'lost' is an alias of 'gone', which is not on this disk"):
        catalog.resolve("lost")
    with pytest.raises(ModelNotFound, match="small") as error:
        catalog.resolve("smal")
    assert error.value.data["nearest"] == ["small"]


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        ({"a": {"aliases": ["x"]}, "b": {"aliases": ["x"]}}, "models.b.aliases: 'x' is an alias of 'a' already"),
        ({"a": {"aliases": ["b"]}, "b": {"pin": True}}, "models.a.aliases: 'b' is the id of a model"),
        ({"a": {"aliases": ["a"]}}, "models.a.aliases: 'a' is the id of a model"),
        ({"a": {"aliases": ["x\n"]}}, "cannot be the name"),
        ({"a": {"aliases": [" x"]}}, "cannot be the name"),
        ({"a": {"aliases": ["x" * 513]}}, "cannot be the name"),
    ],
)
def test_a_name_means_one_thing(models: dict[str, object], problem: str) -> None:
    """An alias is unique over all aliases and ids, and a name that a request can carry."""
    with pytest.raises(InvalidValue) as error:
        check_aliases(settings_of({"models": models}))
    assert problem in error.value.message


def test_aliases_of_many_models() -> None:
    """Different names are no trouble."""
    settings = settings_of({"models": {"a": {"aliases": ["x", "y"]}, "b": {"aliases": ["z"]}}})
    check_aliases(settings)
    assert alias_targets(settings) == {"x": "a", "y": "a", "z": "b"}
