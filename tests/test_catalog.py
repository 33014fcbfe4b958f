"""The catalog against the layouts that disks really have."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlxd.atomic_file import AtomicFile
from mlxd.catalog import Catalog, ModelEntry, nearest_names, resolve_roots
from mlxd.engine.kv_shape import KvShape
from mlxd.kv_estimate import Confidence, KvShapes
from mlxd.protocol.errors import ModelNotFound
from mlxd.protocol.paths import Home
from tests.support.model_folder import LLAMA_CONFIG, TENSORS_BYTES, write_model, write_safetensors


def scan(*roots: Path) -> dict[str, ModelEntry]:
    """Return what a fresh catalog finds, by id."""
    catalog = Catalog(roots)
    catalog.scan()
    return {entry.id: entry for entry in catalog.entries()}


def snapshot(root: Path, repository: str, commit: str, ref: str | None = None) -> Path:
    """Write a model as the Hugging Face cache lays it out: the snapshot's files are links to blobs."""
    folder = root / f"models--{repository.replace('/', '--')}"
    made = write_model(folder / "snapshots" / commit)
    blobs = folder / "blobs"
    blobs.mkdir(exist_ok=True)
    for file in made.iterdir():
        blob = blobs / f"{commit}-{file.name}"
        file.rename(blob)
        file.symlink_to(os.path.relpath(blob, made))
    if ref is not None:
        (folder / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
    return made


def test_plain_model(tmp_path: Path) -> None:
    """A folder with a config and weights is a servable text model with its sizes."""
    folder = write_model(tmp_path / "tiny")
    entry = scan(tmp_path)["tiny"]
    assert (folder, "text", "llama", None) == (entry.path, entry.kind, entry.model_type, entry.problem)
    assert entry.weights_bytes == TENSORS_BYTES
    assert sum(file.stat().st_size for file in folder.iterdir()) == entry.disk_bytes
    assert entry.context_length == 2048
    assert (entry.kv, entry.kv_confidence) == (KvShape(((2 * 2 * 64 * 4, None),)), Confidence.GUESS)
    assert entry.source == "folder"


def test_sound_models_are_asked(tmp_path: Path) -> None:
    """With a place for the answers, models that can be served tell what their KV costs, and the others' is guessed."""
    write_model(tmp_path / "models" / "tiny", {**LLAMA_CONFIG, "intermediate_size": 96, "rms_norm_eps": 1e-5})
    (write_model(tmp_path / "models" / "broken") / "model.safetensors").unlink()
    catalog = Catalog([tmp_path / "models"], shapes=KvShapes(AtomicFile(tmp_path / "kv.json")))
    catalog.scan()
    tiny, broken = catalog.get("tiny"), catalog.get("broken")
    assert (tiny.kv, tiny.kv_confidence) == (KvShape(((2 * 2 * 2 * 16 * 4, None),)), Confidence.HEADER)
    assert broken.kv_confidence is Confidence.GUESS
    assert len(json.loads((tmp_path / "kv.json").read_text())) == 1


def test_nested_and_sorted(tmp_path: Path) -> None:
    """`ORG/NAME` is an id of its own, and entries are sorted by id."""
    write_model(tmp_path / "zeta")
    write_model(tmp_path / "org" / "beta")
    write_model(tmp_path / "org" / "alpha")
    assert list(scan(tmp_path)) == ["org/alpha", "org/beta", "zeta"]


def test_source_of_own_root(tmp_path: Path) -> None:
    """Models in the daemon's own folder are told apart from those of other folders."""
    write_model(tmp_path / "own" / "a")
    write_model(tmp_path / "other" / "b")
    catalog = Catalog([tmp_path / "own", tmp_path / "other"], own_root=tmp_path / "own")
    catalog.scan()
    assert [entry.source for entry in catalog.entries()] == ["mlxd", "folder"]


def test_first_root_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An id that two roots hold is the first root's, and the log says which one is hidden."""
    first = write_model(tmp_path / "one" / "tiny")
    write_model(tmp_path / "two" / "tiny")
    with caplog.at_level(logging.INFO):
        entries = scan(tmp_path / "one", tmp_path / "two")
    assert entries["tiny"].path == first
    assert "is hidden by" in caplog.text


def test_hidden_and_foreign_folders(tmp_path: Path) -> None:
    """Half-made downloads, files and folders without a config are not listed."""
    write_model(tmp_path / ".tiny.partial")
    write_model(tmp_path / "org" / ".cut")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "datasets--org--name" / "snapshots").mkdir(parents=True)
    assert not scan(tmp_path)


def test_missing_root(tmp_path: Path) -> None:
    """A root that does not exist holds no models and is no error."""
    assert not scan(tmp_path / "nowhere")


def test_hub_cache_follows_main(tmp_path: Path) -> None:
    """Of several snapshots the one of `refs/main` is served, through links into the blobs."""
    main = snapshot(tmp_path, "org/name", "aaa", ref="main")
    snapshot(tmp_path, "org/name", "bbb")
    (entry,) = scan(tmp_path).values()
    assert (entry.id, entry.path, entry.source, entry.problem) == ("org/name", main, "huggingface", None)
    assert entry.weights_bytes == TENSORS_BYTES


def test_hub_cache_other_refs(tmp_path: Path) -> None:
    """A revision that was fetched by name is served beside main under `ORG/NAME@REF`."""
    snapshot(tmp_path, "org/name", "aaa", ref="main")
    other = snapshot(tmp_path, "org/name", "bbb", ref="pr/1")
    entries = scan(tmp_path)
    assert list(entries) == ["org/name", "org/name@pr/1"]
    assert other == entries["org/name@pr/1"].path


@pytest.mark.parametrize("main", [None, "gone", "\xff"])
def test_hub_cache_newest_without_main(tmp_path: Path, main: str | None) -> None:
    """Without a usable `refs/main` the newest snapshot is served."""
    old = snapshot(tmp_path, "gpt2", "aaa")
    new = snapshot(tmp_path, "gpt2", "bbb")
    os.utime(old, (1, 1))
    if main is not None:
        (tmp_path / "models--gpt2" / "refs").mkdir()
        (tmp_path / "models--gpt2" / "refs" / "main").write_bytes(main.encode("latin-1"))
    entries = scan(tmp_path)
    assert {"gpt2": new} == {model_id: entry.path for model_id, entry in entries.items()}


def test_hub_cache_without_config(tmp_path: Path) -> None:
    """A snapshot that holds no config (only a tokenizer was fetched) is not listed."""
    (tmp_path / "models--org--name" / "snapshots" / "aaa").mkdir(parents=True)
    assert not scan(tmp_path)


def test_hub_cache_lost_blob(tmp_path: Path) -> None:
    """A link whose blob is gone counts as missing weights, not as a failure of the scan."""
    made = snapshot(tmp_path, "org/name", "aaa", ref="main")
    (made / "model.safetensors").resolve().unlink()
    assert scan(tmp_path)["org/name"].problem == "no weights: there is no model*.safetensors"


def test_linked_folders(tmp_path: Path) -> None:
    """Linked model folders are found; dangling and circular links are passed over."""
    write_model(tmp_path / "elsewhere" / "tiny")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "elsewhere" / "tiny")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    (root / "circle").symlink_to(root / "circle")
    (root / "parent").symlink_to(root)
    entries = scan(root)
    assert entries["linked"].problem is None
    assert set(entries) <= {"linked", "parent/linked"}


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff\xfe", "[" * 100_000])
def test_broken_config(tmp_path: Path, text: str) -> None:
    """A config that does not parse makes a listed model with a problem that names the file."""
    folder = write_model(tmp_path / "tiny")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    entry = scan(tmp_path)["tiny"]
    assert entry.problem is not None
    assert entry.problem.startswith("config.json")


def test_odd_config_values(tmp_path: Path) -> None:
    """Fields of unexpected types are as good as absent."""
    odd = {key: ["x"] for key in LLAMA_CONFIG} | {"model_type": "llama", "quantization": 4, "text_config": 1}
    write_model(tmp_path / "tiny", odd)
    entry = scan(tmp_path)["tiny"]
    assert (entry.context_length, entry.quantization, entry.kv_confidence) == (None, None, Confidence.GUESS)


def test_missing_index_shard(tmp_path: Path) -> None:
    """A shard that the index names and the folder lacks is the model's problem."""
    folder = write_model(tmp_path / "tiny")
    weight_map = {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert scan(tmp_path)["tiny"].problem == "weights are missing: model-2.safetensors and 1 more"


def test_missing_numbered_shard(tmp_path: Path) -> None:
    """Shards number themselves, so one that is missing is noticed without an index."""
    folder = write_model(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert scan(tmp_path)["tiny"].problem == "weights are missing: model-00002-of-00002.safetensors"
    write_safetensors(folder / "model-00002-of-00002.safetensors")
    entry = scan(tmp_path)["tiny"]
    assert (entry.problem, entry.weights_bytes) == (None, 2 * TENSORS_BYTES)


def test_no_weights(tmp_path: Path) -> None:
    """A folder with weights of another format says that there are none to serve."""
    folder = write_model(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert scan(tmp_path)["tiny"].problem == "no weights: there is no model*.safetensors"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda raw: raw[:-1], "model.safetensors is cut short: "),
        (lambda raw: raw[:20], "model.safetensors is cut short"),
        (lambda raw: raw[:3], "model.safetensors is cut short"),
        (lambda _: b"\xff" * 30, "model.safetensors is not a safetensors file"),
        (lambda raw: raw[:8] + b"[" + raw[9:], "model.safetensors has a header that cannot be read"),
        (lambda raw: raw.replace(b"data_offsets", b"data_offsetz"), "model.safetensors has a header"),
    ],
)
def test_broken_weights(tmp_path: Path, damage: type, problem: str) -> None:
    """Weights that are cut short or are something else are named as such, without reading the data."""
    file = write_model(tmp_path / "tiny") / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    found = scan(tmp_path)["tiny"].problem
    assert found is not None
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("config", "kind", "problem"),
    [
        ({"model_type": "mpnet"}, "embedding", "an embedding model of a type that mlx-embeddings cannot run (mpnet)"),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            "embedding",
            "an embedding model of a kind that cannot be served (gemma3_text that attends both ways)",
        ),
        ({"model_type": "whisper"}, "unknown", "mlx-lm cannot run the model type 'whisper'"),
        ({"architectures": ["X"]}, "unknown", "config.json names no model_type"),
        ({"model_type": "llama", "model_file": "m.py"}, "text", "it needs code of its own"),
    ],
)
def test_models_that_cannot_be_served(tmp_path: Path, config: dict[str, str], kind: str, problem: str) -> None:
    """Models of other kinds are listed, with the reason why they cannot be served."""
    write_model(tmp_path / "odd", config)
    entry = scan(tmp_path)["odd"]
    assert entry.kind == kind
    assert entry.problem is not None
    assert entry.problem.startswith(problem)


def test_an_encoder_is_an_embedding_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be served where mlx-embeddings is installed; elsewhere the command that installs it is named."""
    config = {**LLAMA_CONFIG, "model_type": "xlm-roberta", "intermediate_size": 256, "max_position_embeddings": 514}
    write_model(tmp_path / "encoder", config)
    entry = scan(tmp_path)["encoder"]
    assert (entry.kind, entry.problem, entry.context_length) == ("embedding", None, 512)
    # Eight vectors of 64 numbers and four of 256 per token; two numbers per head and pair of tokens.
    assert entry.kv == KvShape(((4 * (8 * 64 + 4 * 256), None),), square_bytes=2 * 4 * 4)

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlx_embeddings" else find_spec(name))
    problem = scan(tmp_path)["encoder"].problem
    assert problem is not None
    assert "which needs mlx-embeddings: pip install 'mlxd[embeddings]' && mlxctl restart" in problem


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that may not be read is skipped with a log line; its neighbours are found."""
    write_model(tmp_path / "closed" / "inner")
    write_model(tmp_path / "open")
    iterdir = Path.iterdir

    def guarded(path: Path) -> Iterator[Path]:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", guarded)
    assert list(scan(tmp_path)) == ["open"]
    assert "closed" in caplog.text


def test_unreadable_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that may not be read is a problem of its own model."""
    closed = write_model(tmp_path / "closed")
    write_model(tmp_path / "open")
    opened = os.open

    def guarded(path: Path, flags: int) -> int:
        if path == closed / "config.json":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags)

    monkeypatch.setattr(os, "open", guarded)
    problems = {model_id: entry.problem for model_id, entry in scan(tmp_path).items()}
    assert problems == {"closed": "config.json cannot be read: Permission denied", "open": None}


def test_name_that_is_not_text(tmp_path: Path) -> None:
    """A folder whose name is not UTF-8 is passed over, as no client could be told of it."""
    write_model(tmp_path / "open")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    try:
        write_model(odd)
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")
    assert list(scan(tmp_path)) == ["open"]


def test_unknown_model_names_the_nearest(tmp_path: Path) -> None:
    """An unknown id is refused with the nearest ids and the command that lists them."""
    write_model(tmp_path / "org" / "Qwen3-4B")
    catalog = Catalog([tmp_path])
    catalog.scan()
    with pytest.raises(ModelNotFound, match=r"no model 'qwen3-4b'; the nearest names are org/Qwen3-4B") as caught:
        catalog.get("qwen3-4b")
    assert caught.value.hint == "mlxctl model list"
    assert catalog.get("org/Qwen3-4B").id == "org/Qwen3-4B"


def test_unknown_model_in_an_empty_catalog() -> None:
    """Without any model the message names none."""
    with pytest.raises(ModelNotFound, match=r"^there is no model 'x'$"):
        Catalog([]).get("x")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("smollm", ["smollm2-135m-instruct"]), ("ORG/NAME", ["org/name"]), ("nam", ["org/name"]), ("qqqq", []), ("", [])],
)
def test_nearest_names(name: str, expected: list[str]) -> None:
    """Near spellings, parts and other case lead to the id."""
    assert expected == nearest_names(name, ["smollm2-135m-instruct", "org/name"])


def test_new_roots(tmp_path: Path) -> None:
    """What was found under other roots counts when it is adopted, and models that went away are gone then."""
    write_model(tmp_path / "one" / "a")
    write_model(tmp_path / "two" / "b")
    catalog = Catalog([tmp_path / "one"])
    catalog.scan()
    prepared = catalog.prepare([tmp_path / "two"], {})
    assert [entry.id for entry in catalog.entries()] == ["a"]
    catalog.adopt(prepared)
    assert [entry.id for entry in catalog.entries()] == ["b"]
    catalog.scan()
    assert [entry.id for entry in catalog.entries()] == ["b"]


def test_resolve_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path lies in MLXD_HOME, `~` is the user's home, an absolute path stands."""
    monkeypatch.setenv("HOME", "/home/u")
    home = Home(Path("/m"))
    assert resolve_roots(["models", "~/hub", "/x/../y"], home) == [Path("/m/models"), Path("/home/u/hub"), Path("/y")]


def test_imports_no_mlx() -> None:
    """The catalog can be imported and scanned without mlx, mlx-lm or aiohttp coming along."""
    code = (
        "import sys; from mlxd.catalog import Catalog; Catalog([]).scan();"
        "print([m for m in sys.modules if m.partition('.')[0] in ('mlx', 'mlx_lm', 'aiohttp', 'transformers')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
