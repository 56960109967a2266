"""Awkward graphs for the kernels of general tensors, and numbers for their element-wise ops."""
from __future__ import annotations

import math

import numpy as np
from cases import of
from tilewright.compiler.builder import Builder
from tilewright.compiler.ir import Graph


def transposed(g: Builder, x: str, *order: int) -> str:
    """A view of a whole array with its axes in another order."""
    shape = g.shape(x)
    strides = [math.prod(shape[k + 1:]) for k in range(len(shape))]
    return g.view(x, shape=tuple(shape[k] for k in order), strides=tuple(strides[k] for k in order))


def integers(shape: tuple[int, ...], low: int, high: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


@of("elements")
def elements(dtype: str):
    g = Builder()
    x = g.state("x", (3, 5, 7), dtype)
    yield "transposed", g.graph(transposed(g, x, 2, 0, 1)), {}
    g = Builder()
    x = g.state("x", (4, 6), dtype)
    flipped = g.view(x, shape=(2, 3, 6), strides=(12, -2, 1), offset=5)
    padded = g.pad(flipped, shape=(2, 9, 8), before=(0, 1, 2), step=(1, 3, 1), value=-1.5)
    yield "flipped, spread and padded", g.graph(g.silu(padded)), {}
    g = Builder()
    x, y = g.state("x", (3, 4, 5), dtype), g.state("y", (3, 2, 5), dtype)
    both = g.concat(g.concat(x, y, axis=1), transposed(g, g.state("z", (1, 5, 3), dtype), 2, 0, 1), axis=1)
    yield "concat of three", g.graph(g.mul(both, g.view(x, shape=(3, 7, 5), strides=(0, 0, 1)))), {}
    g = Builder()
    x, index = g.state("x", (2, 5, 3), dtype), g.state("index", (2, 2), "i32")
    yield "take", g.graph(g.take(x, index, shape=(2, 2, 2, 3), count=5, inner=3)), {"index": integers((2, 2), -5, 5)}
    g = Builder()
    x, index = g.state("x", (4, 5, 3), dtype), g.state("index", (3, 7, 2), "i32")
    yield "take along", g.graph(g.take_along(x, index, axis=1)), {"index": integers((3, 7, 2), -5, 5)}
    g = Builder()
    rows, cols = g.iota(shape=(5, 6), axis=0, start=2), g.iota(shape=(5, 6), axis=1, step=-3)
    zero = g.fill(shape=(5, 6), dtype=dtype, value=-3.0)
    yield "triangle", g.graph(g.where(g.less(rows, g.negate(cols)), g.state("x", (5, 6), dtype), zero)), {}
    g = Builder()
    x = g.view(g.state("x", (2, 3), dtype), shape=(), strides=(), offset=4)
    yield "a scalar, kept", g.graph(g.store(g.state("kept", (1, 1), dtype), g.view(x, shape=(1, 1), strides=(0, 0)))), {}


    g = Builder()
    x = g.view(g.state("x", (7, 9), dtype), shape=(9, 7), strides=(1, 9))
    if dtype == "f32":
        yield "every function", g.graph(everything(g, x)), {"x": np.linspace(1.05, 2.5, 63).reshape(7, 9).astype(np.float32)}


def everything(g: Builder, x: str) -> str:
    """A sum of all functions that have WGSL of their own, so that one module holds them all."""
    inverse, whole = g.div(g.fill(shape=g.shape(x), dtype="f32", value=1.0), x), g.to_integer(x, to="i32")
    total = g.to_float(g.int_power(whole, whole), to="f32")
    for kind in ("sqrt", "log", "sin", "cos", "tan", "atan", "sinh", "tanh", "asinh", "acosh", "softplus", "erf"):
        total = g.add(total, g.op(kind, x)[0])
    for kind in ("asin", "acos", "atanh"):
        total = g.add(total, g.op(kind, inverse)[0])
    for kind in ("power", "remainder", "float_modulo"):
        total = g.add(total, g.op(kind, x, inverse)[0])
    return total


@of("reduce")
def reductions(dtype: str):
    for how, axes in (("sum", (1,)), ("product", (0, 2)), ("maximum", (0, 1, 2)), ("minimum", (2,)), ("argmax", (1,)), ("argmin_last", (0,))):
        g = Builder()
        x = g.state("x", (3, 13, 5), dtype)
        values = np.round(np.random.default_rng(1).standard_normal((3, 13, 5)) * 2) / 2 + 0.25     # with ties
        given = {"x": values.astype(np.float32 if dtype == "f32" else np.float16)}
        yield f"{how} over {axes}", g.graph(g.reduce(x, axes=axes, how=how, keep=how == "sum")), given
    g = Builder()
    x = transposed(g, g.state("x", (300, 4), dtype), 1, 0)
    y = g.reduce(g.mul(x, x), axes=(1,), how="sum", keep=True)
    yield "of squares, scaled, kept", g.graph(g.store(g.state("kept", (4, 1), dtype), g.scale(y, by=0.25))), {}
    g = Builder()
    x = g.state("x", (70, 3), "i32")
    yield "integers", g.graph(g.reduce(x, axes=(0,), how="maximum", keep=False)), {"x": integers((70, 3), -900, -5)}


@of("scan")
def scans(dtype: str):
    for how, exclusive, reverse in (("sum", False, False), ("sum", True, True), ("product", True, False)):
        g = Builder()
        x = g.scale(g.state("x", (3, 9, 4), dtype), by=0.5)
        yield f"{how} {exclusive} {reverse}", g.graph(g.scan(x, axis=1, how=how, exclusive=exclusive, reverse=reverse)), {}


@of("rank")
def ranks(dtype: str):
    for largest in (True, False):
        g = Builder()
        x = integers((3, 70, 2), -9, 9).astype(np.float32 if dtype == "f32" else np.float16)
        yield f"largest {largest}", g.graph(*g.op("rank", g.state("x", (3, 70, 2), dtype), axis=1, count=17, largest=largest)), {"x": x}


@of("scatter")
def scatters(dtype: str):
    for how in ("replace", "sum", "product", "maximum", "minimum"):
        yield how, scattered(dtype, how), {"target": integers((3, 8), -1, 6) + np.array([[0], [6], [12]], np.int32)}


def scattered(dtype: str, how: str) -> Graph:
    g = Builder()
    updates = transposed(g, g.state("updates", (8, 3), dtype), 1, 0)
    return g.graph(g.scatter(g.state("data", (3, 6), dtype), g.state("target", (3, 8), "i32"), updates, lines=3, how=how))


@of("batch_matmul")
def batch_matmuls(dtype: str):
    g = Builder()
    yield "odd", g.graph(g.batch_matmul(g.state("a", (3, 5, 37), dtype), g.state("b", (3, 37, 21), dtype))), {}
    g = Builder()
    b = transposed(g, g.state("b", (2, 70, 40), dtype), 0, 2, 1)
    y = g.batch_matmul(g.state("a", (2, 66, 40), dtype), b)
    yield "transposed, scaled, kept", g.graph(g.store(g.state("kept", (2, 66, 70), dtype), g.scale(y, by=0.3))), {}
    g = Builder()
    yield "integers", g.graph(g.batch_matmul(g.state("a", (2, 3, 9), "i32"), g.state("b", (2, 9, 4), "i32"))), \
        {"a": integers((2, 3, 9), -99, 99), "b": integers((2, 9, 4), -99, 99)}
