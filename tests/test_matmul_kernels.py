"""The matrix kernels and the router against their ops' numpy meanings, over shapes that fit no tile."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tilewright import testing
from tilewright.compiler.builder import Builder
from tilewright.compiler.device import shipped_devices
from tilewright.compiler.kernel import Site
from tilewright.compiler.ops import OPS
from tilewright.compiler.passes.tiling import candidates
from tilewright.templates import KERNELS

# a software adapter compiles each shader anew, which takes far longer than running it: few examples, few schedules in each
few = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
LAYOUTS = ("row", "bf16", "f16")
HOW = st.sampled_from(({}, {"own": True}, {"norm": True}, {"scored": True}))
EPILOGUES = ("none", "bias", "residual", "pairs")


def columns(layout, quads):
    """A number of columns that the layout's blocks divide."""
    return quads * (4 if layout == "row" else 8)


def finished(b, y, epilogue):
    """The op's result, or what an epilogue makes of it."""
    if epilogue == "bias":
        return b.add(y, b.weight("bias", b.shape(y)[-1:]))
    if epilogue == "residual":
        return b.add(y, b.state("residual", b.shape(y), b.values[y].dtype))
    if epilogue == "pairs":
        gate, up = b.unzip(y)
        return b.mul(b.silu(gate), up)
    return y


def project(lead, n, k, layout="row", dtype="f32", epilogue="none", norm=False):
    """A graph of one matmul."""
    b = Builder()
    x, w = b.state("x", (*lead, k), dtype), b.weight("w", (n, k), layout=layout)
    return b.graph(finished(b, b.matmul(b.rms_norm(x, b.weight("norm", (k,)), eps=1e-5) if norm else x, w), epilogue))


def choose(tokens, choices, experts, n, k, layout="row", epilogue="none", *, summed=False, own=False, scored=False, norm=False):
    """A graph of one expert_matmul or expert_sum, and its feeds. own: x has a row for every choice, not for every token."""
    b = Builder()
    x = b.state("x", (tokens, choices, k) if summed or own else (tokens, k))
    w, expert = b.weight("w", (experts, n, k), layout=layout), b.state("expert", (tokens, choices), "i32")
    if norm:
        x = b.rms_norm(x, eps=1e-5)
    if summed:
        y = finished(b, b.expert_sum(x, w, expert, *([b.state("score", (tokens, choices))] if scored else [])), epilogue)
    else:
        y = finished(b, b.expert_matmul(x, w, expert), epilogue)
        y = b.mul(y, b.state("score", (tokens, choices, 1))) if scored else y
    graph = b.graph(y)
    feeds = testing.random_feeds(graph)
    feeds["expert"] = np.random.default_rng(tokens).integers(0, experts, (tokens, choices)).astype(np.int32)
    return graph, feeds


def check(gpu, device, graph, kernel, feeds=None, limit=None):
    """With and without subgroups where that makes a difference."""
    ran = testing.check(gpu, graph, KERNELS[kernel], device, feeds, limit=limit)
    assert ran, f"{kernel} takes none of {graph.ops}"
    if kernel in ("matvec", "expert_matvec", "route"):
        testing.check(gpu, graph, KERNELS[kernel], device.without("subgroups"), feeds, limit=limit)


def refused(graph, kernel, device):
    return not list(testing.schedules(testing.fuse_all(graph), KERNELS[kernel], device))


@few
@given(st.integers(2, 70), st.integers(1, 40), st.integers(1, 20), st.sampled_from(LAYOUTS), st.sampled_from(EPILOGUES), st.booleans())
def test_matmul(gpu, device, tokens, half, quads, layout, epilogue, f16):
    dtype = "f16" if f16 and "shader-f16" in device.features else "f32"
    check(gpu, device, project((tokens,), 2 * half, columns(layout, quads), layout, dtype, epilogue), "matmul", limit=2)


def test_matmul_takes_more_leading_dimensions_and_odd_columns(gpu, device):
    check(gpu, device, project((3, 7), 33, 20), "matmul", limit=3)


@few
@given(st.integers(1, 11), st.integers(1, 40), st.integers(1, 20), st.sampled_from(LAYOUTS), st.sampled_from(EPILOGUES), st.booleans(),
       st.booleans())
def test_matvec(gpu, device, tokens, half, quads, layout, epilogue, f16, norm):
    dtype = "f16" if f16 and "shader-f16" in device.features else "f32"
    norm = norm and tokens <= 8
    check(gpu, device, project((tokens,), 2 * half, columns(layout, quads), layout, dtype, epilogue, norm), "matvec", limit=2)


@few
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 9), st.integers(1, 30), st.integers(1, 20), st.sampled_from(LAYOUTS),
       st.sampled_from(("none", "bias", "pairs")), HOW)
def test_expert_matvec(gpu, device, tokens, choices, experts, half, quads, layout, epilogue, how):
    graph, feeds = choose(tokens, choices, experts, 2 * half, columns(layout, quads), layout, epilogue, **how)
    check(gpu, device, graph, "expert_matvec", feeds, limit=2)


@few
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 9), st.integers(1, 30), st.integers(1, 20), st.sampled_from(LAYOUTS),
       st.sampled_from(("none", "residual", "pairs")), st.booleans())
def test_expert_sum_by_rows(gpu, device, tokens, choices, experts, half, quads, layout, epilogue, scored):
    graph, feeds = choose(tokens, choices, experts, 2 * half, columns(layout, quads), layout, epilogue, summed=True, scored=scored)
    check(gpu, device, graph, "expert_matvec", feeds, limit=2)


@few
@given(st.integers(2, 60), st.integers(1, 4), st.integers(1, 12), st.integers(1, 40), st.integers(1, 20), st.sampled_from(LAYOUTS),
       st.sampled_from(("none", "bias", "pairs")), HOW.filter(lambda how: "norm" not in how))
def test_expert_tiles(gpu, device, tokens, choices, experts, half, quads, layout, epilogue, how):
    graph, feeds = choose(tokens, choices, experts, 2 * half, columns(layout, quads), layout, epilogue, **how)
    check(gpu, device, graph, "expert_tiles", feeds, limit=2)


@pytest.mark.parametrize("scored", [False, True])
def test_expert_sum_of_one_choice_by_tiles(gpu, device, scored):
    graph, feeds = choose(37, 1, 3, 50, 36, epilogue="residual", summed=True, scored=scored)
    check(gpu, device, graph, "expert_tiles", feeds, limit=2)


def test_expert_tiles_when_all_tokens_agree(gpu, device):
    graph, feeds = choose(40, 1, 8, 20, 32)
    feeds["expert"][:] = 5
    check(gpu, device, graph, "expert_tiles", feeds, limit=3)


def rounded_choice(tokens, choices, experts, n, blocks, layout, eps, own, epilogue):
    """A graph of one expert_matmul_q8, or with one choice an expert_sum_q8, and its feeds; as `choose`."""
    b, rng = Builder(), np.random.default_rng(tokens)
    rows = (tokens, choices) if own else (tokens,)
    integers, scales = OPS["quantize"].reference(rng.standard_normal((*rows, 32 * blocks)).astype(np.float32))
    x = b.state("x", integers.shape, "u32"), b.state("scales", scales.shape)
    w, expert = b.weight("w", (experts, n, 32 * blocks), layout=layout), b.state("expert", (tokens, choices), "i32")
    kind = "expert_sum_q8" if own and choices == 1 else "expert_matmul_q8"
    graph = b.graph(finished(b, *b.op(kind, *x, w, expert, **({"eps": 1e-5} if eps else {})), epilogue))
    chosen = rng.integers(0, experts, (tokens, choices)).astype(np.int32)
    return graph, testing.random_feeds(graph) | {"x": integers, "scales": scales, "expert": chosen}


@few
@given(st.integers(2, 60), st.integers(1, 4), st.integers(1, 12), st.integers(1, 40), st.integers(1, 5),
       st.sampled_from(("q4_0", "q8_0", "q5_1", "mxfp4", "i4z_g32")), st.booleans(), st.booleans(), st.sampled_from(("none", "pairs")))
def test_expert_tiles_of_rounded_rows(gpu, device, tokens, choices, experts, half, blocks, layout, eps, own, epilogue):
    graph, feeds = rounded_choice(tokens, choices, experts, 2 * half, blocks, layout, eps, own, epilogue)
    check(gpu, device, graph, "expert_tiles_q8", feeds, limit=2)


@few
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 50), st.booleans(), st.sampled_from(("none", "bias", "residual")))
def test_sum_choices(gpu, device, tokens, choices, columns, scored, epilogue):
    b = Builder()
    score = [b.state("score", (tokens, choices))] if scored else []
    check(gpu, device, b.graph(finished(b, b.sum_choices(b.state("x", (tokens, choices, columns)), *score), epilogue)), "sum_choices")


@pytest.mark.parametrize(("kernel", "graph", "feeds"), [
    ("matmul", project((19,), 34, 40, "bf16", epilogue="bias"), None),
    ("matvec", project((2,), 34, 40, "bf16", epilogue="residual", norm=True), None),
    ("expert_matvec", *choose(3, 2, 4, 18, 24, scored=True)),
    ("expert_tiles", *choose(13, 2, 4, 18, 24, scored=True)),
    ("expert_tiles_q8", *rounded_choice(13, 2, 4, 18, 2, "q4_0", True, False, "pairs")),
], ids=["matmul", "matvec", "expert_matvec", "expert_tiles", "expert_tiles_q8"])
def test_every_schedule(gpu, device, kernel, graph, feeds):
    check(gpu, device, graph, kernel, feeds)


@few
@given(st.integers(1, 9), st.integers(1, 256), st.integers(1, 16), st.sampled_from(("sigmoid", "softmax", "softmax_chosen")), st.booleans())
def test_route(gpu, device, tokens, experts, top_k, score, normalize):
    b = Builder()
    graph = b.graph(*b.route(b.state("logits", (tokens, experts)), top_k=min(top_k, experts), score=score, normalize=normalize))
    feeds = testing.random_feeds(graph)
    feeds["logits"] = np.round(feeds["logits"] * 4) / 2      # coarse, so that there are ties
    check(gpu, device, graph, "route", feeds, limit=2)


def small_rows(graph):
    """Feeds whose rows are so small that a norm's epsilon counts."""
    return {name: array * np.float32(2e-3) if name == "x" else array for name, array in testing.random_feeds(graph).items()}


@pytest.mark.parametrize("kernel", ["matvec", "expert_matvec", "rms_norm"])
def test_the_epsilon_of_a_norm(gpu, device, kernel):
    b = Builder()
    normed = b.graph(b.rms_norm(b.state("x", (3, 36)), b.weight("norm", (36,)), eps=1e-5))
    chosen, feeds = choose(3, 2, 4, 18, 24, norm=True)
    graph = {"matvec": project((3,), 18, 36, norm=True), "expert_matvec": chosen, "rms_norm": normed}[kernel]
    check(gpu, device, graph, kernel, small_rows(graph) | ({"expert": feeds["expert"]} if kernel == "expert_matvec" else {}), limit=4)


def wide(kernel):
    """A graph of one op that takes more than 7 workgroups."""
    if kernel == "matvec":
        return project((1,), 260, 36, epilogue="bias")
    if kernel == "expert_matvec":
        return choose(2, 2, 4, 260, 24)[0]
    b = Builder()
    if kernel == "route":
        return b.graph(*b.route(b.state("logits", (13, 9)), top_k=2, score="sigmoid"))
    x = b.state("x", (37, 40))
    return b.graph(b.rms_norm(x, eps=1e-5) if kernel == "rms_norm" else b.silu(x))


@pytest.mark.parametrize("kernel", ["matvec", "expert_matvec", "rms_norm", "route", "map"])
def test_more_workgroups_than_a_dimension_holds(gpu, device, kernel):
    """A dimension has 65,535 of them, too few for the rows of a large vocabulary; here it has 7."""
    narrow = replace(device, limits={**device.limits, "max_compute_workgroups_per_dimension": 7})
    check(gpu, narrow, wide(kernel), kernel, limit=3)


@pytest.mark.parametrize("score", ["sigmoid", "softmax", "softmax_chosen"])
@pytest.mark.parametrize("top_k", [1, 9])
def test_route_in_any_order(gpu, device, score, top_k):
    """The best first, last and everywhere, some or all alike, and logits whose exponentials overflow."""
    ascending = np.arange(9)
    orders = [ascending, -ascending, ascending * 0, np.roll(ascending, 4), ascending % 2, ascending * 12.0, 90 + ascending, -90 - ascending]
    b = Builder()
    graph = b.graph(*b.route(b.state("logits", (len(orders), 9)), top_k=top_k, score=score))
    check(gpu, device, graph, "route", {"logits": np.array(orders, np.float32)}, limit=3)


def test_what_the_kernels_leave_to_others(device):
    assert refused(project((16,), 8, 30), "matmul", device)                         # rows that are no quads
    assert refused(project((16,), 8, 32, norm=True), "matmul", device)              # a norm before many tokens
    assert refused(choose(4, 2, 4, 8, 32, summed=True)[0], "expert_tiles", device)  # a sum over several choices


@pytest.mark.parametrize("device", shipped_devices(), ids=lambda d: d.name)
def test_decoding_reads_rows_and_prefill_makes_tiles(device):
    for tokens in (1, 2, 4, 8, 32, 64, 512):
        graph = project((tokens,), 2048, 2048, "bf16")
        best = candidates(Site(graph, graph.ops[0], device), KERNELS)[0][1]
        assert best.kernel == ("matvec" if tokens <= 8 else "matmul"), f"{tokens} tokens on {device.name}: {best}"


def test_the_guaranteed_limits_are_enough():
    device = next(d for d in shipped_devices() if d.name == "web-default")
    for layout in LAYOUTS:
        graph = project((64,), 256, 256, layout)
        assert list(testing.schedules(graph, KERNELS["matmul"], device))
        assert list(testing.schedules(choose(64, 2, 4, 256, 256, layout=layout)[0], KERNELS["expert_tiles"], device))
