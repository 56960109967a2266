"""Small awkward graphs for every kernel, with feeds that make sense: what the tests of kernels go through."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from tilewright.compiler import sampling
from tilewright.compiler.builder import Builder
from tilewright.compiler.ir import Graph
from tilewright.compiler.ops import OPS
from tilewright.runtime.sampling import idle_params, pack_params
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
    return g.graph(_after(g, g.matmul(x, g.weight("w", (out, columns), layout=layout)), after))


def _after(g: Builder, y: str, how: str) -> str:
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


# Experts.

@of("route")
def routes(dtype: str):
    for label, shape, top_k, score, normalize in (
            ("sigmoid", (5, 6), 1, "sigmoid", False), ("softmax", (3, 130), 8, "softmax", False),
            ("normalized", (2, 17), 4, "softmax", True), ("over the chosen", (1, 32), 4, "softmax_chosen", False)):
        g = Builder()
        yield label, g.graph(*g.op("route", g.state("logits", shape, dtype), top_k=top_k, score=score, normalize=normalize)), {}


def experts(dtype: str, tokens: int, choices: int, *, layout: str = "row", summed: bool = False, after: str = "", scored: bool = False):
    """expert_matmul of token rows, or expert_sum of a row for every choice, of 5 experts."""
    g = Builder()
    x = g.state("x", (tokens, choices, 40) if summed else (tokens, 40), dtype)
    w, expert = g.weight("w", (5, 22, 40), layout=layout), g.state("expert", (tokens, choices), "i32")
    score = [g.state("score", (tokens, choices, 1))] if scored else []
    y = g.expert_sum(x, w, expert, *score) if summed else g.expert_matmul(x, w, expert)
    y = _biased(g, y, expert, score, after) if "bias" in after else _after(g, y if summed or not scored else g.mul(y, *score), after)
    chosen = (np.arange(tokens * choices).reshape(tokens, choices) * 3 % 5).astype(np.int32)
    return g.graph(y), {"expert": np.where(chosen == 2, 0, chosen)}     # one expert without tokens


def _biased(g: Builder, y: str, expert: str, score: list[str], after: str) -> str:
    """gpt-oss's: of the parts of a gated projection, or of the sum over a token's experts."""
    if after == "biased, gated":
        parts = [g.expert_bias(part, g.weight(f"bias_{i}", (5, 11)), expert) for i, part in enumerate(g.unzip(y))]
        return g.clamped_swiglu(*parts, alpha=1.702, limit=1.0)
    return g.expert_bias(y, g.weight("bias", (5, 22)), expert, *score)


@of("expert_matvec")
def expert_matvecs(dtype: str):
    yield "scored", *experts(dtype, 3, 2, scored=True)
    yield "gated", *experts(dtype, 2, 1, layout="bf16", after="gated")
    yield "sum", *experts(dtype, 3, 2, layout="f16", summed=True, scored=True)
    yield "sum, residual", *experts(dtype, 1, 4, summed=True, after="residual")
    yield "biased, gated", *experts(dtype, 3, 2, layout="bf16", after="biased, gated")
    yield "biased sum", *experts(dtype, 2, 3, summed=True, scored=True, after="bias")
    g = Builder()
    chosen = [g.state(name, (3, 2), "i32") for name in ("expert", "other")]
    y = g.expert_matmul(g.state("x", (3, 40), dtype), g.weight("w", (5, 22, 40)), chosen[0])
    for expert in chosen:
        y = g.expert_bias(y, g.weight("bias", (5, 22)), expert)
    yield "two biases of one table", g.graph(y), {"expert": ints(3, 0, 1, 4, 3, 3).reshape(3, 2), "other": ints(1, 1, 0, 2, 4, 0).reshape(3, 2)}


@of("expert_tiles")
def expert_tiles(dtype: str):
    yield "scored", *experts(dtype, 21, 2, scored=True)
    yield "gated", *experts(dtype, 33, 1, layout="bf16", after="gated")
    yield "sum, residual", *experts(dtype, 18, 1, layout="f16", summed=True, after="residual")
    yield "biased, gated", *experts(dtype, 21, 2, after="biased, gated")


@of("sum_choices")
def sums_of_choices(dtype: str):
    for label, choices, scored, after in (("scored, residual", 3, True, "residual"), ("plain", 2, False, "")):
        g = Builder()
        x = g.state("x", (7, choices, 37))
        score = [g.state("score", (7, choices, 1))] if scored else []
        yield label, g.graph(_after(g, g.sum_choices(x, *score, dtype=dtype), after)), {}


# Activations in 8-bit integers.

@of("quantize")
def quantized(dtype: str):
    for label, shape, weighed in (("one row", (1, 96), False), ("weighed rows", (3, 160), True), ("rows of choices", (2, 3, 32), False)):
        g = Builder()
        x = g.state("x", shape, dtype)
        yield label, g.graph(*g.op("quantize", x, *([g.weight("norm", shape[-1:])] if weighed else []))), {}


def rounded(g: Builder, shape: tuple[int, ...]) -> tuple[list[str], Feeds]:
    """Operands x and scales of a projection of rounded activations, and their feeds."""
    x = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    found = dict(zip(("x", "scales"), OPS["quantize"].reference(x), strict=True))
    return [g.state(name, array.shape, "u32" if name == "x" else "f32") for name, array in found.items()], found


@of("matvec_q8")
def matvecs_q8(dtype: str):
    for label, shape, out, layout, eps, after in (("norm", (1, 64), 13, "q4_0", 1e-5, ""), ("residual", (3, 1056), 50, "q8_0", 0.0, "residual"),
                                                  ("norm, gated", (2, 96), 66, "q8_0", 1e-5, "gated")):
        g = Builder()
        x, feeds = rounded(g, shape)
        y = g.matmul_q8(*x, g.weight("w", (out, shape[-1]), layout=layout), dtype=dtype, **{"eps": eps} if eps else {})
        yield label, g.graph(_after(g, y, after)), feeds
    yield from _matvecs_q8_to_heads(dtype)


def _matvecs_q8_to_heads(dtype: str):
    """Keys and values, and heads without RoPE: with both, more is bound than every device allows."""
    for label, dim, interleaved, eps in (("keys, halves, norm", 10, False, 1e-5), ("keys, pairs", 8, True, 0.0)):
        g = Builder()
        x, feeds = rounded(g, (5, 96))
        y = g.matmul_q8(*x, g.weight("w", (4 * dim, 96), layout="q4_0"), dtype=dtype, **{"eps": eps} if eps else {})
        k, v = g.op("split", y, sizes=(2 * dim, 2 * dim), head_dim=dim)
        k = g.rope(k, g.weight("table", (16, dim // 2, 2)), g.input("position", (5,)), interleaved=interleaved)
        yield label, g.graph(*to_caches(g, k, v)), {**feeds, **AT}
    g = Builder()
    x, feeds = rounded(g, (3, 64))
    y = g.matmul_q8(*x, g.weight("w", (42, 64), layout="q8_0"), dtype=dtype)
    q, k, v = g.op("split", y, sizes=(18, 12, 12), head_dim=6)
    yield "heads without RoPE", g.graph(g.scale(q, by=0.5), *to_caches(g, k, v)), {**feeds, **{n: at[2:] for n, at in AT.items()}}


@of("matvec_q8")
def rounded_results(dtype: str):
    """Results that are rounded where they are made: beside themselves, as a residual is, or alone."""
    for label, rows, gated in (("residual, rounded", 3, False), ("gated, rounded", 2, True), ("residual, weighed, rounded", 1, False)):
        g = Builder()
        x, feeds = rounded(g, (rows, 128))
        y = g.matmul_q8(*x, g.weight("w", (192, 128), layout="q4_0"), dtype=dtype)
        if gated:
            a, b = g.unzip(y)
            yield label, g.graph(*g.quantize(g.mul(g.silu(a), b))), feeds
        else:
            y = g.add(y, g.state("residual", (rows, 192), dtype))
            norm = [g.weight("norm", (192,))] if "weighed" in label else []
            yield label, g.graph(y, *g.quantize(y, *norm)), feeds


@of("matmul_q8")
def matmuls_q8(dtype: str):
    for label, shape, out, layout, eps, after in (("norm", (16, 64), 24, "q4_0", 1e-5, ""), ("residual", (37, 96), 50, "q8_0", 0.0, "residual"),
                                                  ("norm, gated", (20, 192), 66, "q5_0", 1e-5, "gated"), ("halves", (9, 256), 20, "q6_k", 0.0, "")):
        g = Builder()
        x, feeds = rounded(g, shape)
        y = g.matmul_q8(*x, g.weight("w", (out, shape[-1]), layout=layout), dtype=dtype, **{"eps": eps} if eps else {})
        yield label, g.graph(_after(g, y, after)), feeds


@of("expert_matvec_q8")
def expert_matvecs_q8(dtype: str):
    for label, kind, shape, layout, after in (("gated", "expert_matmul_q8", (3, 64), "q8_0", "gated"),
                                              ("sum, scored", "expert_sum_q8", (3, 2, 96), "q4_0", "residual")):
        g = Builder()
        x, feeds = rounded(g, shape)
        w, expert = g.weight("w", (5, 22, shape[-1]), layout=layout), g.state("expert", (3, 2), "i32")
        score = [g.state("score", (3, 2, 1))] if kind == "expert_sum_q8" else []
        y, = g.op(kind, *x, w, expert, *score, dtype=dtype)
        yield label, g.graph(_after(g, y, after)), {**feeds, "expert": ints(3, 0, 1, 4, 3, 3).reshape(3, 2)}
    for label, kind, shape, after in (("biased, gated", "expert_matmul_q8", (3, 64), "biased, gated"),
                                      ("biased sum", "expert_sum_q8", (3, 2, 96), "bias")):
        g = Builder()
        x, feeds = rounded(g, shape)
        w, expert = g.weight("w", (5, 22, shape[-1]), layout="mxfp4"), g.state("expert", (3, 2), "i32")
        score = [g.state("score", (3, 2, 1))] if kind == "expert_sum_q8" else []
        y, = g.op(kind, *x, w, expert, *score, dtype=dtype)
        yield label, g.graph(_biased(g, y, expert, score, after)), {**feeds, "expert": ints(3, 0, 1, 4, 3, 3).reshape(3, 2)}


@of("expert_tiles_q8")
def expert_tiles_q8(dtype: str):
    for label, kind, shape, layout, attrs, after in (
            ("norm, gated", "expert_matmul_q8", (21, 2, 64), "q4_0", {"eps": 1e-5}, "gated"),
            ("a row a choice", "expert_matmul_q8", (11, 3, 256), "q6_k", {}, ""),
            ("sum, scored", "expert_sum_q8", (33, 1, 96), "q8_0", {}, "residual")):
        g, (tokens, choices, columns) = Builder(), shape
        x, feeds = rounded(g, (tokens, columns) if "eps" in attrs else shape)
        w, expert = g.weight("w", (5, 22, columns), layout=layout), g.state("expert", (tokens, choices), "i32")
        score = [g.state("score", (tokens, choices, 1))] if kind == "expert_sum_q8" else []
        y, = g.op(kind, *x, w, expert, *score, dtype=dtype, **attrs)
        chosen = (np.arange(tokens * choices).reshape(tokens, choices) * 3 % 5).astype(np.int32)
        yield label, g.graph(_after(g, y, after)), {**feeds, "expert": np.where(chosen == 2, 0, chosen)}     # one expert without tokens


# Attention.

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


# Sampling: the second dispatch is fed with what the first one means.

def _sampler(kind: str, vocab: int, idle: bool) -> tuple[Builder, list[str], Feeds, tuple[str, ...]]:
    """The first dispatch over three rows, one of them greedy; an idle row has no defined blocks."""
    rng = np.random.default_rng(vocab)
    rows = [pack_params(0.8, 40, 0.9, 0.02, 1.2, 5, 1, 7, slot=2), pack_params(0, 0, 1.0, 0.0, 1.1, 0, 0, 3, slot=0),
            idle_params() if idle else pack_params(1.5, 0, 1.0, 0.0, 1.0, 9, 4, 1, slot=1)]
    feeds = {"logits": (3 * rng.standard_normal((4, vocab))).astype(np.float32), "params": np.stack(rows),
             "seen": rng.choice(np.array([0, 1, 3, 7], np.uint32), (3, vocab))}
    g = Builder()
    names = [g.state("logits", (4, vocab)), g.state("seen", (3, vocab), "u32"), g.input("params", (3, sampling.RECORD))]
    return g, names, feeds, g.op(f"{kind}_blocks", *names, block=64)


def _first(kind: str, dtype: str):
    for vocab in (257, 64) if dtype == "f32" else ():
        g, _, feeds, made = _sampler(kind, vocab, idle=False)
        yield f"vocabulary {vocab}", g.graph(*made), feeds


def _second(kind: str, dtype: str):
    for vocab in (257, 1000) if dtype == "f32" else ():
        before, (logits, seen, params), feeds, made = _sampler(kind, vocab, idle=True)
        blocks = OPS[f"{kind}_blocks"].reference(feeds[logits], feeds[seen], feeds[params], block=64)
        found = dict(zip(made, blocks if isinstance(blocks, tuple) else (blocks,), strict=True))
        g = Builder()
        names = [g.input(params, (3, sampling.RECORD)), *(g.state(n, a.shape, before.values[n].dtype) for n, a in found.items()),
                 g.state("token", (5,), "i32"), g.state("last", (3,), "i32"), g.state(seen, feeds[seen].shape, "u32")]
        yield f"vocabulary {vocab}", g.graph(*g.op(kind, *names, block=64)), {params: feeds[params], seen: feeds[seen], **found}


for _kind in ("argmax", "sample"):
    MAKERS += [(f"{_kind}_blocks", partial(_first, _kind)), (_kind, partial(_second, _kind))]


__all__ = ["Case", "cases"]


import tensor_cases  # noqa: E402, F401   which enters those of general tensors
