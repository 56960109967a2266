"""ONNX operators that move elements: shapes, slices, paddings, triangles."""
from __future__ import annotations

import math

import numpy as np

from .checkpoint import CheckpointError
from .onnx_graph import Lowering, Node, operator
from .onnx_tensors import Tensor, known


def axes_of(g: Lowering, n: Node, i: int, rank: int) -> list[int] | None:
    """Axes from input i, or an attribute in older operator sets; None where neither is given."""
    given = n.optional(i)
    found = g.numbers(given, f"the axes of {n.op}") if given is not None else n.attr("axes")
    if found is None:
        return None
    if bad := [a for a in found if not -rank <= a < rank]:
        raise CheckpointError(f"axis {bad[0]} is not one of {rank}")
    return [a % rank for a in found]


def axis_of(n: Node, rank: int, default: int = 0) -> int:
    axis = int(n.attr("axis", default))
    if not -rank <= axis < rank:
        raise CheckpointError(f"axis {axis} is not one of {rank}")
    return axis % rank


# Shapes.

@operator("Shape")
def shape(g: Lowering, n: Node):
    return known(np.array(n.input(0).shape[n.attr("start", 0):n.attr("end")], np.int64))


@operator("Size")
def size(g: Lowering, n: Node):
    return known(np.array(n.input(0).size, np.int64))


@operator("Reshape")
def reshape(g: Lowering, n: Node):
    x, wanted = n.input(0), g.numbers(n.input(1), "the shape of a Reshape")
    if not n.attr("allowzero", 0):
        wanted = [x.shape[k] if d == 0 else d for k, d in enumerate(wanted)]
    if -1 in wanted:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = x.size // rest if rest else 0
    if math.prod(wanted) != x.size:
        raise CheckpointError(f"{list(x.shape)} does not reshape to {wanted}")
    return g.reshape(x, wanted)


@operator("Flatten")
def flatten(g: Lowering, n: Node):
    x, axis = n.input(0), n.attr("axis", 1)
    return g.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:] if axis != len(x.shape) else ())))


@operator("Squeeze")
def squeeze(g: Lowering, n: Node):
    x = n.input(0)
    axes = axes_of(g, n, 1, len(x.shape))
    axes = [k for k, d in enumerate(x.shape) if d == 1] if axes is None else axes
    return g.reshape(x, [d for k, d in enumerate(x.shape) if k not in axes])


@operator("Unsqueeze")
def unsqueeze(g: Lowering, n: Node):
    x, given = n.input(0), n.optional(1)
    count = given.size if given is not None else len(n.attr("axes"))
    axes = axes_of(g, n, 1, len(x.shape) + count) or []
    rest = iter(x.shape)
    return g.reshape(x, [1 if k in axes else next(rest) for k in range(len(x.shape) + count)])


@operator("Expand")
def expand(g: Lowering, n: Node):
    x = n.input(0)
    return g.expand(x, np.broadcast_shapes(x.shape, tuple(g.numbers(n.input(1), "the shape of an Expand"))))


@operator("Transpose")
def transpose(g: Lowering, n: Node):
    x = n.input(0)
    return g.transpose(x, n.attr("perm") or list(reversed(range(len(x.shape)))))


@operator("Constant")
def constant(g: Lowering, n: Node):
    for name, dtype in (("value", ""), ("value_float", "float32"), ("value_floats", "float32"), ("value_int", "int64"), ("value_ints", "int64")):
        if n.attr(name) is not None:
            return known(n.attr(name), dtype)
    raise CheckpointError("only constants of numbers are supported")


@operator("ConstantOfShape")
def constant_of_shape(g: Lowering, n: Node):
    value = n.attr("value")
    value = np.zeros(1, np.float32) if value is None else value
    return g.expand(known(value.reshape(())), g.numbers(n.input(0), "the shape of a ConstantOfShape"))


@operator("EyeLike")
def eye_like(g: Lowering, n: Node):
    from .onnx_file import DTYPES
    x = n.input(0)
    return known(np.eye(x.shape[0], x.shape[1], k=n.attr("k", 0)), DTYPES[n.attr("dtype")].name if n.attr("dtype") else x.dtype)


@operator("Range")
def range_(g: Lowering, n: Node):
    start, limit, delta = (g.value_of(n.input(i), "the ends of a Range").item() for i in range(3))
    count = max(0, math.ceil((limit - start) / delta))
    return known(start + np.arange(count) * delta, n.input(0).dtype)


# Pieces.

@operator("Slice")
def slice_(g: Lowering, n: Node):
    x = n.input(0)
    if len(n.inputs) > 1:
        starts, ends = (g.numbers(n.input(i), "the ends of a Slice") for i in (1, 2))
        given = n.optional(4)
        steps = g.numbers(given, "the steps of a Slice") if given is not None else [1] * len(starts)
    else:
        starts, ends, steps = list(n.attr("starts")), list(n.attr("ends")), [1] * len(n.attr("starts"))
    axes = axes_of(g, n, 3, len(x.shape))
    for axis, start, end, step in zip(range(len(starts)) if axes is None else axes, starts, ends, steps, strict=False):
        taken = range(x.shape[axis])[slice(start, end, step)]
        if len(taken) != x.shape[axis] or step != 1:
            x = g.slice(x, axis, taken.start, len(taken), step)
    return x


@operator("Split")
def split(g: Lowering, n: Node):
    x = n.input(0)
    axis, given = axis_of(n, len(x.shape)), n.optional(1)
    if given is not None:
        sizes = g.numbers(given, "the sizes of a Split")
    elif n.attr("split"):
        sizes = list(n.attr("split"))
    else:
        count = n.attr("num_outputs") or len(n.outputs)
        each = -(-x.shape[axis] // count)
        sizes = [max(0, min(each, x.shape[axis] - k * each)) for k in range(count)]
    starts = np.cumsum([0, *sizes])
    return [g.slice(x, axis, int(start), size) for start, size in zip(starts, sizes, strict=False)]


@operator("Concat")
def concat(g: Lowering, n: Node):
    parts = [x for x in n.inputs if x is not None]
    return g.concat(parts, axis_of(n, len(parts[0].shape)))


@operator("Tile")
def tile(g: Lowering, n: Node):
    x = n.input(0)
    return tiled(g, x, g.numbers(n.input(1), "the repeats of a Tile"))


def tiled(g: Lowering, x: Tensor, repeats: list[int]) -> Tensor:
    pairs = [p for r, d in zip(repeats, x.shape, strict=True) for p in (r, d)]
    singled = g.reshape(x, [p for d in x.shape for p in (1, d)])
    return g.reshape(g.expand(singled, pairs), [r * d for r, d in zip(repeats, x.shape, strict=True)])


@operator("Pad")
def pad(g: Lowering, n: Node):
    x, mode = n.input(0), n.attr("mode", "constant")
    pads = g.numbers(n.input(1), "the sizes of a Pad") if len(n.inputs) > 1 else list(n.attr("pads"))
    axes = axes_of(g, n, 3, len(x.shape))
    axes = list(range(len(x.shape))) if axes is None else axes
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    if mode == "constant":
        given = n.optional(2)
        value = g.value_of(given, "the value of a Pad").item() if given is not None and given.size else n.attr("value", 0.0)
        return g.pad(x, before, after, value)
    for axis, (b, a) in enumerate(zip(before, after, strict=True)):
        if b or a:
            places = np.arange(-b, x.shape[axis] + a)
            last = max(1, x.shape[axis] - 1)
            at = {"edge": places.clip(0, x.shape[axis] - 1), "wrap": places % x.shape[axis],
                  "reflect": last - np.abs(places % (2 * last) - last)}[mode]
            x = g.take(x, known(at.astype(np.int32)), axis)
    return x


@operator("Trilu")
def trilu(g: Lowering, n: Node):
    x, given = n.input(0), n.optional(1)
    if not x.size:
        return x
    k = int(g.value_of(given, "the diagonal of a Trilu").item()) if given is not None else 0
    k = max(-x.shape[-2] - 1, min(x.shape[-1] + 1, k))
    rows, cols = (g.make("iota", shape=x.shape, axis=len(x.shape) - side, dtype="int32", start=start) for side, start in ((2, k), (1, 0)))
    zero = g.expand(g.scalar(0, x), x.shape)
    if n.attr("upper", 1):
        return g.each("where", g.each("less", cols, rows, dtype="bool"), zero, x, dtype=x.dtype)
    return g.each("where", g.each("less", rows, cols, dtype="bool"), zero, x, dtype=x.dtype)


@operator("ReverseSequence")
def reverse_sequence(g: Lowering, n: Node):
    x, lengths = n.input(0), n.input(1)
    batch, time = n.attr("batch_axis", 1), n.attr("time_axis", 0)
    place = g.iota(x.shape, time)
    until = g.reshape(g.cast(lengths, "int32"), [d if k == batch else 1 for k, d in enumerate(x.shape)])
    turned = g.each("sub", g.expand(g.each("sub", until, known(np.int32(1))), x.shape), place)
    at = g.each("where", g.each("less", place, until, dtype="bool"), turned, place, dtype="int32")
    return g.make("take_along", x, at, axis=time)


__all__ = ["axes_of", "axis_of", "tiled"]
