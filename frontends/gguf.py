"""GGUF files, versions 2 and 3, single or split, memory-mapped; every count and offset is checked before it is used."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import PLAIN_DTYPES, CheckpointError, Tensor, map_bytes

# ggml's number -> (name, elements of a block, bytes of a block)
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    **{number: (name, 1, PLAIN_DTYPES[name].itemsize) for number, name in {0: "f32", 1: "f16", 28: "f64", 30: "bf16"}.items()},
    **{number: (name, 1, PLAIN_DTYPES[name].itemsize) for number, name in {24: "i8", 25: "i16", 26: "i32", 27: "i64"}.items()},
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    29: ("iq1_m", 256, 56),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
}

NUMBERS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
MIN_ENTRY_BYTES = 13  # a metadata entry: key length, type and at least one byte of value
MIN_TENSOR_BYTES = 24  # a tensor: name length, number of dimensions, type and offset
MAX_DIMENSIONS = 4
SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass
class _Cursor:
    """Reads forward through the mapped bytes and refuses to leave them."""

    path: Path
    data: memoryview
    position: int = 0

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is truncated or corrupt near byte {self.position}: {what}; download it again")

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self.data) - self.position:
            raise self.fail(f"{what} needs {count} bytes and {len(self.data) - self.position} are left")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, code: str, what: str) -> int:
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def count(self, item_bytes: int, what: str) -> int:
        """Read the number of items that follow; each takes at least `item_bytes`, so the file's size bounds it."""
        count = self.number("<Q", what)
        if count * item_bytes > len(self.data) - self.position:
            raise self.fail(f"{count} {what} cannot fit into the {len(self.data) - self.position} bytes that are left")
        return count

    def text(self, what: str) -> str:
        raw = self.take(self.number("<Q", what), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def texts(self, count: int, what: str) -> list[str]:
        """As many texts; without a call for each, since a vocabulary has hundreds of thousands."""
        data, at, end, found = self.data, self.position, len(self.data), list[str]()
        size_of = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if at + 8 > end or (stop := at + 8 + size_of(data, at)[0]) > end:
                self.position = at
                raise self.fail(f"{what} ends behind the end of the file")
            try:
                found.append(str(data[at + 8 : stop], "utf-8"))
            except UnicodeDecodeError:
                raise self.fail(f"{what} is not UTF-8") from None
            at = stop
        self.position = at
        return found

    def value(self, kind: int, key: str) -> Any:
        if kind in NUMBERS:
            return self.numbers(kind, 1, key)[0]
        if kind == STRING:
            return self.text(key)
        if kind != ARRAY:
            raise self.fail(f"{key} has the unknown value type {kind}")
        item = self.number("<I", key)
        if item in NUMBERS:
            return self.numbers(item, self.count(np.dtype(NUMBERS[item]).itemsize, f"items of {key}"), key)
        if item == STRING:
            return self.texts(self.count(8, f"strings of {key}"), key)
        raise self.fail(f"{key} is an array of the unsupported value type {item}")

    def numbers(self, kind: int, count: int, key: str) -> list[Any]:
        dtype = np.dtype(NUMBERS[kind])
        raw = np.frombuffer(self.take(count * dtype.itemsize, key), np.uint8)
        return (raw != 0).tolist() if NUMBERS[kind] == "?" else raw.view(dtype).tolist()


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the metadata and tensors of a model; any part of a split model stands for the whole."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        metadata, tensors = read_file(path)
        if metadata.get("split.count", 1) not in (0, 1):
            raise CheckpointError(f"{path} is one part of a split model; keep the parts' names as NAME-00001-of-0000N.gguf")
        return metadata, tensors
    stem, parts = match[1], int(match[3])
    if not 1 <= int(match[2]) <= parts:
        raise CheckpointError(f"{path.name} names a part that its model of {parts} parts cannot have; keep the parts' original names")
    files = [path.with_name(f"{stem}-{part:05}-of-{match[3]}.gguf") for part in range(1, parts + 1)]
    return _join_parts(files)


def _join_parts(files: list[Path]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    metadata: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for number, file in enumerate(files):
        if not file.is_file():
            raise CheckpointError(f"part {number + 1} of {len(files)} of a split model, {file}, does not exist; download the missing part")
        found, part = read_file(file)
        if found.get("split.no", number) != number or found.get("split.count", len(files)) != len(files):
            place = f"part {found.get('split.no')} of {found.get('split.count')}, counted from zero"
            raise CheckpointError(f"{file} says that it is {place}; keep the parts' original names")
        if tensors.keys() & part.keys():
            raise CheckpointError(f"{file} repeats tensor {min(tensors.keys() & part.keys())} of an earlier part; download the parts again")
        metadata = metadata or found
        tensors |= part
    expected = metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CheckpointError(f"the parts of {files[0]} hold {len(tensors)} tensors instead of {expected}; download them again")
    return metadata, tensors


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read one file's metadata and return views of its tensors, or say how the file is broken."""
    data = map_bytes(path)
    cursor = _Cursor(path, data.data)
    if data[:4].tobytes() != b"GGUF":
        raise CheckpointError(f"{path} is not a GGUF file; give a .gguf file or a Hugging Face folder")
    cursor.position = 4
    version = cursor.number("<I", "the version")
    if version not in (2, 3):
        state = "is big-endian" if version in (2 << 24, 3 << 24) else f"has version {version}"
        raise CheckpointError(f"{path} {state}, and only little-endian GGUF of version 2 or 3 is read; convert it again")
    tensor_count = cursor.count(MIN_TENSOR_BYTES, "tensors")
    entry_count = cursor.count(MIN_ENTRY_BYTES, "metadata entries")
    metadata: dict[str, Any] = {}
    for _ in range(entry_count):
        key = cursor.text("a metadata key")
        if key in metadata:
            raise cursor.fail(f"the metadata key {key} occurs twice")
        metadata[key] = cursor.value(cursor.number("<I", key), key)
    return metadata, _read_tensors(cursor, data, tensor_count, _alignment(cursor, metadata))


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment {alignment!r} is not a power of two")
    return alignment


def _read_tensors(cursor: _Cursor, data: np.ndarray, count: int, alignment: int) -> dict[str, Tensor]:
    entries = [_read_entry(cursor, alignment) for _ in range(count)]
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Tensor] = {}
    for name, shape, kind, offset, size in entries:
        if name in tensors:
            raise cursor.fail(f"the tensor {name} occurs twice")
        if start + offset + size > len(data):
            raise cursor.fail(f"tensor {name} ends at byte {start + offset + size} of {len(data)}")
        tensors[name] = Tensor(name, shape, kind, data[start + offset : start + offset + size])
    return tensors


def _read_entry(cursor: _Cursor, alignment: int) -> tuple[str, tuple[int, ...], str, int, int]:
    """Return a tensor's name, shape, format, offset in the data section and size in bytes."""
    name = cursor.text("a tensor name")
    rank = cursor.number("<I", name)
    if rank > MAX_DIMENSIONS:
        raise cursor.fail(f"tensor {name} has {rank} dimensions, and GGUF allows {MAX_DIMENSIONS}")
    dims = [cursor.number("<Q", name) for _ in range(rank)]  # innermost first
    if any(not 0 < dim < 2**63 for dim in dims):
        raise cursor.fail(f"tensor {name} has the dimensions {dims}")
    number, offset = cursor.number("<I", name), cursor.number("<Q", name)
    if number not in TENSOR_TYPES:
        raise CheckpointError(f"{cursor.path}: tensor {name} has the unknown ggml type {number}; convert the model to q8_0, say")
    kind, elements, size = TENSOR_TYPES[number]
    if (dims[0] if dims else 1) % elements:
        raise cursor.fail(f"tensor {name} has rows of {dims[0] if dims else 1} elements, which {kind} blocks of {elements} do not divide")
    if offset % alignment:
        raise cursor.fail(f"tensor {name} has the offset {offset}, which is not a multiple of {alignment}")
    return name, tuple(reversed(dims)), kind, offset, prod(dims) // elements * size
