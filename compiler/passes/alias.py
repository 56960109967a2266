"""Give a view that moves nothing the buffer of what it views: another shape of the same elements costs no dispatch.

before: %b: f32[1,7,64] = view(%a: f32[7,64])   %c = f(%b)
after:  %b: f32[1,7,64] = alias(%a)             %c = f(%b)          (a value with a source, and no op)
"""
from __future__ import annotations

from dataclasses import replace

from ..indexing import row_major
from ..ir import Graph, Op
from ..ops import OPS, buffers_of


def alias(graph: Graph) -> Graph:
    """Views of what some op changes in place, or that are changed so themselves, stay copies."""
    home = buffers_of(graph)
    changed = {home[p.inputs[i]] for op in graph.ops for p in op.parts for i in OPS[p.kind].inplace.values()}
    values, ops = dict(graph.values), list[Op]()
    for op in graph.ops:
        if all(_moves_nothing(graph, part) for part in op.parts) and not {home[n] for n in (*op.inputs, *op.outputs)} & changed \
                and not set(op.outputs) & set(graph.outputs):
            values[op.outputs[0]] = replace(values[op.outputs[0]], source=("alias", op.inputs[0]))
        else:
            ops.append(op)
    return graph.with_ops(ops, values)


def _moves_nothing(graph: Graph, op: Op) -> bool:
    if op.kind != "view":
        return False
    x, shape, strides = graph.values[op.inputs[0]], op.attr("shape"), op.attr("strides")
    same = all(d == 1 or s == k for d, s, k in zip(shape, strides, row_major(shape), strict=True))
    return same and x.layout == "row" and x.size == graph.values[op.outputs[0]].size
