"""Quantized weights: stored blocks against gguf-py to the bit, layouts against formats, and every layout in every kernel that reads blocks."""
from __future__ import annotations

from copy import copy

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tilewright import testing
from tilewright.compiler.builder import Builder
from tilewright.compiler.formats import FORMATS
from tilewright.compiler.kernel import Kernel
from tilewright.compiler.layouts import LAYOUTS, plane_bytes
from tilewright.templates import KERNELS

GGUF = {name: gguf.GGMLQuantizationType[name.upper()] for name in FORMATS if name.upper() in gguf.GGMLQuantizationType.__members__}
ROUNDED = [name for name in GGUF if not name.endswith("_k")]      # formats that GGUF's reference says how to make
RMS = {"q8_0": .0054, "q4_0": .0860, "q4_1": .0783, "q5_0": .0427, "q5_1": .0378, "mxfp4": .1156, "q4_k": .0715, "q5_k": .0360, "q6_k": .0174,
       "i4_g32": .098, "i4_g64": .107, "i4_g128": .117, "i4z_g32": .081, "i4z_g64": .091, "i4z_g128": .100,
       "i8_g32": .0053, "i8_g64": .0059, "i8_g128": .0064, "i8z_g32": .0048, "i8z_g64": .0054, "i8z_g128": .0059}
SPECIAL = np.array([0, -0.0, 1, -1, 127, -128, 1e-3, 65504, 1e30, -1e30, 1e-30, -1e-20, 6e-8, 1e-40, 0.5, 0.25], np.float32)
few = settings(max_examples=40, deadline=None, derandomize=True)


@st.composite
def blocks(draw):
    """Rows of 256 numbers: normal at any size, whole levels (so that there are ties), constant, or of special numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    how, rows = draw(st.sampled_from(("normal", "levels", "constant", "special", "sparse"))), draw(st.integers(1, 4))
    x = rng.standard_normal((rows, 256))
    if how == "levels":
        x = np.round(2 * x) / 2
    elif how == "constant":
        x = np.broadcast_to(rng.choice(SPECIAL, (rows, 1)), x.shape)
    elif how == "special":
        x = rng.choice(SPECIAL, x.shape)
    elif how == "sparse":
        x = x * (rng.random(x.shape) < 0.02)
    scale = 1.0 if how in ("constant", "special") else 10.0 ** draw(st.integers(-12, 6))
    return (x * scale).astype(np.float32)


def bits(x):
    return np.where(np.isnan(x), np.float32(np.nan), x).astype(np.float32).view(np.uint32)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", ROUNDED)
@few
@given(x=blocks())
def test_encode_is_ggufs(name, x):
    np.testing.assert_array_equal(FORMATS[name].encode(x), gguf.quants.quantize(x, GGUF[name]))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", GGUF)
@few
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks_a_row=st.integers(1, 3))
def test_decode_is_ggufs_for_any_bytes(name, seed, rows, blocks_a_row):
    form = FORMATS[name]
    stored = np.random.default_rng(seed).integers(0, 256, (rows, blocks_a_row * form.bytes), np.uint8)
    got = form.decode(stored, blocks_a_row * form.elements)
    np.testing.assert_array_equal(bits(got), bits(gguf.quants.dequantize(stored, GGUF[name])))


@pytest.mark.parametrize("name", FORMATS)
@few
@given(x=blocks())
def test_numbers_that_f16_scales_reach_stay_numbers(name, x):
    form = FORMATS[name]
    x = np.clip(x, -6e4, 6e4) if name in ROUNDED else x
    y = form.decode(form.encode(x), x.shape[1])
    assert np.isfinite(y).all()
    assert not y[~x.any(axis=1)].any(), "zeros do not stay zeros"


@pytest.mark.parametrize("name", FORMATS)
def test_error_on_normal_numbers(name):
    x = np.random.default_rng(1).standard_normal((128, 4096)).astype(np.float32)
    y = FORMATS[name].decode(FORMATS[name].encode(x), 4096)
    assert np.sqrt(np.square(x - y).mean() / np.square(x).mean()) == pytest.approx(RMS[name], rel=0.02)


@pytest.mark.parametrize("name", FORMATS)
def test_encode_takes_other_shapes_and_float_types(name):
    form, x = FORMATS[name], np.random.default_rng(2).standard_normal((3, 2, 256)).astype(np.float16)
    rows = form.encode(x)
    assert rows.shape == (3, 2, 256 // form.elements * form.bytes)
    np.testing.assert_array_equal(rows[1, 1], form.encode(x[1, 1].astype(np.float32)))
    with pytest.raises(ValueError, match=f"30 elements are no multiple of {name}'s"):
        form.encode(np.zeros((2, 30)))
    with pytest.raises(ValueError, match=f"no row of 512 elements of {name}"):
        form.decode(rows, 512)


@pytest.mark.parametrize("name", FORMATS)
@few
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks_a_row=st.integers(1, 3))
def test_planes_keep_the_numbers_of_stored_blocks(name, seed, rows, blocks_a_row):
    form, layout, shape = FORMATS[name], LAYOUTS[name], (rows, blocks_a_row * FORMATS[name].elements)
    stored = np.random.default_rng(seed).integers(0, 256, (rows, blocks_a_row * form.bytes), np.uint8)
    planes = layout.pack(stored)
    assert tuple(p.nbytes for p in planes) == plane_bytes(shape, "f32", name)
    np.testing.assert_array_equal(bits(layout.unpack(planes, shape)), bits(form.decode(stored, shape[1])))


@pytest.mark.parametrize("name", FORMATS)
def test_planes_of_numbers(name):
    """Large enough that several threads work, on a number of blocks that fills no whole words."""
    form, layout = FORMATS[name], LAYOUTS[name]
    x = np.random.default_rng(3).standard_normal((2**15 // form.elements + 1, 33 * form.elements)).astype(np.float32)
    planes, stored = layout.pack(x), form.encode(x)
    np.testing.assert_array_equal(bits(layout.unpack(planes, x.shape)), bits(form.decode(stored, x.shape[1])))
    assert sum(p.nbytes for p in planes) <= 1.04 * stored.nbytes
    assert layout.group == form.elements and layout.block == 32


def one_op(kernel: str, layout: str):
    """A small graph whose weight has an odd number of blocks, and the feeds that are not random."""
    b, k = Builder(), 3 * max(LAYOUTS[layout].group, 64)
    if kernel == "gather":
        return b.graph(b.gather(b.weight("w", (7, k), layout=layout), b.state("index", (3,), "i32"))), {"index": np.array([6, 0, 3], np.int32)}
    if kernel == "expert_matvec":
        y = b.expert_matmul(b.state("x", (3, k)), b.weight("w", (3, 5, k), layout=layout), b.state("expert", (3, 1), "i32"))
        return b.graph(y), {"expert": np.array([[2], [0], [2]], np.int32)}
    if kernel == "expert_tiles":
        y = b.expert_matmul(b.state("x", (5, k)), b.weight("w", (3, 5, k), layout=layout), b.state("expert", (5, 2), "i32"))
        return b.graph(y), {"expert": np.array([[2, 0], [0, 2], [2, 0], [2, 0], [0, 2]], np.int32)}
    x = b.state("x", (1 if kernel == "matvec" else 7, k))
    return b.graph(b.matmul(x, b.weight("w", (5, k), layout=layout))), {}


KINDS = ("q4_0", "q6_k", "mxfp4", "i4z_g64", "i8_g128")     # one of every way to keep codes


def quick(name: str) -> Kernel:
    """The kernel without those of its schedules that software adapters compile for seconds: small tiles that few invocations load."""
    kernel = copy(KERNELS[name])
    kernel.schedules = lambda site: (s for s in KERNELS[name].schedules(site) if s.get("tile_rows", 0) >= s.get("tile_cols", 0) // 2)
    return kernel


@pytest.mark.parametrize(("kernel", "layout"), [(kernel, layout) for layout in FORMATS for kernel in
                         ("matvec", "matmul", "gather", "expert_matvec", *(["expert_tiles"] if layout in KINDS else []))])
def test_kernels_read_every_layout(gpu, device, kernel, layout):
    graph, given_feeds = one_op(kernel, layout)
    assert testing.check(gpu, graph, quick(kernel), device, testing.random_feeds(graph) | given_feeds, limit=1)
