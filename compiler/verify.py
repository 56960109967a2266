"""The rules that a graph keeps after every pass."""
from __future__ import annotations

from collections.abc import Mapping

from .ir import Graph, GraphError, Op, Value
from .layouts import LAYOUTS
from .ops import OPS, aliased, infer
from .text import show_op


def verify(graph: Graph, stage: str, before: Graph | None = None) -> None:
    """Raise GraphError, naming the stage, the op and the rule, unless the graph keeps the law of ir.py.

    before: a graph that keeps it, which a pass made this one of. What is the same in both, and over the same values, is not typed again."""
    if stage == "tiling" and (left := next((i for i, op in enumerate(graph.ops) if not op.choice), None)) is not None:
        raise GraphError(f"{_where(graph, stage, left)} has no kernel")
    if graph is before:
        return
    known = before.values if before else {}
    changed = {n: v for n, v in graph.values.items() if known.get(n) is not v}
    _check_values(changed, stage)
    typed = {id(part) for op in before.ops for part in op.parts} if before else set()
    written = {n for n, v in graph.values.items() if v.role != "temp"}
    aliases: dict[str, list[str]] = {}
    for name, value in graph.values.items():
        if value.source and (source := aliased(name, graph.values)) != name:
            aliases.setdefault(source, []).append(name)
    written |= {n for name in tuple(written) for n in aliases.get(name, ())}
    retired: dict[str, str] = {}
    for i, op in enumerate(graph.ops):
        try:
            _check_order(op, written, retired)
            for part in op.parts:
                if id(part) not in typed or not changed.keys().isdisjoint((*part.inputs, *part.outputs)):
                    _check_type(graph, part)
            if op.body:
                _check_body(op)
        except ValueError as reason:
            raise GraphError(f"{_where(graph, stage, i)} {reason}") from reason.__cause__
        written.update(op.outputs)
        if aliases:
            written |= {n for name in op.outputs for n in aliases.get(name, ())}
    if missing := [n for n in graph.outputs if n not in written]:
        raise GraphError(f"after {stage}: never written: {', '.join(f'%{n}' for n in missing)}")


def _where(graph: Graph, stage: str, place: int) -> str:
    return f"after {stage}: op {place} {_describe(graph, graph.ops[place])}"


def _describe(graph: Graph, op: Op) -> str:
    outs = ", ".join(f"%{n}" for n in op.outputs)
    return f"{outs} = {op.kind}({', '.join(f'%{n}: {graph.values.get(n)}' for n in op.inputs)})"


def _check_values(values: Mapping[str, Value], stage: str) -> None:
    for name, value in values.items():
        if value.layout not in LAYOUTS:
            raise GraphError(f"after {stage}: %{name} has the unknown layout {value.layout}; known: {', '.join(LAYOUTS)}")
        if value.shape and value.shape[-1] % LAYOUTS[value.layout].group:
            raise GraphError(f"after {stage}: %{name}: {value} has rows that are no multiple of {value.layout}'s {LAYOUTS[value.layout].group}")
        for d in value.shape:
            if not isinstance(d, int) or d <= 0:
                raise GraphError(f"after {stage}: %{name} has the shape {list(value.shape)}; dimensions are whole numbers above 0")


def _check_order(op: Op, written: set[str], retired: dict[str, str]) -> None:
    """Every name is written once, before it is read, and not read once its buffer has another; enters the buffers that the op renames."""
    if op.kind == "fused" and not op.body:
        raise ValueError("is fused but has no body")
    made: set[str] = set()
    for part in op.parts:
        if part.kind not in OPS:
            raise ValueError(f"is no op; known: {', '.join(OPS)}")
        for name in part.inputs:
            if name not in written and name not in made:
                raise ValueError(f"reads %{name} before it is written")
            if name in retired:
                raise ValueError(f"reads %{name}, whose buffer is called %{retired[name]} by now")
        for name in part.outputs:
            if name in written or name in made:
                raise ValueError(f"writes %{name} a second time")
        for output, source in OPS[part.kind].inplace.items():
            retired[part.inputs[source]] = part.outputs[output]
        made.update(part.outputs)
    for name in op.inputs:
        if name not in written:
            raise ValueError(f"reads %{name} before it is written")


def _check_type(graph: Graph, op: Op) -> None:
    try:
        inferred = infer(op, graph.values)
    except (ValueError, TypeError, KeyError) as err:
        raise ValueError(f"does not type: {err}") from err
    if len(inferred) != len(op.outputs):
        raise ValueError(f"has {len(op.outputs)} outputs but {op.kind} gives {len(inferred)}")
    for name, value in zip(op.outputs, inferred, strict=True):
        got = graph.values[name]
        if (got.shape, got.dtype) != (value.shape, value.dtype):
            raise ValueError(f"makes %{name}: {got} but its operands give {value}")


def _check_body(op: Op) -> None:
    if (anchors := [p.kind for p in op.body if OPS[p.kind].anchor]) and len(anchors) > 1:
        raise ValueError(f"has more than one anchor: {', '.join(anchors)}")
    made = {n for p in op.body for n in p.outputs}
    if unread := {n for p in op.body for n in p.inputs} - made - set(op.inputs):
        raise ValueError(f"reads {', '.join(unread)} in its body but not as operands")
    if missing := set(op.outputs) - made:
        raise ValueError(f"never writes {', '.join(missing)} in its body")


__all__ = ["show_op", "verify"]
