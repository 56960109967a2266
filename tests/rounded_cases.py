"""Awkward graphs for the kernels of activations that are rounded to 8-bit integers."""
from __future__ import annotations

import numpy as np
from cases import AT, Feeds, epilogue, ints, of, to_caches
from expert_cases import biased
from tilewright.compiler.builder import Builder
from tilewright.compiler.ops import OPS


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
        yield label, g.graph(epilogue(g, y, after)), feeds
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
        yield label, g.graph(epilogue(g, y, after)), feeds


@of("stationary_q8")
def stationary_q8(dtype: str):
    """Rows and columns that no workgroup's share divides, blocks beyond those that it holds at once, and all that may follow."""
    for label, shape, out, layout, eps, after in (("norm", (2, 96), 13, "q4_0", 1e-5, ""), ("norm, sum", (11, 1056), 50, "q8_0", 1e-5, "residual"),
                                                  ("norm, gated", (3, 160), 66, "q5_0", 1e-5, "gated"), ("halves", (4, 256), 20, "q6_k", 1e-5, "")):
        g = Builder()
        x, feeds = rounded(g, shape)
        y = g.matmul_q8(*x, g.weight("w", (out, shape[-1]), layout=layout), dtype=dtype, **{"eps": eps} if eps else {})
        yield label, g.graph(epilogue(g, y, after)), feeds
    for label, rows, gated, eps in (("residual, weighed, rounded", 3, False, 0.0), ("norm, gated, rounded", 2, True, 1e-5)):
        g = Builder()
        x, feeds = rounded(g, (rows, 128))
        y = g.matmul_q8(*x, g.weight("w", (192, 128), layout="q4_0"), dtype=dtype, **{"eps": eps} if eps else {})
        if gated:
            a, b = g.unzip(y)
            yield label, g.graph(*g.quantize(g.mul(g.silu(a), b))), feeds
        else:
            y = g.add(y, g.state("residual", (rows, 192), dtype))
            yield label, g.graph(y, *g.quantize(y, g.weight("norm", (192,)))), feeds
    yield from _matvecs_q8_to_heads(dtype)


@of("expert_matvec_q8")
def expert_matvecs_q8(dtype: str):
    for label, kind, shape, layout, after in (("gated", "expert_matmul_q8", (3, 64), "q8_0", "gated"),
                                              ("sum, scored", "expert_sum_q8", (3, 2, 96), "q4_0", "residual")):
        g = Builder()
        x, feeds = rounded(g, shape)
        w, expert = g.weight("w", (5, 22, shape[-1]), layout=layout), g.state("expert", (3, 2), "i32")
        score = [g.state("score", (3, 2, 1))] if kind == "expert_sum_q8" else []
        y, = g.op(kind, *x, w, expert, *score, dtype=dtype)
        yield label, g.graph(epilogue(g, y, after)), {**feeds, "expert": ints(3, 0, 1, 4, 3, 3).reshape(3, 2)}
    for label, kind, shape, after in (("biased, gated", "expert_matmul_q8", (3, 64), "biased, gated"),
                                      ("biased sum", "expert_sum_q8", (3, 2, 96), "bias")):
        g = Builder()
        x, feeds = rounded(g, shape)
        w, expert = g.weight("w", (5, 22, shape[-1]), layout="mxfp4"), g.state("expert", (3, 2), "i32")
        score = [g.state("score", (3, 2, 1))] if kind == "expert_sum_q8" else []
        y, = g.op(kind, *x, w, expert, *score, dtype=dtype)
        yield label, g.graph(biased(g, y, expert, score, after)), {**feeds, "expert": ints(3, 0, 1, 4, 3, 3).reshape(3, 2)}


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
        yield label, g.graph(epilogue(g, y, after)), {**feeds, "expert": np.where(chosen == 2, 0, chosen)}     # one expert without tokens
