"""Only regular files of a bounded size are read, and the rest is told from them before it is opened."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlxd.engine.model_file import (
    LOADED_SUFFIXES,
    MOST_CONFIG_BYTES,
    MOST_FILE_BYTES,
    BadFile,
    check_folder,
    nested_weights,
    read_object,
    shown_text,
)
from mlxd.protocol.units import show_bytes


def hole(path: Path, n_bytes: int) -> None:
    """Write a file of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(n_bytes)


def bound_socket(path: Path) -> None:
    """Leave a socket at the path."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(path))  # a long path is no address


STRANGE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "link to a folder": lambda path: path.symlink_to(path.parent),
    "socket": bound_socket,
}


@pytest.fixture(params=STRANGE)
def make_strange(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    """Each kind of thing that is no regular file."""
    return STRANGE[str(request.param)]


def test_what_is_no_regular_file_is_not_read(tmp_path: Path, make_strange: Callable[[Path], object]) -> None:
    """Neither by us nor by a library: nothing waits for it, and the message names it."""
    make_strange(tmp_path / "config.json")
    with pytest.raises((BadFile, OSError), match=r"config\.json"):
        read_object(tmp_path / "config.json")
    with pytest.raises(BadFile, match=r"^config\.json is no regular file$"):
        check_folder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "chat_template.jinja", "model.safetensors"])
def test_every_file_of_a_load_is_looked_at(tmp_path: Path, name: str) -> None:
    """Whatever a tokenizer opens is checked, not only what is opened here."""
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(BadFile, match=f"{name} is no regular file"):
        check_folder(tmp_path)


def test_folders_that_are_read_are_looked_into(tmp_path: Path) -> None:
    """Chat templates may lie one folder deeper."""
    (tmp_path / "additional_chat_templates").mkdir()
    os.mkfifo(tmp_path / "additional_chat_templates" / "tools.jinja")
    with pytest.raises(BadFile, match=r"tools\.jinja is no regular file"):
        check_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "most_bytes"),
    [("config.json", MOST_CONFIG_BYTES), ("tokenizer.json", MOST_FILE_BYTES), ("vocab.txt", MOST_FILE_BYTES)],
)
def test_a_file_has_at_most_its_maximum(tmp_path: Path, name: str, most_bytes: int) -> None:
    """The maximum itself is read; one byte more is refused with the size and the maximum."""
    hole(tmp_path / name, most_bytes)
    check_folder(tmp_path)
    hole(tmp_path / name, most_bytes + 1)
    size = re.escape(show_bytes(most_bytes))
    with pytest.raises(BadFile, match=f"^{name} has {size}; the maximum for it is {size}$"):
        check_folder(tmp_path)


def test_weights_have_any_size(tmp_path: Path) -> None:
    """Weights are not read as a whole."""
    hole(tmp_path / "model.safetensors", 1 << 40)
    check_folder(tmp_path)


def test_a_long_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """A file that grew after it was listed is cut at its maximum."""
    hole(tmp_path / "config.json", 1 << 40)
    with pytest.raises(BadFile, match=r"config\.json has 1099\.5 GB .*; the maximum"):
        read_object(tmp_path / "config.json")


def test_links_to_files_and_to_nothing(tmp_path: Path) -> None:
    """A link to a file is the file, as in the hub's cache; one to nothing is as good as absent."""
    (tmp_path / "blob").write_text('{"a": 1}')
    (tmp_path / "config.json").symlink_to("blob")
    (tmp_path / "tokenizer.json").symlink_to("nowhere")
    check_folder(tmp_path)
    assert read_object(tmp_path / "config.json") == {"a": 1}


def test_numbers_have_a_bounded_length(tmp_path: Path) -> None:
    """40 digits are read, as some write 10^30 for "unknown"; more are refused before they are multiplied."""
    path = tmp_path / "config.json"
    path.write_text('{"a": [' + "9" * 40 + "]}")
    assert read_object(path) == {"a": [10**40 - 1]}
    path.write_text('{"a": {"b": ' + "9" * 41 + "}}")
    with pytest.raises(BadFile, match="a whole number of 41 digits, more than the maximum of 40"):
        read_object(path)


def test_nested_weights(tmp_path: Path) -> None:
    """The folders of an encoder are searched, and no link leads out of them."""
    (tmp_path / "2_Dense").mkdir()
    paths = [tmp_path / "2_Dense" / "model.safetensors", tmp_path / "model.safetensors"]
    for path in paths:
        path.touch()
    assert nested_weights(tmp_path) == paths
    (tmp_path / "2_Dense" / "root").symlink_to("/")
    with pytest.raises(BadFile, match="root is a link to a folder"):
        nested_weights(tmp_path)


def test_shown_text_is_printable_and_short() -> None:
    """What a file says can neither forge a line of the log nor fill it, and every client can decode it."""
    assert shown_text("Qwen/Qwen3-4B") == "Qwen/Qwen3-4B"
    assert shown_text("a\n\x1b[31m\ud800é") == "a??[31m??"
    assert len(shown_text("x" * 10_000_000)) == 83


def test_every_vocabulary_of_transformers_is_known() -> None:
    """The names under which transformers looks for vocabularies have suffixes that are checked."""
    spec = find_spec("transformers")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    sources = Path(spec.submodule_search_locations[0], "models").glob("*/tokenization_*.py")
    declared = [
        re.search(r"^VOCAB_FILES_NAMES = \{(.*?)\}", path.read_text(), re.DOTALL | re.MULTILINE) for path in sources
    ]
    names = [name for match in declared if match for name in re.findall(r':\s*"([^"]+)"', match[1])]
    assert len(names) > 50
    assert {Path(name).suffix for name in names} <= LOADED_SUFFIXES
