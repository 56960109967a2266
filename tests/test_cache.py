"""Keys and values as 8-bit integers: the layout, what it means to the passes, and a model that keeps them so."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tilewright
from hypothesis import given, settings
from hypothesis import strategies as st
from tilewright.api import compile_for, record_of
from tilewright.compiler.builder import Builder
from tilewright.compiler.device import Device, shipped_devices
from tilewright.compiler.ir import Graph, GraphError
from tilewright.compiler.layouts import LAYOUTS, plane_bytes
from tilewright.compiler.ops import step
from tilewright.compiler.pipeline import run_stages
from tilewright.compiler.report import describe
from tilewright.frontends.checkpoint import CheckpointError, open_checkpoint
from tilewright.templates import KERNELS

DATA = Path(__file__).parent / "data"
DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
LAYOUT = LAYOUTS["q8_cache"]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 99), st.integers(1, 4), st.floats(1e-6, 1e6))
def test_the_layout_keeps_numbers_to_half_a_step(seed, groups, size):
    x = (size * np.random.default_rng(seed).standard_normal((3, 32 * groups))).astype(np.float32)
    x[0] = 0
    got = LAYOUT.unpack(LAYOUT.pack(x), x.shape)
    steps = np.abs(x.reshape(-1, 32)).max(-1, keepdims=True) / 127
    assert (np.abs(got - x).reshape(-1, 32) <= 0.50001 * steps).all()
    planes = plane_bytes(x.shape, "f32", "q8_cache")
    assert planes == tuple(p.nbytes for p in LAYOUT.pack(x)) and 8 * sum(planes) == 9 * x.size


def layer(rows: int = 4, rounding: str = "q8_cache") -> Graph:
    """Cache writes of a layer with 4 key heads, and its attention."""
    b = Builder()
    at = b.input("position", (rows,)), b.input("slot", (rows,))
    new = [b.cache_write(b.state(n, (2, 4, 64, 32), layout="q8_cache"), b.state(f"new_{n}", (rows, 4, 32)), *at, rounding=rounding)
           for n in ("keys", "values")]
    y = b.attention(b.state("q", (rows, 8, 32)), *new, *at, scale=0.2)
    return b.graph(b.store(b.state("kept", (rows, 8 * 32)), y))


def test_a_cache_is_written_as_it_is_stored():
    with pytest.raises(GraphError, match="what goes into a cache stored as q8_cache is rounded so, not as row"):
        layer(rounding="row")


def narrow(device: Device) -> Device:
    """With bindings for half of a layer's cache: 2 slots, 4 heads, 64 rows and 32 elements are 16 kB of integers."""
    return replace(device, limits={**device.limits, "max_storage_buffer_binding_size": 8192})


@pytest.mark.parametrize("form", [lambda d: d, narrow])
@pytest.mark.parametrize("device", shipped_devices(), ids=lambda d: d.name)
def test_every_stage_means_the_same(device, form):
    device, graph = form(device), layer()
    rng = np.random.default_rng(0)
    states = {n: rng.standard_normal(v.shape).astype(np.float32) for n, v in graph.role("state").items()}
    feeds = {"position": np.array([3, 9, -1, 0], np.int32), "slot": np.array([0, 1, 0, 0], np.int32)}
    want = {n: a.copy() for n, a in states.items()}
    step(graph, want, feeds)
    assert (want["keys"] != states["keys"]).sum() == 3 * 4 * 32
    graphs = {}
    for stage, graphs, _ in run_stages({"layer": graph}, device, KERNELS):
        mine = {}
        for name, value in graphs["layer"].role("state").items():
            whole, _, part = name.rpartition(".")
            mine[name] = np.split(states[whole], 4 // value.shape[1], 1)[int(part)].copy() if whole else states[name].copy()
        step(graphs["layer"], mine, feeds)
        np.testing.assert_allclose(mine["kept"], want["kept"], rtol=1e-5, atol=1e-5, err_msg=stage)
        keys = np.concatenate([mine[n] for n in sorted(mine) if n.startswith("keys")], 1)
        np.testing.assert_array_equal(keys, want["keys"], err_msg=stage)
    assert ("keys.1" in graphs["layer"].values) == (form is narrow)


def test_what_cannot_be_asked_for():
    with pytest.raises(CheckpointError, match="cache q8_0 needs head_dim to be a multiple of 32, and the model's is 16"):
        tilewright.compile(DATA / "truth" / "llama", device="reference", cache="q8_0")
    with pytest.raises(CheckpointError, match="unknown cache 'q8'; known: f32, f16, q8_0"):
        tilewright.compile(DEMO, device="reference", cache="q8")
    with pytest.raises(CheckpointError, match="unknown dtype 'q8_0'; known: f32, f16"):
        tilewright.compile(DEMO, device="reference", dtype="q8_0")
    with pytest.raises(CheckpointError, match="unknown weight format 'q8_cache'"):
        tilewright.compile(DEMO, device="reference", quantize="q8_cache")


def test_memory_is_what_the_layout_takes():
    def caches(kind: str) -> int:
        package = compile_for(open_checkpoint(DEMO), shipped_devices()[0], cache=kind)
        return sum(s["bytes"] for s in describe(package)["states"] if s["name"].startswith("layers."))
    assert 32 * caches("q8_0") == 9 * caches("f32")


@pytest.fixture(scope="module")
def package(gpu, tmp_path_factory):
    path = tmp_path_factory.mktemp("q8") / "tales.wgpu-llama"
    compile_for(open_checkpoint(DEMO), record_of(gpu), cache="q8_0").save(path)
    return path


@pytest.fixture(scope="module")
def truth():
    return np.load(DATA / "models" / "tales-llama4.npz")


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    return float(((got - want) ** 2).sum() / (want**2).sum())


def test_a_model_with_a_rounded_cache(package, truth):
    """3.2e-6 measured, f16 gives 8e-9; two packages of one model play the same to the bit."""
    models = [tilewright.load(package), tilewright.load(DEMO, cache="q8_0")]
    try:
        first, second = (m.logits(truth["token_ids"])[truth["positions"]] for m in models)
        np.testing.assert_array_equal(first, second)
        assert nmse(first, truth["logits"]) <= 3e-5
        best = np.sort(truth["logits"], -1)
        clear = best[:, -1] - best[:, -2] > 0.1
        np.testing.assert_array_equal(first.argmax(-1)[clear], truth["logits"].argmax(-1)[clear])
        tokens = [token for token, _ in models[0].stream(truth["greedy0_prompt"], max_tokens=64)]
        unsure = np.flatnonzero(truth["greedy0_margin"] <= 0.1)
        count = unsure[0] if len(unsure) else 64
        assert len(tokens) == 64 and tokens[:count] == truth["greedy0_tokens"].tolist()[:count]
    finally:
        for model in models:
            model.close()


def test_numpy_and_the_gpu_mean_the_same(package, truth):
    ids = truth["token_ids"][:160]      # more than a prefill chunk
    models = [tilewright.load(package), tilewright.load(package, device="reference")]
    got, want = (m.logits(ids) for m in models)
    models[0].close()
    assert nmse(got, want) <= 1e-6
