"""ONNX operators that look elements up, scatter them, and put them in order."""
from __future__ import annotations

import math

import numpy as np

from ..compiler.indexing import row_major
from .checkpoint import CheckpointError
from .onnx_graph import Lowering, Node, operator
from .onnx_rearranging import axis_of
from .onnx_tensors import Tensor, known

REDUCED = {"none": "replace", "add": "sum", "mul": "product", "max": "maximum", "min": "minimum"}


@operator("Gather")
def gather(g: Lowering, n: Node):
    return g.take(n.input(0), n.input(1), axis_of(n, len(n.input(0).shape)))


@operator("GatherElements")
def gather_elements(g: Lowering, n: Node):
    x, index = n.input(0), n.input(1)
    if not index.size:
        return known(np.zeros(index.shape), x.dtype)
    return g.make("take_along", x, index, axis=axis_of(n, len(x.shape)))


def from_end(g: Lowering, index: Tensor, count: int) -> Tensor:
    """Indices below 0 as they count from the front."""
    return g.each("where", g.each("less", index, g.scalar(0, index), dtype="bool"), g.each("add", index, g.scalar(count, index)), index,
                  dtype=index.dtype)


def flat_index(g: Lowering, index: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Indices [..., k] into the first k axes as one into all of these together."""
    total = None
    for k, d in enumerate(dims):
        part = g.reshape(g.slice(index, len(index.shape) - 1, k, 1), index.shape[:-1])
        part = from_end(g, part, d)
        part = g.each("mul", part, g.scalar(math.prod(dims[k + 1:]), part))
        total = part if total is None else g.each("add", total, part)
    assert total is not None
    return total


@operator("GatherND")
def gather_nd(g: Lowering, n: Node):
    x, index, batch = n.input(0), g.cast(n.input(1), "int32"), n.attr("batch_dims", 0)
    depth, lead = index.shape[-1], math.prod(x.shape[:batch])
    dims, rest = x.shape[batch:batch + depth], x.shape[batch + depth:]
    at = g.reshape(flat_index(g, index, dims), (lead, math.prod(index.shape[batch:-1])))
    if batch:
        at = g.each("add", at, known((np.arange(lead, dtype=np.int32) * math.prod(dims))[:, None]))
    found = g.take(g.reshape(x, (lead * math.prod(dims), math.prod(rest))), g.reshape(at, (at.size,)), 0)
    return g.reshape(found, (*index.shape[:-1], *rest))


@operator("OneHot")
def one_hot(g: Lowering, n: Node):
    index, values = n.input(0), n.input(2)
    depth = int(g.value_of(n.input(1), "the depth of a OneHot").reshape(-1)[0])
    axis = int(n.attr("axis", -1)) % (len(index.shape) + 1)
    index = g.cast(index, "int32")
    index = from_end(g, index, depth)
    wide = (*index.shape[:axis], depth, *index.shape[axis:])
    index = g.expand(g.reshape(index, (*index.shape[:axis], 1, *index.shape[axis:])), wide)
    hit = g.each("equal", index, g.iota(wide, axis), dtype="bool")
    off, on = (g.reshape(g.slice(values, 0, k, 1), ()) for k in (0, 1))
    return g.each("where", hit, on, off, dtype=values.dtype)


@operator("Compress")
def compress(g: Lowering, n: Node):
    x, chosen = n.input(0), np.flatnonzero(g.value_of(n.input(1), "the choice of a Compress"))
    if n.attr("axis") is None:
        x = g.reshape(x, (x.size,))
    return g.take(x, known(chosen.astype(np.int32)), axis_of(n, len(x.shape)) if n.attr("axis") is not None else 0)


@operator("NonZero", "Unique", "NonMaxSuppression", "MelWeightMatrix")
def counted(g: Lowering, n: Node):
    """Operators whose result's size depends on contents: these are taken as fixed, and numpy computes them."""
    for x in n.inputs:
        if x is not None:
            g.value_of(x, f"the size of a {n.op}")
    raise CheckpointError("the onnx package cannot compute it")


# Scattered.

def scattered(g: Lowering, data: Tensor, target: Tensor, updates: Tensor, lines: int, how: str) -> Tensor:
    """A copy of data with updates in it; target: where each goes, by elements of the whole."""
    if not updates.size:
        return data
    copied = g.op("view", g.named(data), shape=data.shape, strides=row_major(data.shape))[0]
    made = g.op("scatter", copied, g.named(target), g.named(updates), lines=lines, how=how)[0]
    return Tensor(data.shape, data.dtype, made, origins=data.origins | target.origins | updates.origins)


@operator("ScatterElements", "Scatter")
def scatter_elements(g: Lowering, n: Node):
    data, index, updates = n.input(0), g.cast(n.input(1), "int32"), n.input(2)
    axis = axis_of(n, len(data.shape))
    if not index.size:
        return data
    below = [math.prod(data.shape[k + 1:]) for k in range(len(data.shape))]
    at = g.each("mul", from_end(g, index, data.shape[axis]), g.scalar(below[axis], index))
    others = sum((np.arange(d).reshape(-1, *[1] * (len(index.shape) - k - 1)) * below[k] for k, d in enumerate(index.shape) if k != axis),
                 start=np.zeros(index.shape, np.int64))
    at = g.each("add", at, known(others.astype(np.int32)))
    order = [k for k in range(len(index.shape)) if k != axis] + [axis]
    lines = index.size // index.shape[axis]
    return scattered(g, data, g.transpose(at, order), g.transpose(updates, order), lines, REDUCED[n.attr("reduction", "none")])


@operator("ScatterND")
def scatter_nd(g: Lowering, n: Node):
    data, index, updates = n.input(0), g.cast(n.input(1), "int32"), n.input(2)
    if not index.size:
        return data
    depth = index.shape[-1]
    inner, count = math.prod(data.shape[depth:]), math.prod(index.shape[:-1])
    at = g.reshape(flat_index(g, index, data.shape[:depth]), (1, count))
    at = g.each("add", g.expand(g.each("mul", at, known(np.int32(inner))), (inner, count)), known(np.arange(inner, dtype=np.int32)[:, None]))
    changes = g.transpose(g.reshape(updates, (count, inner)), (1, 0))
    return scattered(g, data, at, changes, inner, REDUCED[n.attr("reduction", "none")])


@operator("TensorScatter")
def tensor_scatter(g: Lowering, n: Node):
    past, update, start = n.input(0), n.input(1), n.optional(2)
    axis = int(n.attr("axis", -2)) % len(past.shape)
    lead, inner = math.prod(past.shape[:axis]), math.prod(past.shape[axis + 1:])
    length, count, batch = past.shape[axis], update.shape[axis], past.shape[0]
    place = known(np.arange(count, dtype=np.int32).reshape(1, 1, count, 1))
    if start is not None:
        place = g.each("add", g.expand(place, (batch, 1, count, 1)), g.reshape(g.cast(start, "int32"), (batch, 1, 1, 1)))
    if n.attr("mode", "linear") == "circular":
        place = g.each("modulo", place, known(np.int32(length)))
    at = g.each("mul", place, known(np.int32(inner)))
    others = np.arange(lead).reshape(batch, -1, 1, 1) * length * inner + np.arange(inner)
    at = g.each("add", g.expand(at, (batch, lead // batch, count, inner)), known(others.astype(np.int32)))
    return scattered(g, past, at, update, update.size, "replace")


# Ordered.

@operator("TopK")
def top_k(g: Lowering, n: Node):
    x = n.input(0)
    axis = axis_of(n, len(x.shape), -1)
    count = int(g.value_of(n.input(1), "the k of a TopK").reshape(-1)[0]) if len(n.inputs) > 1 else n.attr("k")
    if not count:
        empty = (*x.shape[:axis], 0, *x.shape[axis + 1:])
        return [known(np.zeros(empty), x.dtype), known(np.zeros(empty), "int64")]
    return g.several("rank", x, axis=axis, count=count, largest=bool(n.attr("largest", 1)), dtypes=(x.dtype, "int64"))


@operator("CumSum", "CumProd")
def running(g: Lowering, n: Node):
    x = n.input(0)
    axis = int(g.value_of(n.input(1), f"the axis of a {n.op}").item()) % len(x.shape)
    return g.make("scan", x, axis=axis, how="sum" if n.op == "CumSum" else "product", exclusive=bool(n.attr("exclusive", 0)),
                  reverse=bool(n.attr("reverse", 0)))


__all__ = ["flat_index", "from_end", "scattered"]
