"""The container: files that are cut off, damaged, of another kind or of a type that MLX has not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxd.download import gguf_file
from mlxd.download.errors import CannotConvert
from mlxd.download.gguf import plan
from mlxd.download.gguf_file import read_gguf
from tests.support.gguf_writer import TYPE_IDS, RawTensor, write_container
from tests.support.tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the bytes of a sound file."""
    path = tmp_path_factory.mktemp("whole") / "tiny.gguf"
    write_gguf(path, None, "Q4_0")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"nothing" * 100, "it begins with b'noth'"),
        (b"tjgg\x03\x00\x00\x00", "GGML family that came before"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS"),
        (b"<!doctype html><html>", "a web page"),
        (b"PK\x03\x04", "a zip archive"),
        (b"GGUF", "is cut off inside its header"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian GGUF file"),
        (b"GGUF" + struct.pack("<III", 1, 0, 0), "GGUF file of version 1; 2 and 3 are known"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "is to have 1099511627776 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "is cut off inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "a text in it is to have 1152921504606846976 bytes"),
        (b"GGUF" + struct.pack("<IQQQ2sIIQ", 3, 0, 1, 2, b"ab", 9, 0, 1 << 60), "is cut off inside its header"),
        (b"GGUF" + struct.pack("<IQQQ2sIIQ", 3, 0, 1, 2, b"ab", 9, 8, 1 << 60), "is cut off inside its header"),
        (b"GGUF" + struct.pack("<IQQQ2sIIQ", 3, 0, 1, 2, b"ab", 9, 9, 1), "ab is of the kind 9"),
        (b"GGUF" + struct.pack("<IQQQ2sI", 3, 0, 1, 2, b"ab", 77), "ab is of the kind 77"),
        (b"GGUF" + struct.pack("<IQQQ2sIQ1s", 3, 0, 1, 2, b"ab", 8, 1, b"\xff"), "a text in it is not UTF-8"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 9), "t is to have 9 dimensions"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, words: str) -> None:
    """What is no GGUF file, or a damaged one, is refused in words that name the file and what it is."""
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CannotConvert) as caught:
        read_gguf(tmp_path / "x.gguf")
    assert words in caught.value.message
    assert caught.value.message.startswith("x.gguf")
    assert caught.value.hint


@pytest.mark.parametrize("kept", [0.01, 0.2, 0.5, 0.99])
def test_cut_off(tmp_path: Path, whole: bytes, kept: float) -> None:
    """A download that broke off is told as such, in the header and in the tensors."""
    (tmp_path / "x.gguf").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CannotConvert, match="is cut off"):
        read_gguf(tmp_path / "x.gguf")


@settings(max_examples=150)
@given(st.data())
def test_damage_is_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject
) -> None:
    """Bytes changed anywhere in the header end in a refusal or in a plan, and never in anything else."""
    damaged = bytearray(whole)
    header = len(whole) // 20
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(4, header))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        made = plan(path)
    except CannotConvert as error:
        assert error.message  # noqa: PT017  (either outcome is right)
    else:
        assert made.weights_bytes < 10 * len(whole)


def test_file_that_becomes_shorter(tmp_path: Path) -> None:
    """A file that is cut while it is read is told, not read past its end."""
    path = tmp_path / "x.gguf"
    write_gguf(path)
    file = read_gguf(path)
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(CannotConvert, match="became shorter"):
        file.read(max(file.tensors, key=lambda tensor: tensor.offset))


def test_other_types_are_named(tmp_path: Path) -> None:
    """Types that MLX does not read are named with their numbers, and what to do instead."""

    def edit(tensors: list[RawTensor]) -> list[RawTensor]:
        kinds = {"blk.0.ffn_up.weight": "Q4_K", "blk.1.ffn_up.weight": "Q4_K", "token_embd.weight": "Q6_K"}
        return [
            tensor._replace(type_id=TYPE_IDS[kinds[tensor.name]]) if tensor.name in kinds else tensor
            for tensor in [*tensors, RawTensor("new", (32,), 99, b"")]
        ]

    write_gguf(tmp_path / "x.Q4_K_M.gguf", edit=edit)
    with pytest.raises(CannotConvert) as caught:
        read_gguf(tmp_path / "x.Q4_K_M.gguf")
    assert caught.value.message.splitlines() == [
        "x.Q4_K_M.gguf has tensors of types that MLX does not read: Q4_K (2 of 21), Q6_K (1 of 21), type 99 (1 of 21)",
        "it reads F32, F16, BF16, Q4_0, Q4_1, Q8_0",
    ]
    assert caught.value.data == {"types": {"Q4_K": 2, "Q6_K": 1, "type 99": 1}}
    assert "mlxctl model pull" in str(caught.value.hint)


def test_part_of_several(tmp_path: Path) -> None:
    """A part of a split model is refused with the command that joins the parts."""
    path = tmp_path / "big-00002-of-00003.gguf"
    write_gguf(path, changes={"split.count": 3, "split.no": 1})
    with pytest.raises(CannotConvert, match=r"part 2 of 3, and only a whole file") as caught:
        read_gguf(path)
    assert caught.value.hint == "llama-gguf-split --merge big-00001-of-00003.gguf big.gguf"


def test_huge_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metadata beyond every known model are refused before they fill the memory."""
    monkeypatch.setattr(gguf_file, "_HEADER_BYTES", 1 << 20)
    write_gguf(tmp_path / "x.gguf", changes={"tokenizer.chat_template": "x" * (2 << 20)})
    with pytest.raises(CannotConvert, match="a text in it is to have 2097152 bytes"):
        read_gguf(tmp_path / "x.gguf")
    write_gguf(tmp_path / "x.gguf", changes={f"k{number}": "x" * 500_000 for number in range(4)})
    with pytest.raises(CannotConvert, match="its metadata are over 1 MiB"):
        read_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tensor: [tensor, tensor], "two of its tensors have one name"),
        (lambda tensor: [tensor._replace(shape=(32, 33), type_id=2)], "rows of 33, no multiple of 32"),
    ],
)
def test_tensors_that_cannot_be(tmp_path: Path, damage: Callable[[RawTensor], list[RawTensor]], words: str) -> None:
    """Two tensors of one name, and rows that do not end with a block, are damage."""
    write_container(tmp_path / "x.gguf", {}, damage(RawTensor("a", (2, 32), 0, bytes(256))))
    with pytest.raises(CannotConvert, match=words):
        read_gguf(tmp_path / "x.gguf")


def test_alignment_is_checked(tmp_path: Path) -> None:
    """An alignment that is none is damage."""
    write_container(tmp_path / "x.gguf", {"general.alignment": 0}, [])
    with pytest.raises(CannotConvert, match="its alignment is 0"):
        read_gguf(tmp_path / "x.gguf")
