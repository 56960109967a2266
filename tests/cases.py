"""Small awkward graphs for every kernel, with feeds that make sense: what the tests of kernels go through."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from tilewright.compiler.builder import Builder
from tilewright.compiler.ir import Graph
from tilewright.testing import fuse_all, random_feeds

Feeds = dict[str, np.ndarray]
Maker = Callable[[str], Iterable[tuple[str, Graph, Feeds]]]     # element type to label, graph, and the feeds that are not random


class Case(NamedTuple):
    """A graph of one op, plain or fused, for a kernel, and an array for all that the outside gives it."""

    kernel: str
    label: str
    graph: Graph
    feeds: Feeds


MAKERS: list[tuple[str, Maker]] = []


def cases() -> Iterator[Case]:
    """All cases; kernels that store activations have them in f32 and in f16."""
    for kernel, make in MAKERS:
        for dtype in ("f32", "f16"):
            for label, graph, given in make(dtype):
                graph = fuse_all(graph)
                yield Case(kernel, f"{label} {dtype}", graph, random_feeds(graph, seed=len(label)) | given)


def of(kernel: str) -> Callable[[Maker], Maker]:
    """Enter a function as a maker of a kernel's cases."""
    def enter(make: Maker) -> Maker:
        MAKERS.append((kernel, make))
        return make
    return enter


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


# Rows: element by element, lookup, norms, projections.

@of("map")
def maps(dtype: str):
    g = Builder()
    x, bias = g.state("x", (3, 5, 7), dtype), g.weight("bias", (7,))
    scale = g.weight("scale", (5, 1))
    yield "broadcast", g.graph(g.softcap(g.mul(g.gelu_tanh(g.add(x, bias)), scale), cap=3.0)), {}
    g = Builder()
    yield "split", g.graph(*g.op("split", g.state("x", (3, 26), dtype), sizes=(12, 5, 9))), {}
    g = Builder()
    yield "split heads", g.graph(*g.op("split", g.state("x", (3, 24), dtype), sizes=(16, 8), head_dim=4)), {}
    g = Builder()
    yield "unzip", g.graph(*g.op("unzip", g.state("x", (5, 34), dtype))), {}
    g = Builder()
    yield "store", g.graph(g.store(g.state("kept", (7, 33), dtype), g.state("x", (4, 33), dtype))), {}
    g = Builder()
    pair = [g.scale(g.state(name, (3, 37), dtype), by=9.0) for name in ("gate", "up")]       # some beyond the limit, on either side
    yield "clamped", g.graph(g.clamped_swiglu(*pair, alpha=1.702, limit=7.0)), {}
    for label, shape, scored in (("a bias a choice", (4, 2, 19), False), ("a scored bias a choice", (4, 2, 20), True),
                                 ("biases of a sum", (4, 20), True)):
        g = Builder()
        x, expert = g.state("x", shape, dtype), g.state("expert", (4, 2), "i32")
        score = [g.state("score", (4, 2, 1))] if scored else []
        y = g.expert_bias(x, g.weight("bias", (5, shape[-1])), expert, *score)
        yield label, g.graph(y), {"expert": ints(3, 0, 1, 4, 3, 3, 0, 2).reshape(4, 2)}


@of("gather")
def gathers(dtype: str):
    for label, columns, layout in (("odd rows", 33, "row"), ("quads", 300, "row"), ("bf16", 520, "bf16"), ("f16 weight", 24, "f16")):
        g = Builder()
        table, last = g.weight("table", (11, columns), layout=layout), g.state("last", (4,), "i32")
        y = g.gather(table, g.input("token", (5,)), last, g.input("slot", (5,)), dtype=dtype)
        yield label, g.graph(y), {"token": ints(3, -1, 10, 0, -1), "slot": ints(0, 3, 1, 2, 1), "last": ints(7, 2, 9, 10)}
    g = Builder()
    y = g.gather(g.state("hidden", (9, 36), dtype), g.input("row", (2,)), dtype=dtype)
    yield "plain and scaled", g.graph(g.scale(y, by=2.5)), {"row": ints(8, 0)}


@of("rms_norm")
def norms(dtype: str):
    for label, shape, weight in (("odd", (3, 37), True), ("quads", (5, 132), True), ("heads", (3, 5, 64), False)):
        g = Builder()
        x = g.state("x", shape, dtype)
        y = g.rms_norm(x, g.weight("w", shape[-1:]), eps=1e-5) if weight else g.rms_norm(x, eps=1e-6)
        yield label, g.graph(y), {}
    g = Builder()
    y = g.rms_norm(g.state("x", (3, 36), dtype), g.weight("w", (36,)), eps=1e-5)
    yield "residual after", g.graph(g.add(y, g.state("r", (3, 36), dtype))), {}


def project(dtype: str, rows: tuple[int, ...], out: int, columns: int, layout: str = "row", norm: bool = False, after: str = "") -> Graph:
    """x W^T, perhaps with a norm before and element-wise ops after."""
    g = Builder()
    x = g.state("x", (*rows, columns), dtype)
    if norm:
        x = g.rms_norm(x, g.weight("norm", (columns,)), eps=1e-5)
    return g.graph(epilogue(g, g.matmul(x, g.weight("w", (out, columns), layout=layout)), after))


def epilogue(g: Builder, y: str, how: str) -> str:
    if how == "residual":
        return g.add(g.state("residual", g.shape(y), g.values[y].dtype), y)
    if how == "gated":
        gate, up = g.unzip(y)
        return g.mul(g.silu(gate), up)
    return y


@of("matvec")
def matvecs(dtype: str):
    make = partial(project, dtype)
    yield "odd columns", make((1,), 13, 37), {}
    yield "bf16", make((1,), 50, 200, "bf16", after="residual"), {}
    yield "norm, gated", make((1,), 66, 136, "f16", norm=True, after="gated"), {}
    yield "3 tokens, norm", make((3,), 21, 72, norm=True), {}
    yield "blocks of 256", make((2,), 20, 512, "q4_k", norm=True), {}
    yield "11 tokens", make((11,), 19, 40, "bf16"), {}
    yield from _matvecs_to_heads(dtype)


# rows of different sequences: beyond the end of a cache of ten rows, padding
AT = {"position": ints(9, 2, -1, 13, 0), "slot": ints(0, 1, 0, 2, 1)}


def _matvecs_to_heads(dtype: str):
    for label, dim, rotary, interleaved, layout, normed, biased in (
            ("heads, halves, norm", 8, 4, False, "row", True, False), ("heads, pairs", 6, 3, True, "bf16", False, False),
            ("heads, partial halves, bias", 10, 3, False, "f16", False, True), ("heads, partial pairs", 12, 2, True, "q4_0", False, False)):
        g = Builder()
        x = g.state("x", (5, 64), dtype)
        x = g.rms_norm(x, g.weight("norm", (64,)), eps=1e-5) if normed else x
        y = g.matmul(x, g.weight("w", (7 * dim, 64), layout=layout))
        y = g.add(y, g.weight("bias", (7 * dim,))) if biased else y
        yield label, g.graph(*to_heads(g, y, dim, rotary, interleaved)), AT


@of("matmul")
def matmuls(dtype: str):
    make = partial(project, dtype)
    yield "plain", make((37,), 70, 44), {}
    yield "blocks of 32", make((9,), 34, 96, "q4_0"), {}
    yield "bf16", make((19,), 34, 72, "bf16", after="residual"), {}
    yield "gated", make((2, 9), 66, 40, "f16", after="gated"), {}


def to_heads(g: Builder, y: str, dim: int, rotary: int, interleaved: bool, norm: str = "", layout: str = "row") -> list[str]:
    """3 query heads and 2 of keys and values: split, RoPE and norm of the first two, cache writes."""
    q, k, v = g.op("split", y, sizes=(3 * dim, 2 * dim, 2 * dim), head_dim=dim)
    position, table = g.input("position", g.shape(y)[:1]), g.weight("table", (16, rotary, 2))
    done = []
    for x in (q, k):
        if norm == "before":
            x = g.rms_norm(x, g.weight(f"norm_{x}", (dim,)), eps=1e-5)
        x = g.rope(x, table, position, interleaved=interleaved)
        done.append(g.rms_norm(x, eps=1e-5) if norm == "after" else x)
    return [done[0], *to_caches(g, done[1], v, layout)]


def to_caches(g: Builder, k: str, v: str, layout: str = "row") -> list[str]:
    """Keys and values written to caches of 10 rows for 3 sequences."""
    rows, heads, dim = g.shape(k)
    at = [g.input(name, (rows,)) for name in ("position", "slot")]
    kept = g.values[k].dtype if layout == "row" else "f32"
    return [g.cache_write(g.state(name, (3, heads, 10, dim), kept, layout), x, *at, rounding=layout) for name, x in (("keys", k), ("values", v))]


__all__ = ["Case", "cases"]


# which enter their own
import attention_cases  # noqa: E402, F401
import expert_cases  # noqa: E402, F401
import matrix_cases  # noqa: E402, F401
import rounded_cases  # noqa: E402, F401
import sampling_cases  # noqa: E402, F401
import tensor_cases  # noqa: E402, F401
