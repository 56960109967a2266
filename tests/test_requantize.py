"""Weights quantized on the GPU: bit for bit what numpy makes of them, and a loaded model that changes its formats."""
from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tilewright
from gguf import GGMLQuantizationType
from gguf_files import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from tilewright.compiler.formats import FORMATS
from tilewright.compiler.layouts import LAYOUTS, plane_bytes
from tilewright.frontends.weights import requantization
from tilewright.frontends.weights.requantization import ENCODERS, encodes
from tilewright.runtime.upload import Upload

LLAMA = Path(__file__).parent / "data" / "truth" / "llama"
SPECIAL = np.array([0, -0.0, 1, -1, 127, -128, 1e-3, 65504, 1e30, -1e30, 1e-30, 6e-8, 1e-40, -3e-39, 1e-45, 0.5, 3.4e38, -3.4e38], np.float32)


@st.composite
def blocks(draw):
    """Rows of 256 finite numbers: normal of every size, ties, constants, special ones, few or single ones, denormals, huge ones, and ones
    right below powers of two, whose logarithms round."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 7)), 256)
    x = rng.standard_normal(shape)
    makers = {
        "normal": lambda: x * 10.0 ** rng.integers(-20, 20, (len(x), 1)),
        "ties": lambda: np.round(2 * x) * 2.0 ** rng.integers(-20, 20),
        "constant": lambda: np.broadcast_to(rng.choice(SPECIAL, (len(x), 1)), shape),
        "special": lambda: rng.choice(SPECIAL, shape),
        "sparse": lambda: x * (rng.random(shape) < 0.02),
        "outlier": lambda: np.where(rng.random(shape) < 0.01, 1e4, 1e-3) * x,
        "denormal": lambda: x * 10.0 ** rng.integers(-44, -37, (len(x), 1)),
        "huge": lambda: rng.uniform(-3.4e38, 3.4e38, shape),
        "bits": lambda: (rng.integers(0, 255, shape, np.uint32) << 23 | rng.integers(0, 1 << 23, shape, np.uint32)).view(np.float32),
        "powers": lambda: 2.0 ** rng.integers(-140, 128, (len(x), 1)) * (1 - rng.integers(1, 60, shape) * 2.0**-24),
    }
    return makers[draw(st.sampled_from(sorted(makers)))]().astype(np.float32)


def encoded(gpu, array: np.ndarray, layout: str) -> tuple[np.ndarray, ...]:
    """The planes of an array, back on the host: what `LAYOUTS[layout].pack` gives."""
    buffers = [gpu.buffer(size) for size in plane_bytes(array.shape, "f32", layout)]
    try:
        with Upload(gpu) as upload:
            requantization.encode(upload, array, layout, [(b, 0, b.size) for b in buffers])
        return tuple(gpu.read(b) for b in buffers)
    finally:
        for buffer in buffers:
            buffer.destroy()


def assert_same(gpu, x, name):
    with np.errstate(all="ignore"):
        want, got = LAYOUTS[name].pack(x), encoded(gpu, x, name)
    for plane, (a, b) in enumerate(zip(got, want, strict=True)):
        a, b = a.view(np.uint16), b.reshape(-1).view(np.uint16)
        if ENCODERS[name]["kind"] == "ranged" and plane == len(want) - 1:       # numpy gives the least of 0 and -0 either sign
            a, b = a * (a != 0x8000), b * (b != 0x8000)
        np.testing.assert_array_equal(a, b, f"plane {plane} of {name}")


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(x=blocks())
def test_the_gpu_encodes_as_numpy_does(gpu, name, x):
    assert_same(gpu, x, name)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", (np.float16, ml_dtypes.bfloat16))
def test_every_half_is_read_as_it_is(gpu, name, dtype):
    """All finite numbers of 16 bits, neighbours (of all signs) and strangers in one block."""
    halves = np.arange(65536, dtype=np.uint16).view(dtype)
    halves = halves[np.isfinite(halves.astype(np.float32))]
    for x in (halves, np.random.default_rng(0).permutation(halves)):
        assert_same(gpu, x[:len(x) // 256 * 256].reshape(-1, 256), name)


@pytest.mark.parametrize("name", ("q5_0", "mxfp4", "i8z_g128", "q6_k"))
def test_large_weights_go_in_pieces(gpu, name, monkeypatch):
    monkeypatch.setattr(requantization, "PIECE", 1 << 15)
    x = np.random.default_rng(1).standard_normal((3, 131, 256)).astype(np.float32)
    assert_same(gpu, x, name)
    for layout in ENCODERS:
        least = min(plane_bytes((1 << 22,), "f32", layout))
        assert least % 256 == 0, "pieces of 2^22 numbers must end where a binding may begin"


def test_what_the_gpu_encodes():
    assert ENCODERS.keys() == FORMATS.keys()
    assert encodes(np.zeros(32, np.float16), "q8_0") and encodes(np.zeros(32, ml_dtypes.bfloat16), "i4_g32")
    assert not encodes(np.zeros(256, np.float32), "bf16") and not encodes(np.zeros(34, np.uint8), "q8_0")


PROMPT = [3, 141, 59, 26, 53, 58]


@pytest.fixture(scope="module")
def llama(gpu):
    model = tilewright.load(LLAMA, context=32)
    yield model
    model.close()


@pytest.mark.parametrize("quantize", ({"embedding": "mxfp4", "*": "q4_0"}, "q6_k", None))
def test_requantizing_is_loading_anew(llama, quantize):
    """q6_k does not fit rows of 64, so that falls back; the numpy blobs of a package are what the GPU's buffers hold."""
    llama.requantize(quantize)
    fresh = tilewright.load(LLAMA, context=32, quantize=quantize)
    try:
        np.testing.assert_array_equal(llama.logits(PROMPT), fresh.logits(PROMPT))
        assert [t for t, _ in llama.stream(PROMPT, max_tokens=8)] == [t for t, _ in fresh.stream(PROMPT, max_tokens=8)]
        manifest = llama.package.manifest
        for blob in (b for b in manifest["blobs"] if b in llama.player.buffers):
            np.testing.assert_array_equal(llama.player.gpu.read(llama.player.buffers[blob], 0, manifest["blobs"][blob]["size"]),
                                          llama.package.blob(blob))
    finally:
        fresh.close()


def test_a_refusal_leaves_the_model_as_it_was(llama):
    llama.requantize("q8_0")
    before = llama.logits(PROMPT)
    with pytest.raises(tilewright.CheckpointError, match="unknown weight format 'q9'"):
        llama.requantize("q9")
    np.testing.assert_array_equal(llama.logits(PROMPT), before)


def test_a_stream_ends_when_its_model_changes(llama):
    stream = llama.stream(PROMPT, max_tokens=8)
    next(stream)
    llama.requantize("q4_1")
    with pytest.raises(RuntimeError, match="this stream ended"):
        list(stream)


def test_the_reference_requantizes():
    model = tilewright.load(LLAMA, "reference", context=32)
    model.requantize("q4_0")
    np.testing.assert_array_equal(model.logits(PROMPT), tilewright.load(LLAMA, "reference", context=32, quantize="q4_0").logits(PROMPT))


def test_no_numbers_no_requantizing(gpu, tmp_path):
    package = tmp_path / "llama.wgpu-llama"
    tilewright.compile(LLAMA, context=32).save(package)
    model = tilewright.load(package)
    with pytest.raises(tilewright.PackageError, match="loaded from a package"):
        model.requantize("q8_0")
    model.close()
    model = tilewright.load(write_gguf(LLAMA, tmp_path / "llama.gguf", GGMLQuantizationType.Q4_0), context=32)
    with pytest.raises(tilewright.CheckpointError, match="is stored in q4_0 already"):
        model.requantize("q8_0")
    assert np.isfinite(model.logits(PROMPT)).all()
    model.close()
