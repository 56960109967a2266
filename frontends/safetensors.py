"""Safetensors files and the Hugging Face folders made of them, memory-mapped without a copy."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from .checkpoint import PLAIN_DTYPES, CheckpointError, Tensor, map_bytes, read_json

FORMATS = {name.upper(): name for name in PLAIN_DTYPES}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of model.safetensors, of the shards that an index names, or of all *.safetensors files."""
    if (folder / "model.safetensors").exists():
        return read_file(folder / "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return _read_sharded(folder, index)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no *.safetensors file; other weight formats have to be saved as safetensors first")
    return _join(files)


def read_file(path: Path) -> dict[str, Tensor]:
    """Read one file's header and return views of its tensors, or say how the file is broken."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; download the missing file")
    data = map_bytes(path)
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or header_bytes > min(len(data) - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} is truncated or no safetensors file: {len(data)} bytes cannot hold its header; download it again")
    header = _parse_header(path, data[8 : 8 + header_bytes].tobytes())
    body = data[8 + header_bytes :]
    tensors: dict[str, Tensor] = {}
    end = 0  # the format leaves no holes: tensors follow each other to the end of the file
    entries = [(*_parse_entry(path, name, entry), name) for name, entry in header.items() if name != "__metadata__"]
    for first, last, shape, kind, name in sorted(entries):
        if first != end or last > len(body):
            state = f"lies at bytes {first} to {last} of {len(body)}, where byte {end} is next"
            raise CheckpointError(f"{path} is truncated or corrupt: tensor {name} {state}; download it again")
        tensors[name] = Tensor(name, shape, kind, body[first:last])
        end = last
    if end != len(body):
        raise CheckpointError(f"{path} is corrupt: {len(body) - end} bytes after the last tensor belong to none; download it again")
    return tensors


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise _corrupt_header(path, str(error)) from None
    if not isinstance(header, dict):
        raise _corrupt_header(path, "it is not a JSON object")
    return header


def _corrupt_header(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} has a corrupt header: {what}; download it again")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _parse_entry(path: Path, name: str, entry: object) -> tuple[int, int, tuple[int, ...], str]:
    """Return first byte, end byte, shape and format of a header entry."""
    if not isinstance(entry, dict):
        raise _corrupt_header(path, f"tensor {name} is not described by an object")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _corrupt_header(path, f"tensor {name} has shape {shape!r} and data_offsets {offsets!r}")
    kind = FORMATS.get(str(entry.get("dtype")))
    if kind is None:
        raise CheckpointError(f"{path}: tensor {name} has the dtype {entry.get('dtype')!r}, which is not one of {', '.join(FORMATS)}")
    needed = prod(shape) * PLAIN_DTYPES[kind].itemsize
    if needed != offsets[1] - offsets[0]:
        size = f"{offsets[1] - offsets[0]} bytes for {kind}{list(shape)}, which needs {needed}"
        raise _corrupt_header(path, f"tensor {name} has {size}")
    return offsets[0], offsets[1], tuple(shape), kind


def _are_counts(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _read_sharded(folder: Path, index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index, missing=f"{index} does not exist").get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) and Path(file).name == file for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of tensor names to file names in its folder; download it again")
    shards = {file: _read_shard(folder / file, index) for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise CheckpointError(f"{index} places tensor {name} in {file}, which does not hold it; download both again")
    return {name: shards[file][name] for name, file in weight_map.items()}


def _read_shard(path: Path, index: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"the shard {path} that {index.name} names does not exist; download the missing file")
    return read_file(path)


def _join(files: Iterable[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in files:
        found = read_file(path)
        twice = tensors.keys() & found.keys()
        if twice:
            raise CheckpointError(f"{path} repeats tensor {min(twice)} of another file; keep one set of weights in the folder")
        tensors |= found
    return tensors
