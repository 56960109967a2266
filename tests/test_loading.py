"""Loading: stored rows taken apart on the GPU, as the layout packs them whatever pieces a weight is made of; damage; and how long it took."""
from __future__ import annotations

import ctypes
import mmap
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tilewright
from hypothesis import given, settings
from hypothesis import strategies as st
from tilewright.bench.loading import forget
from tilewright.compiler.formats import FORMATS
from tilewright.compiler.ir import Value
from tilewright.compiler.layouts import LAYOUTS, plane_bytes
from tilewright.compiler.sources import assemble, pieces_of
from tilewright.frontends.weights import unpacking
from tilewright.frontends.weights.loading import read_ahead
from tilewright.frontends.weights.unpacking import PLAIN, unpack, unpacks
from tilewright.runtime.terminal import loading
from tilewright.runtime.upload import Upload

LLAMA = Path(__file__).parent / "data" / "truth" / "llama"
SOURCES = {"alone": {}, "joined": {"w": ("concat", "a", "b")}, "interleaved": {"w": ("interleave", "a", "b")},
           "cut": {"w": ("rows", "ab", 3, 9), "ab": ("interleave", "a", "b")}}


def stored(layout, rng, shape):
    """Random rows as files hold them: any bytes for a block, any numbers otherwise."""
    if layout in PLAIN:
        return rng.standard_normal(shape).astype(PLAIN[layout])
    form = FORMATS[layout]
    return rng.integers(0, 256, (*shape[:-1], shape[-1] // form.elements * form.bytes), np.uint8)


def taken_apart(gpu, pieces, layout, shape, slot=unpacking.SLOT):
    buffers = [gpu.buffer(size) for size in plane_bytes(shape, "f32", layout)]
    with Upload(gpu, slot) as upload:
        unpack(upload, pieces, layout, shape, [(b, 0, b.size) for b in buffers])
    found = [gpu.read(b) for b in buffers]
    for buffer in buffers:
        buffer.destroy()
    return found


@pytest.mark.parametrize("layout", [*FORMATS, *PLAIN])
@settings(max_examples=4, deadline=None, derandomize=True)
@given(how=st.sampled_from(sorted(SOURCES)), seed=st.integers(0, 1 << 30), rows=st.integers(5, 40), experts=st.sampled_from((0, 3)))
def test_planes_are_what_the_layout_packs(gpu, layout, how, seed, rows, experts):
    rng = np.random.default_rng(seed)
    columns = 4 * max(LAYOUTS[layout].group, 32) * int(rng.integers(1, 3))
    lead = (experts,) if experts else ()
    leaves = {name: stored(layout, rng, (*lead, rows, columns)) for name in ("w", "a", "b")}
    values = {name: Value((), source=source) for name, source in SOURCES[how].items()}
    pieces, array = (make("w", values, leaves.__getitem__) for make in (pieces_of, assemble))
    shape = (*array.shape[:-1], columns)
    assert unpacks(layout, pieces, columns)
    with np.errstate(all="ignore"):
        want = LAYOUTS[layout].pack(array)
    for got, plane in zip(taken_apart(gpu, pieces, layout, shape), want, strict=True):
        np.testing.assert_array_equal(got, np.ascontiguousarray(plane).reshape(-1).view(np.uint8), f"{layout}, {how}")


def test_large_weights_go_in_parts(gpu, monkeypatch):
    monkeypatch.setattr(unpacking, "SLOT", 4096)
    monkeypatch.setattr(unpacking, "MOST_ROWS", 11)
    array = stored("q5_k", np.random.default_rng(0), (300, 256))
    pieces = pieces_of("w", {}, lambda name: array)
    for got, plane in zip(taken_apart(gpu, pieces, "q5_k", (300, 256), 4096), LAYOUTS["q5_k"].pack(array), strict=True):
        np.testing.assert_array_equal(got, plane)


def test_what_is_left_to_the_host():
    def one(array):
        return pieces_of("w", {}, lambda name: array)
    assert not unpacks("q8_0", one(np.zeros((4, 34), np.uint8)), 32), "two rows would share a word of scales"
    assert not unpacks("q8_0", one(np.zeros((4, 64), np.float32)), 64), "numbers are encoded"
    assert not unpacks("bf16", one(np.zeros((4, 64), np.float32)), 64)
    assert not unpacks("row", one(np.zeros((64, 4), np.float32).T), 64), "rows that do not lie behind each other"
    assert not unpacks("row", one(np.zeros(64, np.float32)), 64)


def test_bytes_of_any_length_arrive(gpu):
    """Over more slots than there are, so that each is used again, to places that are not next to each other."""
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, size, np.uint8) for size in (1, 4, 255, 5000, 257, 12345, 3)]
    buffer, places, at = gpu.buffer(40000), [], 8
    with Upload(gpu, 1024) as upload:
        for array in arrays:
            upload.write(buffer, at, array)
            places.append(at)
            at += -(-array.size // 4) * 4 + 4
        with pytest.raises(ValueError, match="do not fit into a slot"):
            upload.work([np.zeros(1025, np.uint8)], lambda source, at, size: [])
    found, want = gpu.read(buffer), np.zeros(buffer.size, np.uint8)
    for array, place in zip(arrays, places, strict=True):
        want[place:place + array.size] = array
    np.testing.assert_array_equal(found, want)


def in_memory(path: Path) -> float:
    """The share of a file's pages that the system has in memory."""
    mapped = np.memmap(path, np.uint8, "r")
    pages = np.zeros(-(-mapped.size // mmap.PAGESIZE), np.uint8)
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(mapped.ctypes.data), ctypes.c_size_t(mapped.size), ctypes.c_void_p(pages.ctypes.data)) == 0
    return float((pages & 1).mean())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reads ahead")
def test_files_are_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr("tilewright.frontends.weights.loading.READ", 1 << 20)
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(40_000_000))
    forget(path)
    if in_memory(path) > 0.5:
        pytest.skip(f"the file system of {tmp_path} keeps its files in memory")
    for reader in read_ahead(path):
        reader.join()
    assert in_memory(path) == 1
    assert read_ahead(tmp_path / "missing.gguf") == []


def test_a_model_says_how_long_it_took_to_load(gpu, tmp_path):
    model = tilewright.load(LLAMA, context=32)
    stages = {"device", "open", "compile", "buffers", "weights", "bindings"}
    assert stages | {"shaders"} <= model.load_seconds.keys()
    assert model.load_seconds["total"] >= sum(model.load_seconds[stage] for stage in stages)
    assert re.match(r"loaded 0\.\d\d GB in \d+\.\d s \(\d+\.\d GB/s", loading(model))
    model.close()
    assert loading(tilewright.load(LLAMA, "reference", context=32)).startswith("loaded")


def test_a_damaged_package_is_refused_though_checked_beside(gpu, tmp_path):
    file = tmp_path / "llama.wgpu-llama"
    tilewright.compile(LLAMA, context=32).save(file)
    data = bytearray(file.read_bytes())
    data[-4096] ^= 1
    file.write_bytes(data)
    with pytest.raises(tilewright.PackageError, match="the checksum of '.*' does not match"):
        tilewright.load(file)
