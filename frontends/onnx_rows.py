"""Compute batches of sequences as rows, the way decoders are written, so that their kernels run them.

before: %y = matmul(%x: [1, 90, 64], %w)   %q = view(%y, shape=[90 4 16])    after: %y = matmul(%x: [90, 64], %w)   %q = split(%y, head_dim=16)

Views that keep the order of elements cost nothing then: ops that work row by row take [rows, ...] whatever the leading axes were.
"""
from __future__ import annotations

import math
from dataclasses import replace

from ..compiler.indexing import row_major
from ..compiler.ir import Graph, Op, Value
from ..compiler.ops import OPS, infer

Shape = tuple[int, ...]
ALONG_ROWS = ("matmul", "rms_norm")     # besides the element-wise ops: the first operand's rows by themselves, others as they are


def flattened(shape: Shape) -> Shape:
    """The first two axes of three or more in one."""
    return (shape[0] * shape[1], *shape[2:]) if len(shape) > 2 else shape


def as_rows(graph: Graph) -> Graph:
    """The same graph over rows. Values of the graph's states keep their bytes, not always their shapes."""
    return _Rows(graph).graph()


class _Rows:
    def __init__(self, graph: Graph):
        self.before = graph
        self.values = {n: v for n, v in graph.values.items() if v.role != "temp"}
        self.ops: list[Op] = []
        self.root: dict[str, str] = {}                      # of a value that is another seen in another shape
        self.seen: dict[tuple[str, Shape], str] = {}        # what sees it so

    def graph(self) -> Graph:
        for op in self.before.ops:
            self._take(op)
        return Graph(self.values, tuple(self.ops), self.before.outputs)

    def _take(self, op: Op) -> None:
        shapes = [self.before.values[n].shape for n in op.inputs]
        if op.kind == "view" and _keeps_order(op, shapes[0]):
            self.root[op.outputs[0]] = self.root.get(op.inputs[0], op.inputs[0])
        elif self._is_row_wise(op, shapes):
            self._write(op, [self._as(n, flattened(s) if s == shapes[0] else s) for n, s in zip(op.inputs, shapes)])
        elif op.kind == "store" and self._is_whole(op):
            self._store(op)
        else:
            self._write(op, [self._as(n, s) for n, s in zip(op.inputs, shapes)])

    def _is_row_wise(self, op: Op, shapes: list[Shape]) -> bool:
        if op.kind in ALONG_ROWS:
            return True
        known = OPS.get(op.kind)
        same = all(s == shapes[0] or len(s) <= 1 for s in shapes)
        return known is not None and known.elementwise and not known.inplace and bool(shapes) and same

    def _write(self, op: Op, inputs: list[str]) -> None:
        op = replace(op, inputs=tuple(inputs))
        made = infer(op, self.values)
        self.values |= dict(zip(op.outputs, made, strict=True))
        self.ops.append(op)

    def _as(self, name: str, shape: Shape) -> str:
        """The value in this shape: itself, a view made before, or a new one."""
        root = self.root.get(name, name)
        value = self.values[root]
        if value.shape == shape:
            return root
        if (root, shape) not in self.seen:
            self.seen[root, shape] = made = f"{root}.{'x'.join(map(str, shape))}"
            self._write(_seen(root, value, made, shape), [root])
        return self.seen[root, shape]

    def _is_whole(self, op: Op) -> bool:
        """Whether a store fills a state that nothing else touches."""
        state, x = (self.before.values[n] for n in op.inputs)
        users = sum(o.inputs.count(op.inputs[0]) for o in self.before.ops)
        return state.role == "state" and state.shape == x.shape and users == 1 and not op.attrs

    def _store(self, op: Op) -> None:
        """The state takes the shape that its rows are computed in."""
        root = self.root.get(op.inputs[1], op.inputs[1])
        shape = self.values[root].shape
        if len(shape) != 2 or self.values[root].role != "temp":
            root = self._as(op.inputs[1], shape := self.before.values[op.inputs[1]].shape)
        self.values[op.inputs[0]] = replace(self.values[op.inputs[0]], shape=shape)
        self._write(op, [op.inputs[0], root])


def _seen(root: str, value: Value, made: str, shape: Shape) -> Op:
    """The op that sees a value in another shape: heads are a split of rows."""
    if len(value.shape) == 2 and len(shape) == 3 and shape[0] == value.shape[0]:
        return Op("split", (root,), (made,), (("sizes", (value.shape[1],)), ("head_dim", shape[2])))
    return Op("view", (root,), (made,), (("shape", shape), ("strides", row_major(shape)), ("offset", 0)))


def _keeps_order(view: Op, shape: Shape) -> bool:
    """Whether a view of a value of some shape shows all of its elements in their order."""
    to = view.attr("shape")
    return view.attr("strides") == row_major(to) and not view.attr("offset", 0) and math.prod(shape) == math.prod(to)


__all__ = ["as_rows"]
