"""ONNX operators with graphs inside: branches that are decided, and loops that are written out, when the graph is compiled."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .checkpoint import CheckpointError
from .onnx_file import array_of, ordered
from .onnx_graph import Lowering, Node, operator
from .onnx_tensors import Tensor, known

MOST_STEPS = 4096      # of a loop that is written out


def subgraph(g: Lowering, n: Node, graph: Any, inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """The outputs of a graph inside a node, for these inputs."""
    scope = dict(n.scope) | {t.name: known(array_of(t, g.where)) for t in graph.initializer}
    scope |= dict(zip((v.name for v in graph.input), inputs, strict=False))
    g.lower_nodes(ordered(graph.node, set(scope), f"{g.where}: {n.op}"), scope, n.opsets)
    found = [scope[v.name] for v in graph.output]
    if any(x is None for x in found):
        raise CheckpointError(f"a branch of {n.op} gives no tensor")
    return [x for x in found if x is not None]


@operator("If")
def branch(g: Lowering, n: Node):
    chosen = g.value_of(n.input(0), "the branch of an If").item()
    return subgraph(g, n, n.attr("then_branch" if chosen else "else_branch"), ())


@operator("Loop")
def loop(g: Lowering, n: Node):
    body, most, goes = n.attr("body"), n.optional(0), n.optional(1)
    limit = int(g.value_of(most, "the steps of a Loop").item()) if most is not None else MOST_STEPS
    carried = [x for x in n.inputs[2:] if x is not None]
    collected: list[list[Tensor]] = [[] for _ in range(len(body.output) - 1 - len(carried))]
    step, going = 0, goes is None or bool(g.value_of(goes, "the condition of a Loop").item())
    while going and step < limit:
        if step >= MOST_STEPS:
            raise CheckpointError(f"a Loop of more than {MOST_STEPS} steps is not written out")
        condition, *made = subgraph(g, n, body, [known(np.int64(step)), known(np.array(True)), *carried])
        carried, gathered = made[:len(carried)], made[len(carried):]
        for kept, x in zip(collected, gathered, strict=True):
            kept.append(x)
        step += 1
        going = bool(g.value_of(condition, "the condition of a Loop").item()) if step < limit else False
    if not step and collected:
        raise CheckpointError("a Loop of no steps that collects results is not supported")
    return [*carried, *(stacked(g, kept, 0) for kept in collected)]


def stacked(g: Lowering, parts: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors of one shape along a new axis."""
    return g.concat([g.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])) for x in parts], axis)


@operator("Scan")
def scan(g: Lowering, n: Node):
    body, count = n.attr("body"), n.attr("num_scan_inputs")
    if n.opset < 9:
        raise CheckpointError("Scan before opset 9 works otherwise; convert the model to opset 13 or above")
    states, sources = list(n.inputs[:-count]), [x for x in n.inputs[-count:] if x is not None]
    kept = len(body.output) - len(states)
    axes, out_axes = (list(n.attr(f"scan_{what}_axes") or [0] * k) for what, k in (("input", count), ("output", kept)))
    turned, out_turned = (list(n.attr(f"scan_{what}_directions") or [0] * k) for what, k in (("input", count), ("output", kept)))
    steps = sources[0].shape[axes[0]]
    collected: list[list[Tensor]] = [[] for _ in range(kept)]
    for step in range(steps):
        given = []
        for x, axis, backward in zip(sources, axes, turned, strict=True):
            axis %= len(x.shape)
            part = g.slice(x, axis, steps - 1 - step if backward else step, 1)
            given.append(g.reshape(part, (*x.shape[:axis], *x.shape[axis + 1:])))
        made = subgraph(g, n, body, [*states, *given])
        states = list(made[:len(states)])
        for parts, x in zip(collected, made[len(states):], strict=True):
            parts.append(x)
    results = []
    for parts, axis, backward in zip(collected, out_axes, out_turned, strict=True):
        results.append(stacked(g, parts[::-1] if backward else parts, axis % (len(parts[0].shape) + 1)))
    return [*states, *results]


@operator("OptionalHasElement")
def has_element(g: Lowering, n: Node):
    return known(np.array(n.optional(0) is not None))


@operator("Optional", "OptionalGetElement")
def element(g: Lowering, n: Node):
    return n.input(0)


__all__ = ["MOST_STEPS", "stacked", "subgraph"]
