"""Awkward graphs for the kernels of experts: routing, projections, sums."""
from __future__ import annotations

import numpy as np
from cases import epilogue, ints, of
from tilewright.compiler.builder import Builder


@of("route")
def routes(dtype: str):
    for label, shape, top_k, score, normalize in (
            ("sigmoid", (5, 6), 1, "sigmoid", False), ("softmax", (3, 130), 8, "softmax", False),
            ("normalized", (2, 17), 4, "softmax", True), ("over the chosen", (1, 32), 4, "softmax_chosen", False)):
        g = Builder()
        yield label, g.graph(*g.op("route", g.state("logits", shape, dtype), top_k=top_k, score=score, normalize=normalize)), {}


def experts(dtype: str, tokens: int, choices: int, *, layout: str = "row", summed: bool = False, after: str = "", scored: bool = False,
            columns: int = 40):
    """expert_matmul of token rows, or expert_sum of a row for every choice, of 5 experts."""
    g = Builder()
    x = g.state("x", (tokens, choices, columns) if summed else (tokens, columns), dtype)
    w, expert = g.weight("w", (5, 22, columns), layout=layout), g.state("expert", (tokens, choices), "i32")
    score = [g.state("score", (tokens, choices, 1))] if scored else []
    y = g.expert_sum(x, w, expert, *score) if summed else g.expert_matmul(x, w, expert)
    y = biased(g, y, expert, score, after) if "bias" in after else epilogue(g, y if summed or not scored else g.mul(y, *score), after)
    chosen = (np.arange(tokens * choices).reshape(tokens, choices) * 3 % 5).astype(np.int32)
    return g.graph(y), {"expert": np.where(chosen == 2, 0, chosen)}     # one expert without tokens


def biased(g: Builder, y: str, expert: str, score: list[str], after: str) -> str:
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
        yield label, g.graph(epilogue(g, g.sum_choices(x, *score, dtype=dtype), after)), {}
