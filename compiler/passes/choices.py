"""Sum over a token's experts apart from their projections where there are many tokens, so that each expert's tokens can fill tiles.

before: %y = expert_sum(%x, %w, %expert, %score)
after:  %m = expert_matmul(%x, %w, %expert, dtype=f32)      %y = sum_choices(%m, %score)
"""
from __future__ import annotations

from ..ir import Graph, Op
from ..ops import infer

ROWS = 8        # up to so many tokens rarely share an expert: one dispatch reads each token's experts and sums


def split_sums(graph: Graph) -> Graph:
    """Sums over one choice stay: there is nothing to add up. Products are kept in f32 until they are summed."""
    values, ops = dict(graph.values), list[Op]()
    for op in graph.ops:
        rows, choices = values[op.inputs[2]].shape[:2] if op.kind == "expert_sum" else (0, 0)
        if rows <= ROWS or choices == 1:
            ops.append(op)
            continue
        y, (x, w, expert, *score) = op.outputs[0], op.inputs
        each = Op("expert_matmul", (x, w, expert), (f"{y}_choices",), (*op.attrs, ("dtype", "f32")))
        values[each.outputs[0]], = infer(each, values)
        ops += [each, Op("sum_choices", (each.outputs[0], *score), op.outputs, (("dtype", values[y].dtype),))]
    return graph.with_ops(ops, values)
