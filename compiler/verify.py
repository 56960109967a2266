"""The rules that a graph keeps after every pass."""
from __future__ import annotations

from .ir import Graph, GraphError, Op
from .layouts import LAYOUTS
from .ops import OPS, aliased, infer
from .text import show_op


def verify(graph: Graph, stage: str) -> None:
    """Raise GraphError, naming the stage, the op and the rule, unless the graph keeps the law of ir.py."""
    _check_values(graph, stage)
    written = {n for n, v in graph.values.items() if v.role != "temp"}
    aliases: dict[str, list[str]] = {}
    for name in graph.values:
        if (source := aliased(name, graph.values)) != name:
            aliases.setdefault(source, []).append(name)
    written |= {n for name in tuple(written) for n in aliases.get(name, ())}
    retired: dict[str, str] = {}
    for i, op in enumerate(graph.ops):
        def where(i=i, op=op) -> str:
            return f"after {stage}: op {i} {_describe(graph, op)}"
        if op.kind == "fused" and not op.body:
            raise GraphError(f"{where()} is fused but has no body")
        known = set(written)
        for part in op.parts:
            _check_op(graph, part, known, retired, where)
        for name in op.inputs:
            if name not in written:
                raise GraphError(f"{where()} reads %{name} before it is written")
        if op.body:
            _check_body(op, where)
        if stage == "tiling" and not op.choice:
            raise GraphError(f"{where()} has no kernel")
        written |= {n for name in op.outputs for n in (name, *aliases.get(name, ()))}
    if missing := [n for n in graph.outputs if n not in written]:
        raise GraphError(f"after {stage}: never written: {', '.join(f'%{n}' for n in missing)}")


def _describe(graph: Graph, op: Op) -> str:
    outs = ", ".join(f"%{n}" for n in op.outputs)
    return f"{outs} = {op.kind}({', '.join(f'%{n}: {graph.values.get(n)}' for n in op.inputs)})"


def _check_values(graph: Graph, stage: str) -> None:
    for name, value in graph.values.items():
        if value.layout not in LAYOUTS:
            raise GraphError(f"after {stage}: %{name} has the unknown layout {value.layout}; known: {', '.join(LAYOUTS)}")
        if value.shape and value.shape[-1] % LAYOUTS[value.layout].group:
            raise GraphError(f"after {stage}: %{name}: {value} has rows that are no multiple of {value.layout}'s {LAYOUTS[value.layout].group}")
        if any(not isinstance(d, int) or d <= 0 for d in value.shape):
            raise GraphError(f"after {stage}: %{name} has the shape {list(value.shape)}; dimensions are whole numbers above 0")


def _check_op(graph: Graph, op: Op, known: set[str], retired: dict[str, str], where) -> None:
    if op.kind not in OPS:
        raise GraphError(f"{where()} is no op; known: {', '.join(OPS)}")
    for name in op.inputs:
        if name not in known:
            raise GraphError(f"{where()} reads %{name} before it is written")
        if name in retired:
            raise GraphError(f"{where()} reads %{name}, whose buffer is called %{retired[name]} by now")
    for name in op.outputs:
        if name in known:
            raise GraphError(f"{where()} writes %{name} a second time")
    try:
        inferred = infer(op, graph.values)
    except (ValueError, TypeError, KeyError) as err:
        raise GraphError(f"{where()} does not type: {err}") from err
    if len(inferred) != len(op.outputs):
        raise GraphError(f"{where()} has {len(op.outputs)} outputs but {op.kind} gives {len(inferred)}")
    for name, value in zip(op.outputs, inferred, strict=True):
        got = graph.values[name]
        if (got.shape, got.dtype) != (value.shape, value.dtype):
            raise GraphError(f"{where()} makes %{name}: {got} but its operands give {value}")
    for output, source in OPS[op.kind].inplace.items():
        retired[op.inputs[source]] = op.outputs[output]
    known.update(op.outputs)


def _check_body(op: Op, where) -> None:
    if (anchors := [p.kind for p in op.body if OPS[p.kind].anchor]) and len(anchors) > 1:
        raise GraphError(f"{where()} has more than one anchor: {', '.join(anchors)}")
    made = {n for p in op.body for n in p.outputs}
    if unread := {n for p in op.body for n in p.inputs} - made - set(op.inputs):
        raise GraphError(f"{where()} reads {', '.join(unread)} in its body but not as operands")
    if missing := set(op.outputs) - made:
        raise GraphError(f"{where()} never writes {', '.join(missing)} in its body")


__all__ = ["show_op", "verify"]
