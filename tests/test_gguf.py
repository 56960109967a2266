"""GGUF files: held to the public writer, and to a sentence for every kind of damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tilewright.frontends.checkpoint import CheckpointError, open_checkpoint, read_tokenizer
from tilewright.frontends.gguf import TENSOR_TYPES, read_file

NORM = np.arange(32, dtype=np.float32)
MATRIX = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)


def write(path: Path, fill: Callable[[gguf.GGUFWriter], None]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def fill_small(writer: gguf.GGUFWriter) -> None:
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.epsilon", 0.5)
    writer.add_bool("flag", True)
    writer.add_array("names", ["α", "", "c"])
    writer.add_array("counts", [1, -2, 3])
    writer.add_int64("large", -(2**40))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b", "ab", "<end>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    writer.add_tensor("norm", NORM)
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.BF16):
        writer.add_tensor(kind.name.lower(), gguf.quants.quantize(MATRIX, kind), raw_dtype=kind)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "small.gguf", fill_small)


def raw(*entries: bytes, tensors: int = 0, version: int = 3, count: int | None = None) -> bytes:
    head = struct.pack("<4sIQQ", b"GGUF", version, tensors, len(entries) if count is None else count)
    return head + b"".join(entries)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def test_small_model(small: Path) -> None:
    checkpoint = open_checkpoint(small)
    config = checkpoint.config
    assert checkpoint.format == "gguf" and config["general.architecture"] == "llama"
    assert (config["llama.block_count"], config["llama.epsilon"], config["flag"], config["large"]) == (2, 0.5, True, -(2**40))
    assert config["names"] == ["α", "", "c"] and config["counts"] == [1, -2, 3]
    assert "tokenizer.ggml.tokens" not in config and config["tokenizer.ggml.eos_token_id"] == 3
    assert {t.name: (t.shape, t.format) for t in checkpoint.tensors.values()} == {
        "norm": ((32,), "f32"),
        "q8_0": ((3, 64), "q8_0"),
        "q4_0": ((3, 64), "q4_0"),
        "bf16": ((3, 64), "bf16"),
    }
    np.testing.assert_array_equal(checkpoint.tensors["norm"].array(), NORM)
    np.testing.assert_allclose(checkpoint.tensors["bf16"].array().astype(np.float32), MATRIX, rtol=2**-8)
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0):
        np.testing.assert_array_equal(checkpoint.tensors[kind.name.lower()].data, gguf.quants.quantize(MATRIX, kind).reshape(-1))
    assert checkpoint.tensors["norm"].data.base is not None, "a tensor is a view of the mapped file"
    assert checkpoint.tokenizer is not None and checkpoint.tokenizer.eos == (3,)


def test_block_sizes_agree_with_the_public_table() -> None:
    for number, (name, elements, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name.lower(), gguf.GGML_QUANT_SIZES[kind]) == (name, (elements, size))


def test_alignment_of_the_file(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(128)
        writer.add_tensor("a", NORM[:1])
        writer.add_tensor("b", NORM)

    tensors = open_checkpoint(write(tmp_path / "x.gguf", fill)).tensors
    np.testing.assert_array_equal(tensors["b"].array(), NORM)


def test_vocabulary_only_and_none(tmp_path: Path, small: Path) -> None:
    assert read_tokenizer(small).eos == (3,)
    bare = write(tmp_path / "bare.gguf", lambda writer: writer.add_tensor("a", NORM))
    assert open_checkpoint(bare).tokenizer is None
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        read_tokenizer(bare)


def write_part(folder: Path, number: int, count: int, name: str, total: int | None = None) -> Path:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", count if total is None else total)
        writer.add_tensor(name, NORM + number)

    return write(folder / f"m-{number + 1:05}-of-{count:05}.gguf", fill)


def test_split_model(tmp_path: Path) -> None:
    first, second = write_part(tmp_path, 0, 2, "a"), write_part(tmp_path, 1, 2, "b")
    for path in (first, second):
        tensors = open_checkpoint(path).tensors
        assert list(tensors) == ["a", "b"]
        np.testing.assert_array_equal(tensors["b"].array(), NORM + 1)
    with pytest.raises(CheckpointError, match="one part of a split model"):
        open_checkpoint(second.rename(tmp_path / "renamed.gguf"))
    with pytest.raises(CheckpointError, match="part 2 of 2 of a split model"):
        open_checkpoint(first)
    write_part(tmp_path, 1, 2, "a")
    with pytest.raises(CheckpointError, match="repeats tensor a"):
        open_checkpoint(first)
    write_part(tmp_path, 0, 2, "c", total=5)
    with pytest.raises(CheckpointError, match="hold 2 tensors instead of 5"):
        open_checkpoint(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="says that it is part 0 of 2"):
        open_checkpoint(first)


LARGE = 2**62


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a GGUF file"),
        (b"PK\3\4", "not a GGUF file"),
        (b"GGUF", "the version needs 4 bytes"),
        (raw(version=1), "has version 1"),
        (raw(version=3 << 24), "big-endian"),
        (raw(tensors=LARGE), "tensors cannot fit"),
        (raw(count=LARGE), "metadata entries cannot fit"),
        (raw(entry("k", 13, b"")), "unknown value type 13"),
        (raw(entry("k", 8, struct.pack("<Q", LARGE))), "k needs"),
        (raw(entry("k", 9, struct.pack("<IQ", 8, LARGE))), "strings of k cannot fit"),
        (raw(entry("k", 9, struct.pack("<IQ", 4, LARGE))), "items of k cannot fit"),
        (raw(entry("k", 9, struct.pack("<IQ", 9, 1))), "unsupported value type 9"),
        (raw(entry("k", 0, b"\1"), entry("k", 0, b"\1")), "k occurs twice"),
        (raw(entry("k", 8, struct.pack("<Q", 1) + b"\xff")), "not UTF-8"),
        (raw(entry("general.alignment", 4, struct.pack("<I", 0))), "general.alignment 0"),
        (raw(entry("general.alignment", 4, struct.pack("<I", 24))), "general.alignment 24"),
        (raw(entry("general.alignment", 8, text("x"))), "general.alignment 'x'"),
        (raw(count=0, tensors=1) + tensor("t", [1] * 5), "5 dimensions"),
        (raw(count=0, tensors=1) + tensor("t", [0, 4]), r"the dimensions \[0, 4\]"),
        (raw(count=0, tensors=1) + tensor("t", [4], 4), "unknown ggml type 4"),
        (raw(count=0, tensors=1) + tensor("t", [40], 8), "rows of 40 elements"),
        (raw(count=0, tensors=1) + tensor("t", [1], 0, 4), "offset 4"),
        (raw(count=0, tensors=1) + tensor("t", [1], 0, LARGE), "tensor t ends at byte"),
        (raw(count=0, tensors=1) + tensor("t", [LARGE, LARGE, LARGE], 0), "tensor t ends at byte"),
        (raw(count=0, tensors=2) + tensor("t", [1]) * 2 + bytes(64), "t occurs twice"),
    ],
)
def test_refusals(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        read_file(path)


def test_truncated_file(tmp_path: Path, small: Path) -> None:
    whole = small.read_bytes()
    path = tmp_path / "x.gguf"
    for size in range(0, len(whole) - 32, 7):  # the writer pads the end
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 8, 9, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
EDITS = st.tuples(st.integers(0, 1 << 16), st.one_of(NUMBERS.map(lambda n: struct.pack("<Q", n)), st.binary(min_size=1, max_size=4)))


@settings(max_examples=500, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDITS, min_size=1, max_size=4))
def test_mutated_header_is_read_or_refused(tmp_path: Path, small: Path, edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(small.read_bytes())
    header = len(data) - sum(t.data.nbytes for t in open_checkpoint(small).tensors.values())
    for position, patch in edits:
        position %= header - 8
        data[position : position + len(patch)] = patch
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError:
        return
    assert sum(t.data.nbytes for t in checkpoint.tensors.values()) <= len(data) * len(checkpoint.tensors)
