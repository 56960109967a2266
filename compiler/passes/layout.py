"""Settle how weights are stored, over all programs at once: the format they came in where every reader takes blocks, else plain rows.

before: weight %w: f32[12,30]@bf16      after: weight %w: f32[12,30]     (30 is no multiple of bf16's 8)
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..ir import Graph
from ..layouts import LAYOUTS
from ..ops import OPS

# operands that kernels read by the block, whatever the layout
BLOCKED = {("matmul", "w"), ("expert_matmul", "w"), ("expert_sum", "w"), ("gather", "table")}


def lay_out(graphs: Mapping[str, Graph]) -> dict[str, Graph]:
    plain: set[str] = set()
    for graph in graphs.values():
        for name, value in graph.role("weight").items():
            if value.layout != "row" and value.shape[-1] % LAYOUTS[value.layout].group:
                plain.add(name)
        for op in (p for o in graph.ops for p in o.parts):
            for operand, name in zip(OPS[op.kind].operands, op.inputs, strict=False):
                if graph.values[name].layout != "row" and graph.values[name].role == "weight" and (op.kind, operand.rstrip("?")) not in BLOCKED:
                    plain.add(name)
    return {key: graph.with_values({n: replace(v, layout="row") if n in plain else v for n, v in graph.values.items()})
            for key, graph in graphs.items()}
