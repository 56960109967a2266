"""What of a graph is still needed."""
from __future__ import annotations

from .ir import Graph
from .ops import OPS


def drop_dead(graph: Graph) -> Graph:
    """Keep the ops that an output or a state depends on, and the values that these touch. Host inputs stay: they lay out the step buffer."""
    live, kept = set(graph.outputs), []
    for op in reversed(graph.ops):
        if live & set(op.outputs) or any(OPS[p.kind].inplace for p in op.parts):
            live |= set(op.inputs)
            kept.append(op)
    ops = tuple(reversed(kept))
    touched = live | {n for op in ops for p in op.parts for n in (*p.inputs, *p.outputs)}
    touched |= {str(n) for v in graph.values.values() for n in v.source}
    return graph.with_ops(ops, {n: v for n, v in graph.values.items() if n in touched or v.role == "input"})
