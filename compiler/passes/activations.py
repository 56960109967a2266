"""Round the activations of quantized projections to 8-bit integers where the device multiplies those fastest.

before: %y = matmul(%x, %w: @q4_0)      after: %y = matmul(%x, %w: @q4_0, activations=q8)
"""
from __future__ import annotations

from dataclasses import replace

from ..ir import Graph, Op
from ..layouts import LAYOUTS

PROJECTIONS = ("matmul", "expert_matmul", "expert_sum")


def round_activations(graph: Graph) -> Graph:
    """Every projection whose weight's layout has integer dot products."""
    def rounds(op: Op) -> bool:
        return op.kind in PROJECTIONS and LAYOUTS[graph.values[op.inputs[1]].layout].dot is not None
    return graph.with_ops(replace(op, attrs=(*op.attrs, ("activations", "q8"))) if rounds(op) else op for op in graph.ops)
