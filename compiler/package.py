"""The `.wgpu-llama` file: everything a player needs, as data.

u32 little-endian header length, a JSON manifest, then blobs on 256-byte boundaries, each with a crc32. Weight blobs are the contents of
whole GPU buffers. The manifest, by key: format and version; model (dimensions); tokenizer; weights (name, shape, dtype, layout, planes as
[buffer, offset, bytes], and of quantized ones format, blockSize, groupSize, and which planes are scales and zeroPoints); blobs (offset,
bytes, crc32); and variants, the most demanding first, of which a player takes the first that its adapter meets. A variant: model (what it
has otherwise); device (name, and what it must offer); states; buffers (bytes by name); shaders (WGSL without `enable` lines, bindings,
needed features); programs (graph text, step-buffer layout, dispatches); memory.
"""
from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .ir import Graph
from .layouts import LAYOUTS
from .ops import NUMPY, step
from .sources import Piece
from .text import read

FORMAT, VERSION, ALIGN = "wgpu-llama", 1, 256
SHARED = {"model", "weights"}
VARYING = {"model", "device", "states", "buffers", "shaders", "programs", "memory"}


class PackageError(Exception):
    """A package is bad, or asks for what a device lacks; the message is one clear sentence."""


@dataclass
class Package:
    """shared: what the manifest says of all variants; variants: what it says of each. blob(name): the bytes of a blob, uint8 [size]; may be
    made when it is asked for. array(name), pieces(name): of a package that was just compiled, what a weight's layout packs, in one and
    where it comes from. check(): of a file, raises PackageError where a checksum does not match. chosen: the variant that `manifest` shows,
    and which is played."""

    shared: dict[str, Any]
    variants: list[dict[str, Any]]
    blob: Callable[[str], np.ndarray]
    timings: dict[str, float] = field(default_factory=dict)     # seconds by compiler stage; not saved
    array: Callable[[str], np.ndarray] | None = None
    pieces: Callable[[str], list[Piece]] | None = None
    check: Callable[[], None] = lambda: None
    chosen: int = 0

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """All that there is to know of the chosen variant, flat."""
        variant = self.variants[self.chosen]
        return {**self.shared, **variant, "model": {**self.shared["model"], **variant["model"]}}

    def variant(self, number: int) -> Package:
        """The same package with another variant chosen."""
        return replace(self, chosen=number)

    def variant_for(self, device: str) -> Package:
        """The variant whose device has this name. Raises PackageError naming those that there are."""
        names = [variant["device"]["name"] for variant in self.variants]
        if device not in names:
            raise PackageError(f"the package has no variant for '{device}'; it has: {', '.join(names)}")
        return self.variant(names.index(device))

    def save(self, path: str | Path, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Write the file; it appears only when it is complete. progress(bytes written, bytes in all)."""
        path, blobs = Path(path), {}
        at = 0
        for name, entry in self.shared["blobs"].items():
            blobs[name] = {"offset": at, "size": entry["size"], "crc32": "00000000"}
            at += -(-entry["size"] // ALIGN) * ALIGN
        partial = path.with_name(path.name + ".partial")
        try:
            with open(partial, "wb") as file:
                start = self._write_header(file, blobs)
                for name, entry in blobs.items():
                    data = np.ascontiguousarray(self.blob(name)).view(np.uint8).reshape(-1)
                    file.seek(start + entry["offset"])
                    file.write(data.data)
                    entry["crc32"] = f"{zlib.crc32(data.data):08x}"
                    progress(entry["offset"] + entry["size"], at)
                file.truncate(start + at)
                file.seek(0)
                self._write_header(file, blobs)
            partial.replace(path)
        except OSError as err:
            raise PackageError(f"{path} cannot be written: {err.strerror}") from err
        finally:
            partial.unlink(missing_ok=True)

    def _write_header(self, file, blobs: Mapping[str, Any]) -> int:
        """Write the header, whose length does not depend on the checksums; returns where blobs start."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **self.shared, "blobs": blobs, "variants": self.variants}).encode()
        text += b" " * (-(len(text) + 4) % ALIGN)
        file.write(struct.pack("<I", len(text)) + text)
        return len(text) + 4

    def graph(self, program: str) -> Graph:
        return self._graphs[program]

    @cached_property
    def _graphs(self) -> dict[str, Graph]:
        return {name: read(p["graph"]) for name, p in self.manifest["programs"].items()}

    def weight(self, name: str) -> np.ndarray:
        """A weight as numbers, float32 (or its integer dtype)."""
        entry, planes = self.manifest["weights"][name], self._planes(name)
        if entry["layout"] == "row":
            return planes[0].view(NUMPY[entry["dtype"]]).reshape(entry["shape"])
        return LAYOUTS[entry["layout"]].unpack(planes, tuple(entry["shape"]))

    def stored(self, name: str) -> np.ndarray:
        """A weight as its layout packs it without loss: the rows of its format (uint8) if that is a quantized one, else numbers."""
        entry = self.manifest["weights"][name]
        rows = LAYOUTS[entry["layout"]].rows
        return rows(self._planes(name), tuple(entry["shape"])) if rows else self.weight(name)

    def _planes(self, name: str) -> tuple[np.ndarray, ...]:
        return tuple(self._cached(buffer)[at:at + size] for buffer, at, size in self.manifest["weights"][name]["planes"])

    def _cached(self, name: str) -> np.ndarray:
        if name not in self._blobs:
            self._blobs[name] = self.blob(name)
        return self._blobs[name]

    @cached_property
    def _blobs(self) -> dict[str, np.ndarray]:
        return {}

    @cached_property
    def _numbers(self) -> dict[str, np.ndarray]:
        return {}

    def new_states(self) -> dict[str, np.ndarray]:
        """Zeros for every state."""
        return {name: np.zeros(s["shape"], NUMPY[s["dtype"]]) for name, s in self.manifest["states"].items()}

    def evaluate(self, program: str, states: dict[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> None:
        """Play a program in numpy: what it means. Updates `states`."""
        graph = self.graph(program)
        for name in graph.role("weight"):
            if name not in self._numbers and name in self.manifest["weights"]:
                self._numbers[name] = self.weight(name)
        step(graph, states, {**self._numbers, **feeds})


def open_package(path: str | Path, checked: bool = True) -> Package:
    """Memory-map a package and check it, but for its checksums if `checked` is false: then whoever asked calls `check` before anybody
    takes the package for whole. Raises PackageError with the reason when it is not."""
    path = Path(path)
    try:
        size = path.stat().st_size
        raw = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
    except OSError as err:
        raise PackageError(f"{path} cannot be read: {err.strerror}") from err
    if size < 8 or (length := struct.unpack("<I", raw[:4].tobytes())[0]) + 4 > size:
        raise PackageError(f"{path} is no .wgpu-llama file, or only a piece of one: its header is longer than the file")
    try:
        manifest = json.loads(raw[4:4 + length].tobytes())
        if manifest["format"] != FORMAT:
            raise PackageError(f"{path} is a '{manifest['format']}' file, not a .wgpu-llama package")
        if manifest["version"] != VERSION:
            raise PackageError(f"{path} is version {manifest['version']} of the format, this Tilewright reads version {VERSION}: compile it again")
        blobs = {name: (length + 4 + b["offset"], b["size"], b["crc32"]) for name, b in manifest["blobs"].items()}
        variants = manifest.get("variants") or [{}]
        missing = (SHARED - manifest.keys()) | set().union(*(VARYING - variant.keys() for variant in variants))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise PackageError(f"{path} is no .wgpu-llama file: its header is damaged ({err})") from err
    if missing:
        raise PackageError(f"{path} is damaged: its header lacks {', '.join(sorted(missing))}")
    _check_sizes(path, raw, blobs)
    shared = {key: value for key, value in manifest.items() if key not in ("format", "version", "variants")}
    package = Package(shared, variants, lambda name: raw[blobs[name][0]:blobs[name][0] + blobs[name][1]],
                      check=lambda: _check_sums(path, raw, blobs))
    if checked:
        package.check()
    return package


def _check_sizes(path: Path, raw: np.ndarray, blobs: Mapping[str, tuple[int, int, str]]) -> None:
    for name, (offset, size, _) in blobs.items():
        if not 0 <= offset <= offset + size <= raw.size:
            end = offset + size
            raise PackageError(f"{path} is truncated: '{name}' ends at byte {end:,} but the file has {raw.size:,}; copy or compile it again")


def _check_sums(path: Path, raw: np.ndarray, blobs: Mapping[str, tuple[int, int, str]]) -> None:
    def intact(item: tuple[str, tuple[int, int, str]]) -> str | None:
        name, (offset, size, crc) = item
        return None if f"{zlib.crc32(raw[offset:offset + size].data):08x}" == crc else name
    with ThreadPoolExecutor() as pool:      # crc32 releases the interpreter lock
        if broken := [n for n in pool.map(intact, blobs.items()) if n]:
            raise PackageError(f"{path} is damaged: the checksum of '{broken[0]}' does not match; copy or compile it again")
