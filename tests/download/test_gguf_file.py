"""The container: files that are cut off, damaged or of another kind; and the weights of every type."""

from __future__ import annotations

import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mlxd.download import gguf_file
from mlxd.download.errors import CannotConvert
from mlxd.download.gguf import plan
from mlxd.download.gguf_file import GgufFile, read_gguf
from tests.support.gguf_writer import RawTensor, encode_tensor, write_container
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
        (b"GGUF", "is cut off"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 0), "is cut off"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQ2sIIQ", 3, 0, 1, 2, b"ab", 9, 0, 1 << 60), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQ2sIIQ", 3, 0, 1, 2, b"ab", 9, 8, 1 << 60), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQ2sI", 3, 0, 1, 2, b"ab", 9) + struct.pack("<IQ", 9, 9) * 2000, "is damaged"),
        (b"GGUF" + struct.pack("<IQQQ2sII", 3, 0, 1, 2, b"ab", 77, 0), "77 is not a valid GGUFValueType"),
        (b"GGUF" + struct.pack("<IQQQ2sIQ1s", 3, 0, 1, 2, b"ab", 8, 1, b"\xff"), "can't decode byte 0xff"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 1 << 31), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQ1sI3QIQ", 3, 1, 0, 1, b"t", 3, 1 << 63, 2, 1, 0, 0), "is cut off"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 1, 0, (1 << 64) - 1), "is damaged"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 1, 99, 0), "99 is not a valid GGMLQuantizationType"),
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
        file.read(max(file.tensors, key=lambda tensor: tensor.offset), None)


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
    write_gguf(tmp_path / "x.gguf", changes={f"k{number}": "x" * 500_000 for number in range(4)})
    with pytest.raises(CannotConvert, match="its metadata are over 1 MiB"):
        read_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("sound", "damaged", "words"),
    [
        (b"second", b"first!", "duplicated tensor with name first!"),
        (struct.pack("<I2QI", 2, 32, 2, 2), struct.pack("<I2QI", 2, 33, 2, 2), "row size \\(33\\) is not a multiple"),
        (struct.pack("<II", 4, 64), struct.pack("<II", 4, 0), "Invalid alignment"),
    ],
)
def test_headers_that_cannot_be(tmp_path: Path, sound: bytes, damaged: bytes, words: str) -> None:
    """Two tensors of one name, rows that do not end with a block, and an alignment of nothing are damage."""
    tensors = [RawTensor(name, (2, 32), "Q4_0", bytes(36)) for name in ("first!", "second")]
    write_container(tmp_path / "x.gguf", {"general.alignment": 64}, tensors)
    content = (tmp_path / "x.gguf").read_bytes()
    assert sound in content
    (tmp_path / "x.gguf").write_bytes(content.replace(sound, damaged))
    with pytest.raises(CannotConvert, match=words):
        read_gguf(tmp_path / "x.gguf")


def placed(folder: Path, type_name: str, rows: int = 3) -> tuple[GgufFile, NDArray[np.float32]]:
    """Return a file with one matrix of a type, and its weights by the package."""
    weights = np.random.default_rng(3).normal(size=(rows, 256)).astype(np.float32)
    tensor = encode_tensor("m", weights, type_name)
    write_container(folder / "x.gguf", {}, [tensor])
    kind = GGMLQuantizationType[type_name]
    data = np.frombuffer(tensor.data, np.uint8).reshape(rows, -1)
    return read_gguf(folder / "x.gguf"), dequantize(data, kind).reshape(rows, 256)


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0"])
def test_what_mlx_has_stays_as_it_is(tmp_path: Path, type_name: str) -> None:
    """These types come out as MLX's own reader has them, to the bit."""
    file, expected = placed(tmp_path, type_name)
    (tensor,) = file.tensors
    bits = tensor.bits(None)
    parts = file.read(tensor, bits)
    theirs = mx.load(str(tmp_path / "x.gguf"), format="gguf")
    assert isinstance(theirs, dict)

    assert (bits is None) is (set(parts) == {""})
    for part, array in parts.items():
        other = theirs["m" if part in {"", "weight"} else f"m.{part}"]
        if array.dtype == mx.bfloat16:  # MLX's reader makes float16 of it, and loses some
            other = other.astype(mx.bfloat16)
        assert array.dtype == other.dtype
        assert mx.array_equal(array, other), part
    if bits is not None:
        scales, biases = (parts[part].astype(mx.float32) for part in ("scales", "biases"))
        weights = mx.dequantize(parts["weight"], scales, biases, group_size=32, bits=bits)
        assert np.allclose(np.array(weights), expected, rtol=0, atol=1e-4)


OTHERS = {
    4: [
        *("Q2_K", "Q3_K", "Q4_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL"),
        *("IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
    ],
    8: ["Q5_0", "Q5_1", "Q5_K", "Q6_K"],
}


@pytest.mark.parametrize(("bits", "type_name"), [(bits, name) for bits, names in OTHERS.items() for name in names])
def test_other_types_are_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, type_name: str) -> None:
    """Any other type that the package reads becomes its floats, or those quantized with the next bits that MLX has."""
    monkeypatch.setattr(gguf_file, "_SLICE_BYTES", 2048)  # two rows
    file, expected = placed(tmp_path, type_name)
    (tensor,) = file.tensors
    assert tensor.bits(None) == bits
    assert np.array_equal(np.array(file.read(tensor, None)[""]), expected)
    parts = file.read(tensor, bits)
    for part, array in zip(("weight", "scales", "biases"), mx.quantize(mx.array(expected), 32, bits), strict=True):
        assert mx.array_equal(parts[part], array), part


def test_bits_that_are_wished_for(tmp_path: Path) -> None:
    """Every matrix gets the bits that were asked for, or stays floats; vectors and odd rows always do."""
    file, _ = placed(tmp_path, "Q4_0")
    (matrix,) = file.tensors
    assert [matrix.bits(wanted) for wanted in (None, 4, 8, 16)] == [4, 4, 8, None]
    assert matrix._replace(type_name="F16").bits(4) == 4
    assert matrix._replace(type_name="F16", shape=(3, 33)).bits(4) is None
    assert matrix._replace(shape=(32,)).bits(4) is None


def test_types_that_nothing_reads_are_named(tmp_path: Path) -> None:
    """Types that the package cannot dequantize are named with their numbers, and what to do instead."""
    write_gguf(tmp_path / "x.gguf", more=[RawTensor("new", (32,), "Q8_1", bytes(40))])
    with pytest.raises(CannotConvert, match=r"of types that cannot be converted: Q8_1 \(1 of 21\)") as caught:
        read_gguf(tmp_path / "x.gguf")
    assert caught.value.data == {"types": {"Q8_1": 1}}
    assert "mlxctl model pull" in str(caught.value.hint)
