"""Kernels of general tensors against numpy, over shapes that nobody thought of, and every element-wise function over its range."""
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensor_cases import transposed
from tilewright import Builder
from tilewright.compiler.indexing import row_major
from tilewright.compiler.ops import OPS, evaluate
from tilewright.templates import KERNELS
from tilewright.testing import check, run, schedules

FEW = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)
WIDE = np.concatenate([np.linspace(-40, 40, 321), np.geomspace(1e-6, 1e4, 60), -np.geomspace(1e-6, 1e4, 60), [0.0, 1.0, -1.0]])
UNIT, ABOVE = np.linspace(-1, 1, 257), np.concatenate([[1.0], 1 + np.geomspace(1e-5, 1e4, 100)])
# operands of every float function: where its argument lies
RANGES = {"negate": WIDE, "absolute": WIDE, "sign": WIDE, "floor": WIDE, "ceil": WIDE, "round": np.linspace(-4, 4, 33), "truncate": WIDE,
          "sqrt": WIDE, "exp": np.linspace(-80, 80, 400), "log": np.geomspace(1e-30, 1e30, 200), "sin": np.linspace(-300, 300, 999),
          "cos": np.linspace(-300, 300, 999), "tan": np.linspace(-1.5, 1.5, 300), "atan": WIDE, "asin": UNIT, "acos": UNIT,
          "sinh": np.linspace(-20, 20, 401), "cosh": np.linspace(-20, 20, 401), "tanh": WIDE, "asinh": WIDE, "acosh": ABOVE, "atanh": 0.999 * UNIT,
          "softplus": WIDE, "erf": np.linspace(-6, 6, 999), "is_nan": np.array([0.0, np.nan, np.inf]), "is_inf": np.array([0.0, np.nan, -np.inf])}
INTEGERS = np.array([-2**31, -70000, -300, -129, -128, -7, -1, 0, 1, 2, 31, 127, 128, 255, 256, 300, 70000, 2**31 - 1], np.int32)


def evaluated(gpu, device, graph, feeds) -> tuple[np.ndarray, np.ndarray]:
    """What the GPU and numpy make of a graph of one op."""
    schedule = next(iter(schedules(graph, KERNELS["map"], device)))
    name = graph.outputs[0]
    return run(gpu, graph, KERNELS["map"], schedule, device, feeds)[name], evaluate(graph, feeds)[name]


@pytest.mark.parametrize("kind", RANGES)
def test_functions(gpu, device, kind):
    g, x = Builder(), RANGES[kind].astype(np.float32)
    got, want = evaluated(gpu, device, g.graph(g.op(kind, g.state("x", x.shape))[0]), {"x": x})
    tiny = np.abs(want).max() * 1e-7 if kind in ("sin", "cos") else 1e-30      # near their zeros, by the size of the argument
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=max(tiny, 3e-7 if kind in ("sin", "cos", "acos", "tan", "softplus") else 0))


@pytest.mark.parametrize("kind", ["sub", "div", "maximum", "minimum", "remainder", "float_modulo", "power", "equal", "less", "less_equal"])
def test_functions_of_two(gpu, device, kind):
    a, b = (m.ravel().astype(np.float32) for m in np.meshgrid([-7.5, -3.0, -1.0, 0.0, 0.5, 2.0, 8.25], [-3.0, -2.0, -0.5, 1.0, 2.0, 3.0, 4.5]))
    g = Builder()
    got, want = evaluated(gpu, device, g.graph(g.op(kind, g.state("a", a.shape), g.state("b", b.shape))[0]), {"a": a, "b": b})
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "maximum", "int_div", "int_remainder", "modulo", "bit_and", "bit_or", "bit_xor",
                                  "equal", "less"])
def test_integers_of_two(gpu, device, kind):
    a, b = (m.ravel() for m in np.meshgrid(INTEGERS[1:-1], INTEGERS[2:-2]))
    if kind in ("int_div", "int_remainder", "modulo"):
        a, b = a[b != 0], b[b != 0]
    g = Builder()
    with np.errstate(over="ignore"):
        got, want = evaluated(gpu, device, g.graph(g.op(kind, g.state("a", a.shape, "i32"), g.state("b", b.shape, "i32"))[0]), {"a": a, "b": b})
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind, attrs", [("negate", {}), ("absolute", {}), ("sign", {}), ("bit_not", {}), ("wrap_signed", {"bits": 8}),
                                         ("wrap_signed", {"bits": 4}), ("wrap_unsigned", {"bits": 8}), ("wrap_unsigned", {"bits": 16}),
                                         ("to_float", {"to": "f32"})])
def test_integers(gpu, device, kind, attrs):
    g, x = Builder(), INTEGERS[1:-1]
    got, want = evaluated(gpu, device, g.graph(g.op(kind, g.state("x", x.shape, "i32"), **attrs)[0]), {"x": x})
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["shift_left", "shift_right", "int_power"])
def test_integers_with_small_ones(gpu, device, kind):
    second = [-2, -1, 0, 1, 2, 5, 31, 32, 40] if "shift" in kind else [-2, -1, 0, 1, 2, 5]
    a, b = (m.ravel().astype(np.int32) for m in np.meshgrid([-9, -2, -1, 0, 1, 3, 12] if "shift" in kind else [-9, -2, -1, 1, 3, 12], second))
    g = Builder()
    got, want = evaluated(gpu, device, g.graph(g.op(kind, g.state("a", a.shape, "i32"), g.state("b", b.shape, "i32"))[0]), {"a": a, "b": b})
    np.testing.assert_array_equal(got, want)


def test_casts_to_integers_keep_their_range(gpu, device):
    x = np.array([0.5, -0.5, 1.9, -1.9, 3e9, -3e9, np.inf, -np.inf, np.nan, 2147483520.0], np.float32)
    g = Builder()
    got, want = evaluated(gpu, device, g.graph(g.to_integer(g.state("x", x.shape), to="i32")), {"x": x})
    np.testing.assert_array_equal(got, want)
    assert want.tolist()[4:9] == [2**31 - 1, -2**31, 2**31 - 1, -2**31, 0]


@FEW
@given(shape=SHAPES, data=st.data())
def test_views_of_views(gpu, device, shape, data):
    """Transposed, then sliced (backwards, perhaps), then padded, then a function of it all, in one dispatch."""
    g = Builder()
    x = transposed(g, g.state("x", shape), *data.draw(st.permutations(range(len(shape)))))
    steps, strides, offset = g.shape(x), list(row_major(g.shape(x))), 0
    taken = []
    for k, d in enumerate(steps):
        step = data.draw(st.sampled_from([1, -1, 2]))
        taken.append(-(-d // abs(step)))
        offset += (d - 1) * strides[k] if step < 0 else 0
        strides[k] *= step
    x = g.view(x, shape=tuple(taken), strides=tuple(strides), offset=offset)
    before, after = (tuple(data.draw(st.integers(0, 2)) for _ in taken) for _ in range(2))
    x = g.pad(x, shape=tuple(b + d + a for b, d, a in zip(before, taken, after, strict=True)), before=before, step=(1,) * len(taken), value=0.5)
    check(gpu, g.graph(g.silu(x)), KERNELS["elements"], device, limit=1)


@FEW
@given(shape=SHAPES, how=st.sampled_from(["sum", "maximum", "minimum", "argmax", "argmin_last"]), keep=st.booleans(), data=st.data())
def test_reductions(gpu, device, shape, how, keep, data):
    places = st.integers(0, len(shape) - 1)
    axes = (data.draw(places),) if how.startswith("arg") else tuple(sorted(data.draw(st.sets(places, min_size=1))))
    g = Builder()
    check(gpu, g.graph(g.reduce(g.state("x", shape), axes=axes, how=how, keep=keep)), KERNELS["reduce"], device, limit=3)


@FEW
@given(shape=SHAPES, how=st.sampled_from(["sum", "product"]), exclusive=st.booleans(), reverse=st.booleans(), data=st.data())
def test_scans(gpu, device, shape, how, exclusive, reverse, data):
    g = Builder()
    made = g.scan(g.state("x", shape), axis=data.draw(st.integers(0, len(shape) - 1)), how=how, exclusive=exclusive, reverse=reverse)
    check(gpu, g.graph(made), KERNELS["scan"], device, limit=1)


@FEW
@given(shape=SHAPES, largest=st.booleans(), data=st.data())
def test_ranks(gpu, device, shape, largest, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    g = Builder()
    graph = g.graph(*g.op("rank", g.state("x", shape), axis=axis, count=data.draw(st.integers(1, shape[axis])), largest=largest))
    coarse = np.random.default_rng(0).integers(-2, 3, shape).astype(np.float32)
    check(gpu, graph, KERNELS["rank"], device, {"x": coarse}, limit=1)


@FEW
@given(lines=st.integers(1, 5), steps=st.integers(1, 9), room=st.integers(1, 6), how=st.sampled_from(["replace", "sum", "minimum"]),
       seed=st.integers(0, 99))
def test_scatters(gpu, device, lines, steps, room, how, seed):
    g, rng = Builder(), np.random.default_rng(seed)
    graph = g.graph(g.scatter(g.state("data", (lines, room)), g.state("target", (lines, steps), "i32"), g.state("updates", (lines, steps)),
                              lines=lines, how=how))
    feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("data", (lines, room)), ("updates", (lines, steps)))}
    target = rng.integers(0, room, (lines, steps)) + room * np.arange(lines)[:, None]
    check(gpu, graph, KERNELS["scatter"], device, feeds | {"target": target.astype(np.int32)}, limit=1)


@FEW
@given(batch=st.integers(1, 3), m=st.integers(1, 70), n=st.integers(1, 70), k=st.integers(1, 40))
def test_products_of_batches(gpu, device, batch, m, n, k):
    g = Builder()
    a = transposed(g, g.state("a", (k, batch, m)), 1, 2, 0)
    check(gpu, g.graph(g.scale(g.batch_matmul(a, g.state("b", (batch, k, n))), by=0.5)), KERNELS["batch_matmul"], device, limit=2)


@FEW
@given(shape=SHAPES, index=st.lists(st.integers(-3, 2), min_size=1, max_size=5), data=st.data())
def test_lookups(gpu, device, shape, index, data):
    axis = data.draw(st.integers(0, len(shape) - 1))
    shape = (*shape[:axis], 3, *shape[axis + 1:])
    g = Builder()
    wide = (*shape[:axis], len(index), *shape[axis + 1:])
    found = g.take(g.state("x", shape), g.state("index", (len(index),), "i32"), shape=wide, count=3, inner=math.prod(shape[axis + 1:]))
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert OPS["take"].reference(x, np.array(index), shape=wide, count=3, inner=math.prod(shape[axis + 1:])).shape == wide
    np.testing.assert_array_equal(evaluate(g.graph(found), {"x": x, "index": np.array(index, np.int32)})[found], x.take(index, axis))
    check(gpu, g.graph(g.silu(found)), KERNELS["elements"], device, {"x": x, "index": np.array(index, np.int32)}, limit=1)
