"""Projections to heads that rotate and cache their own results: what joins them, what stays with the kernel `heads`, and what they compute."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import epilogue, to_caches, to_heads
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rounded_cases import rounded
from test_rooms import ROOT
from tilewright import testing
from tilewright.compiler.builder import Builder
from tilewright.compiler.codegen import render
from tilewright.compiler.device import DEFAULT_LIMITS, read_device
from tilewright.compiler.formats import FORMATS
from tilewright.compiler.kernel import Site
from tilewright.compiler.layouts import LAYOUTS, plane_bytes
from tilewright.compiler.passes.fusion import fuse
from tilewright.compiler.passes.tiling import candidates
from tilewright.compiler.proof import unproved
from tilewright.templates import KERNELS
from tilewright.testing import fuse_all

H200 = read_device(ROOT / "compiler" / "devices" / "nvidia-h200.toml")
ROWS = 5


def projection(dim=8, rotary=4, interleaved=False, norm="", layout="row", rows=ROWS):
    """A decoder's q, k and v from rows of 64 columns to the caches."""
    g = Builder()
    y = g.matmul(g.state("x", (rows, 64)), g.weight("w", (7 * dim, 64)))
    return g.graph(*to_heads(g, y, dim, rotary, interleaved, norm, layout))


def dispatches(graph, device=H200):
    return [op.kinds for op in fuse(graph, device, KERNELS).ops]


def test_a_projection_takes_all_up_to_the_caches():
    everything = ("matmul", "split", "rope", "rope", "cache_write", "cache_write")
    for interleaved in (False, True):
        assert dispatches(projection(interleaved=interleaved)) == [everything]


@pytest.mark.parametrize("how", [{"norm": "before"}, {"norm": "after"}, {"layout": "q8_cache", "dim": 32}, {"rows": 9}],
                         ids=["norm before", "norm after", "rounded cache", "more rows than decode has"])
def test_what_does_not_join_the_projection_stays_together(how):
    first, *rest = dispatches(projection(**how))
    assert first == ("matmul",) and len(rest) == 1 and {"split", "cache_write"} <= set(rest[0])


@pytest.mark.parametrize("what, limit", [("max_storage_buffers_per_shader_stage", 6),
                                         ("max_storage_buffer_binding_size", sum(plane_bytes((56, 64), "f32", "row")) - 1)])
def test_limits_keep_the_two_apart(what, limit):
    """Seven buffers would be bound; and a weight that will be cut has no whole heads in its pieces."""
    assert [len(kinds) for kinds in dispatches(projection(), replace(H200, limits={**H200.limits, what: limit}))] == [1, 5]
    assert len(dispatches(projection(), replace(H200, limits={**H200.limits, what: limit + 1}))) == 1


def test_two_kinds_of_rope_stay_with_heads():
    g = Builder()
    y = g.matmul(g.state("x", (2, 64)), g.weight("w", (24, 64)))
    q, k, v = g.op("split", y, sizes=(8, 8, 8), head_dim=8)
    q, k = (g.rope(x, g.weight("table", (16, 4, 2)), g.input("position", (2,)), interleaved=x == q) for x in (q, k))
    assert dispatches(g.graph(q, *to_caches(g, k, v)))[0] == ("matmul",)


def feeds_of(graph, rows, seed):
    """Rows of different sequences that share no place of a ring of ten; some of them padding."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(30)[:rows]
    return {**testing.random_feeds(graph, seed), "position": np.where(rng.random(rows) < 0.2, -1, places // 3).astype(np.int32),
            "slot": (places % 3).astype(np.int32)}


few = settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(half=st.integers(1, 20), turned=st.floats(0, 1), interleaved=st.booleans(), rows=st.integers(1, 8), biased=st.booleans(),
       integers=st.booleans(), f16=st.booleans(), layout=st.sampled_from(("q4_0", "q8_0")), seed=st.integers(0, 99))
def test_projections_to_heads(gpu, device, half, turned, interleaved, rows, biased, integers, f16, layout, seed):
    dtype = "f16" if f16 and "shader-f16" in device.features else "f32"
    g, more = Builder(), {}
    w = g.weight("w", (14 * half, 64), layout=layout)
    if integers:
        x, more = rounded(g, (rows, 64))
        y = g.matmul_q8(*x, w, dtype=dtype)
    else:
        y = g.matmul(g.state("x", (rows, 64), dtype), w)
    y = g.add(y, g.weight("bias", (14 * half,))) if biased else y
    graph = g.graph(*to_heads(g, y, 2 * half, max(1, round(turned * half)), interleaved))
    kernel = KERNELS["matvec" if not integers else "stationary_q8" if rows > 1 and seed % 2 else "matvec_q8"]
    assert testing.check(gpu, graph, kernel, device, {**feeds_of(graph, rows, seed), **more}, limit=2)


@pytest.mark.parametrize("layout", [name for name, f in LAYOUTS.items() if name in FORMATS and f.group % 32 == 0])
def test_every_count_of_decoded_rows_has_a_schedule(layout):
    """What fusion joins because a kernel accepts it, tiling finds a schedule for; plain results, too, and gated ones."""
    for rows in range(1, 9):
        for after in ("", "gated", "heads"):
            g = Builder()
            y = g.matmul_q8(*rounded(g, (rows, 256))[0], g.weight("w", (56, 256), layout=layout), dtype="f32")
            graph = fuse_all(g.graph(*(to_heads(g, y, 8, 4, False) if after == "heads" else [epilogue(g, y, after)])))
            assert next(testing.schedules(graph, KERNELS["matvec_q8"], H200), None), (rows, after)


@pytest.mark.parametrize("device", [H200, H200.without("subgroups"), replace(H200, limits=dict(DEFAULT_LIMITS))],
                         ids=["H200", "without subgroups", "default limits"])
@pytest.mark.parametrize("how", [{}, {"dim": 10, "rotary": 3}, {"interleaved": True}], ids=["halves", "partial halves", "pairs"])
def test_indices_are_proved(device, how):
    graph = testing.fuse_all(projection(**how))
    site = Site(graph, graph.ops[0], device)
    sizes = [sum(plane_bytes(v.shape, v.dtype, v.layout)) for v in (graph.values[n] for n in site.bound)] + [8 * ROWS]
    for _, choice in candidates(site, KERNELS)[::9]:
        kernel = KERNELS[choice.kernel]
        assert unproved(render(site, kernel, choice).wgsl, kernel.grid(site, dict(choice.schedule)), sizes) is None


@pytest.mark.parametrize("position, slot", [(99, 0), (-5, 7), (3, -2)])
def test_places_that_are_not_there_stay_in_bounds(gpu, device, position, slot):
    """Positions beyond the table and slots beyond the cache write somewhere in the cache, and nowhere else."""
    graph = testing.fuse_all(projection(rows=1))
    feeds = {**testing.random_feeds(graph), "position": np.full(1, position, np.int32), "slot": np.full(1, slot, np.int32)}
    schedule = next(testing.schedules(graph, KERNELS["matvec"], device))
    got = testing.run(gpu, graph, KERNELS["matvec"], schedule, device, feeds)       # it checks what lies behind the buffers
    for name, before in zip(graph.outputs[1:], ("keys", "values"), strict=True):
        assert (got[name] != feeds[before]).any(-1).sum() == (0 if position < 0 else 2)
