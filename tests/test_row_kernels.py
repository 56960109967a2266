"""Kernels over rows against numpy, over shapes that nobody thought of, and every schedule of every kernel once."""
import numpy as np
import pytest
from cases import Case, cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounded_cases import rounded
from tilewright import Builder
from tilewright.templates import KERNELS
from tilewright.testing import check, random_feeds

FEW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS, WIDTHS = st.integers(1, 9), st.integers(1, 70)
# attention, matmul and their like have a test of their own that runs every schedule
ONCE = {c.kernel: c for c in cases() if not c.kernel.startswith(("attention", "heads", "expert_tiles", "matmul"))}


@pytest.mark.parametrize("case", ONCE.values(), ids=lambda case: case.kernel)
def test_every_schedule(gpu, device, case: Case):
    if "f16" in case.label.split()[-1] and "shader-f16" not in device.features:
        pytest.skip(f"{device.name} has no shader-f16")
    for form in (device, device.without("subgroups")):
        assert check(gpu, case.graph, KERNELS[case.kernel], form, case.feeds)


@FEW
@given(rows=ROWS, width=WIDTHS, weighed=st.booleans(), subgroups=st.booleans())
def test_rms_norm(gpu, device, rows, width, weighed, subgroups):
    g = Builder()
    x = g.state("x", (rows, width))
    graph = g.graph(g.rms_norm(x, *([g.weight("w", (width,))] if weighed else []), eps=1e-5))
    check(gpu, graph, KERNELS["rms_norm"], device if subgroups else device.without("subgroups"), limit=2)


@FEW
@given(rows=ROWS, blocks=st.integers(1, 9), layout=st.sampled_from(["row", "bf16", "q4_0", "q8_0"]), seed=st.integers(0, 99))
def test_gather(gpu, device, rows, blocks, layout, seed):
    g = Builder()
    table, index = g.weight("table", (30, 32 * blocks), layout=layout), g.input("index", (rows,))
    graph = g.graph(g.gather(table, index, g.state("last", (2,), "i32"), g.input("slot", (rows,))))
    rng, feeds = np.random.default_rng(seed), random_feeds(graph)
    feeds |= {"index": rng.integers(-1, 30, rows).astype(np.int32), "slot": rng.integers(0, 2, rows).astype(np.int32),
              "last": rng.integers(0, 30, 2).astype(np.int32)}
    check(gpu, graph, KERNELS["gather"], device, feeds, limit=1)


@FEW
@given(rows=ROWS, width=WIDTHS, lead=st.booleans())
def test_map(gpu, device, rows, width, lead):
    g = Builder()
    x, y = g.state("x", (rows, 3, width)), g.state("y", (rows, 3, 1) if lead else (width,))
    check(gpu, g.graph(g.silu(g.mul(x, y))), KERNELS["map"], device, limit=1)


@FEW
@given(rows=ROWS, blocks=st.integers(1, 20), weighed=st.booleans(), subgroups=st.booleans())
def test_quantize(gpu, device, rows, blocks, weighed, subgroups):
    g = Builder()
    x = g.state("x", (rows, 32 * blocks))
    graph = g.graph(*g.quantize(x, *([g.weight("w", (32 * blocks,))] if weighed else [])))
    check(gpu, graph, KERNELS["quantize"], device if subgroups else device.without("subgroups"), limit=2)


@FEW
@given(rows=st.integers(1, 40), out=st.integers(1, 90), blocks=st.integers(1, 12), subgroups=st.booleans(), stays=st.booleans(),
       layout=st.sampled_from(["q4_0", "q8_0", "q4_1", "mxfp4", "i4z_g32"]))
def test_products_of_integers(gpu, device, rows, out, blocks, layout, subgroups, stays):
    g = Builder()
    x, feeds = rounded(g, (rows, 32 * blocks))
    graph = g.graph(g.add(g.matmul_q8(*x, g.weight("w", (out, 32 * blocks), layout=layout), eps=1e-5), g.weight("bias", (out,))))
    kernel = KERNELS["stationary_q8" if stays and rows > 1 else "matmul_q8" if rows > 8 else "matvec_q8"]
    check(gpu, graph, kernel, device if subgroups else device.without("subgroups"), random_feeds(graph) | feeds, limit=1)
