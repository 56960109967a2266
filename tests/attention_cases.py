"""Awkward graphs for the kernels of heads and attention."""
from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from cases import AT, ints, of, to_heads
from tilewright.compiler.builder import Builder
from tilewright.compiler.ir import Graph


@of("heads")
def heads(dtype: str):
    """Llama's, with rotary halves; Llama 4's, with pairs and the norm after; one without RoPE, with a partial one; padding rows."""
    for label, dim, rotary, interleaved, norm in (("halves", 8, 4, False, ""), ("pairs, norm after", 6, 3, True, "after"),
                                                  ("partial, norm before", 68, 8, False, "before")):
        g = Builder()
        yield label, g.graph(*to_heads(g, g.state("x", (5, 7 * dim), dtype), dim, rotary, interleaved, norm)), AT
    g = Builder()
    yield "rounded cache", g.graph(*to_heads(g, g.state("x", (5, 672), dtype), 96, 48, False, "after", "q8_cache")), AT
    g = Builder()
    q, = g.op("split", g.state("x", (5, 24), dtype), sizes=(24,), head_dim=8)
    y = g.position_scale(q, g.weight("factor", (16,)), g.input("position", (5,)))
    yield "scaled by position", g.graph(y), {"position": AT["position"]}


class Shape(NamedTuple):
    """Of an attention: rows, query heads, key heads, head size, rows of a cache."""

    rows: int
    heads: int
    shared: int
    dim: int
    cache: int


def attend(kind: str, dtype: str, s: Shape, sinks: bool = False, layout: str = "row", **attrs) -> Graph:
    g = Builder()
    q = g.state("q", (s.rows, s.heads, s.dim), dtype)
    keys, values = (g.state(n, (3, s.shared, s.cache, s.dim), dtype if layout == "row" else "f32", layout) for n in ("keys", "values"))
    at = [g.input(n, (s.rows,)) for n in ("position", "slot")]
    more = [g.weight("sinks", (s.heads,))] if sinks else []
    return g.graph(*g.op(kind, q, keys, values, *at, *more, scale=s.dim**-0.5, **attrs))


SINGLES = {"position": ints(39, -1, 0, 17), "slot": ints(2, 0, 1, 0)}      # rows of different sequences, one of them padding


@of("attention")
def attentions(dtype: str):
    make = partial(attend, "attention", dtype)
    yield "rows", make(Shape(4, 6, 2, 12, 40), sinks=True), SINGLES
    yield "rows, odd heads", make(Shape(4, 3, 3, 10, 24), mask="chunked", window=16), SINGLES
    run = {"position": ints(*range(20, 33), -1, -1), "slot": np.full(15, 1, np.int32)}
    yield "sequence", make(Shape(15, 6, 2, 16, 40), sequence=True, sinks=True), run
    yield "rows, ring and sinks", make(Shape(4, 8, 2, 64, 20), sinks=True, mask="sliding", window=15, cap=5.0), SINGLES
    yield "sequence, ring and sinks", make(Shape(15, 4, 2, 32, 27), sequence=True, mask="sliding", window=12, sinks=True, layout="q8_cache"), run
    yield "sequence, ring", make(Shape(15, 4, 4, 64, 27), sequence=True, mask="sliding", window=12, cap=5.0), run
    yield "sequence, rounded cache", make(Shape(15, 4, 2, 32, 40), sequence=True, layout="q8_cache"), run
    yield "sequence, chunks", make(Shape(15, 5, 1, 32, 40), sequence=True, mask="chunked", window=25), run


@of("attention_split")
def attention_splits(dtype: str):
    make = partial(attend, "attention_split", dtype)
    yield "full", make(Shape(4, 6, 2, 12, 40), splits=3), SINGLES
    yield "ring", make(Shape(4, 8, 2, 64, 20), splits=5, mask="sliding", window=15), SINGLES
    yield "rounded cache", make(Shape(4, 6, 2, 96, 40), splits=3, layout="q8_cache"), SINGLES
    yield "odd heads", make(Shape(4, 3, 3, 10, 24), splits=2, mask="chunked", window=16, cap=4.0), SINGLES


@of("attention_merge")
def attention_merges(dtype: str):
    for label, shape, sinks in (("plain", (2, 3, 1, 12), False), ("sinks", (3, 2, 5, 70), True), ("many", (1, 4, 40, 132), False)):
        g = Builder()
        more = [g.weight("sinks", shape[1:2])] if sinks else []
        rng = np.random.default_rng(1)
        parts = rng.standard_normal(shape).astype(np.float32)
        parts[..., -3] = rng.uniform(0.5, 3, shape[:-1])            # sums of weights
        yield label, g.graph(g.attention_merge(g.state("parts", shape), *more, dtype=dtype)), {"parts": parts}
