"""Cut the attention of few rows over the keys, so that the whole device works on it.

before: %y = attention(%q, %k, %v, ...)
after:  %p = attention_split(%q, %k, %v, ..., splits=32, least=32)   %y = attention_merge(%p)
"""
from __future__ import annotations

from ..device import Device
from ..ir import Graph, Op, Value

INVOCATIONS = 512       # of a workgroup that works on one split of one key head: its registers leave room for no more
KEYS = 32               # fewer keys a split are not worth a workgroup: few keys take few of the splits


def split_kv(graph: Graph, device: Device) -> Graph:
    values, ops = dict(graph.values), list[Op]()
    for op in graph.ops:
        if op.kind != "attention" or op.attr("sequence", False):
            ops.append(op)
            continue
        q, k = values[op.inputs[0]], values[op.inputs[1]]
        splits = min(max(1, device.width // (INVOCATIONS * q.shape[0] * k.shape[1])), max(1, k.shape[2] // KEYS), 64)
        parts = f"{op.outputs[0]}_parts"
        values[parts] = Value((q.shape[0], q.shape[1], splits, q.shape[2] + 4))
        attrs = tuple((key, v) for key, v in op.attrs if key != "sequence")
        ops.append(Op("attention_split", op.inputs[:5], (parts,), (*attrs, ("splits", splits), ("least", KEYS))))
        ops.append(Op("attention_merge", (parts, *op.inputs[5:]), op.outputs, (("dtype", values[op.outputs[0]].dtype),)))
    return graph.with_ops(ops, values)
