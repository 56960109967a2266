"""Awkward graphs for the kernels that multiply small matrices, all of which read activations in f16."""
from __future__ import annotations

import numpy as np
from attention_cases import Shape, attend
from cases import ints, of, project
from expert_cases import experts


@of("matmul_matrix")
def matmuls(dtype: str):
    if dtype == "f16":
        yield "rows and columns past tiles", project(dtype, (5, 14), 72, 64, "q4_0", after="residual"), {}
        yield "gated", project(dtype, (33,), 100, 128, "q8_0", after="gated"), {}
        yield "f16", project(dtype, (129,), 36, 32, "f16"), {}
        yield "blocks of 256", project(dtype, (20,), 40, 256, "q6_k"), {}


@of("expert_tiles_matrix")
def expert_tiles(dtype: str):
    if dtype == "f16":
        yield "scored", *experts(dtype, 61, 2, layout="q4_0", scored=True, columns=64)
        yield "gated", *experts(dtype, 33, 1, layout="bf16", after="gated", columns=32)
        yield "sum, residual", *experts(dtype, 18, 1, layout="q8_0", summed=True, scored=True, after="residual", columns=64)


@of("attention_matrix")
def attentions(dtype: str):
    if dtype == "f32":
        return
    run = {"position": ints(*range(60, 73), -1, -1), "slot": np.full(15, 1, np.int32)}
    yield "sinks", attend("attention", dtype, Shape(15, 6, 2, 16, 80), sinks=True, sequence=True), run
    yield "ring", attend("attention", dtype, Shape(15, 4, 4, 32, 71), mask="sliding", window=50, cap=5.0, sequence=True), run
    yield "rounded cache", attend("attention", dtype, Shape(15, 5, 1, 32, 80), layout="q8_cache", mask="chunked", window=45, sequence=True), run
    # later keys score ever higher, by more than what the weights' largest may fall behind
    rising = np.random.default_rng(0).standard_normal((3, 2, 80, 32)) + np.arange(80)[:, None]
    feeds = {**run, "keys": rising.astype(np.float16), "q": np.full((15, 8, 32), 0.25, np.float16)}
    yield "rising scores", attend("attention", dtype, Shape(15, 8, 2, 32, 80), sequence=True), feeds
