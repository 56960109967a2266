"""ONNX operators over windows of images: convolutions and pools, which are views with overlapping windows, and products or reductions."""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..compiler.indexing import row_major
from .onnx_graph import Lowering, Node, operator
from .onnx_lookups import scattered
from .onnx_products import restored, rounded
from .onnx_reductions import per_channel
from .onnx_tensors import Shape, Tensor, known


@dataclass(frozen=True)
class Windows:
    """Windows over the axes after the first two. beyond: zeros behind the padding, which only rounding up makes."""

    kernel: Shape
    strides: Shape
    dilations: Shape
    before: Shape
    after: Shape
    beyond: Shape
    out: Shape


def windows_of(n: Node, sizes: Shape, kernel: Shape) -> Windows:
    """The windows that a node's attributes describe over axes of these sizes."""
    rank = len(sizes)
    strides, dilations = (tuple(n.attr(name) or [1] * rank) for name in ("strides", "dilations"))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    auto = n.attr("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        out = tuple(-(-size // s) for size, s in zip(sizes, strides, strict=True))
        pads = [max(0, (o - 1) * s + span - size) for o, s, span, size in zip(out, strides, spans, sizes, strict=True)]
        less, more = tuple(p // 2 for p in pads), tuple(p - p // 2 for p in pads)
        before, after = (less, more) if auto == "SAME_UPPER" else (more, less)
        return Windows(kernel, strides, dilations, before, after, (0,) * rank, out)
    pads = list(n.attr("pads") or [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
    before, after = tuple(pads[:rank]), tuple(pads[rank:])
    counts: list[int] = []
    beyond: list[int] = []
    for size, b, a, span, s in zip(sizes, before, after, spans, strides, strict=True):
        room = size + b + a - span
        count = (-(-room // s) if n.attr("ceil_mode", 0) else room // s) + 1
        if n.attr("ceil_mode", 0) and (count - 1) * s >= size + b:      # a window that begins in the padding behind
            count -= 1
        counts.append(count)
        beyond.append(max(0, (count - 1) * s + span - size - b - a))
    return Windows(kernel, strides, dilations, before, after, tuple(beyond), tuple(counts))


def unfolded(g: Lowering, x: Tensor, w: Windows, value: float) -> Tensor:
    """[n, c, *out, *kernel]: what each window sees of x [n, c, *sizes]."""
    behind = [a + b for a, b in zip(w.after, w.beyond, strict=True)]
    x = g.pad(x, [0, 0, *w.before], [0, 0, *behind], value)
    steps = row_major(x.shape)
    strides = [s * k for s, k in zip(steps[2:], w.strides, strict=True)] + [s * d for s, d in zip(steps[2:], w.dilations, strict=True)]
    return g.view(x, (*x.shape[:2], *w.out, *w.kernel), (*steps[:2], *strides))


def convolved(g: Lowering, x: Tensor, weight: Tensor, w: Windows, groups: int) -> Tensor:
    """weight [m, c / groups, *kernel]: a product of matrices for every image and group."""
    images, channels, rank = x.shape[0], x.shape[1], len(w.kernel)
    seen = unfolded(g, x, w, 0)
    order = [0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank)]
    depth, places, made = channels // groups * math.prod(w.kernel), math.prod(w.out), weight.shape[0] // groups
    right = g.reshape(g.transpose(seen, order), (images * groups, depth, places))
    left = g.reshape(g.expand(g.reshape(weight, (1, groups, made, depth)), (images, groups, made, depth)), (images * groups, made, depth))
    return g.reshape(g.make("batch_matmul", left, right), (images, weight.shape[0], *w.out))


def biased(g: Lowering, y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else g.each("add", y, per_channel(g, bias, y))


@operator("Conv")
def conv(g: Lowering, n: Node):
    x, weight = n.input(0), n.input(1)
    return biased(g, convolved(g, x, weight, windows_of(n, x.shape[2:], weight.shape[2:]), n.attr("group", 1)), n.optional(2))


def lifted(g: Lowering, x: Tensor, zero: Tensor | None) -> Tensor:
    """Stored integers less their zero point (one, or one an output channel), as i32."""
    x = g.cast(x, "int32")
    if zero is None:
        return x
    zero = g.cast(zero, "int32")
    return g.each("sub", x, g.reshape(zero, (zero.size, *[1] * (len(x.shape) - 1)) if zero.size > 1 else ()))


@operator("ConvInteger")
def conv_integer(g: Lowering, n: Node):
    x, weight = lifted(g, n.input(0), n.optional(2)), lifted(g, n.input(1), n.optional(3))
    return convolved(g, x, weight, windows_of(n, x.shape[2:], weight.shape[2:]), n.attr("group", 1))


@operator("QLinearConv")
def qlinear_conv(g: Lowering, n: Node):
    x, scale_x, zero_x, weight, scale_w, zero_w, scale, zero = (n.input(i) for i in range(8))
    x, weight = lifted(g, x, zero_x), lifted(g, weight, zero_w)
    y = biased(g, convolved(g, x, weight, windows_of(n, x.shape[2:], weight.shape[2:]), n.attr("group", 1)), n.optional(8))
    factor = g.each("div", g.each("mul", g.reshape(scale_x, ()), per_channel(g, scale_w, y)), g.reshape(scale, ()))
    return rounded(g, g.each("mul", restored(g, y, None), factor), known(np.float32(1)), zero, zero.dtype)


@operator("ConvTranspose")
def conv_transpose(g: Lowering, n: Node):
    """A convolution of x with its elements `strides` apart, and the weights turned around."""
    x, weight, rank, groups = n.input(0), n.input(1), len(n.input(0).shape) - 2, n.attr("group", 1)
    strides, dilations = (tuple(n.attr(name) or [1] * rank) for name in ("strides", "dilations"))
    extra, kernel = list(n.attr("output_padding") or [0] * rank), weight.shape[2:]
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    full = [(size - 1) * s + span + e for size, s, span, e in zip(x.shape[2:], strides, spans, extra, strict=True)]
    auto, asked = n.attr("auto_pad", "NOTSET"), n.attr("output_shape")
    if asked or auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = list(asked or [size * s for size, s in zip(x.shape[2:], strides, strict=True)])[-rank:]
        total = [f - w for f, w in zip(full, wanted, strict=True)]
        less = [t // 2 for t in total]
        before = less if auto == "SAME_UPPER" else [t - p for t, p in zip(total, less, strict=True)]
        after = [t - b for t, b in zip(total, before, strict=True)]
    else:
        pads = list(n.attr("pads") or [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
        before, after = pads[:rank], pads[rank:]
    x = g.pad(x, [0, 0, *(s - 1 - b for s, b in zip(spans, before, strict=True))],
              [0, 0, *(s - 1 + e - a for s, e, a in zip(spans, extra, after, strict=True))], 0, (1, 1, *strides))
    channels, made = weight.shape[0] // groups, weight.shape[1]
    for axis in range(2, 2 + rank):
        weight = g.slice(weight, axis, weight.shape[axis] - 1, weight.shape[axis], -1)
    turned = g.transpose(g.reshape(weight, (groups, channels, made, *kernel)), [0, 2, 1, *range(3, 3 + rank)])
    weight = g.reshape(turned, (groups * made, channels, *kernel))
    out = tuple(size - span + 1 for size, span in zip(x.shape[2:], spans, strict=True))
    zeros = (0,) * rank
    y = convolved(g, x, weight, Windows(kernel, (1,) * rank, dilations, zeros, zeros, zeros, out), groups)
    return biased(g, y, n.optional(2))


# Pools.

def pooled(g: Lowering, x: Tensor, w: Windows, how: str, value: float) -> Tensor:
    rank = len(w.kernel)
    return g.reduce(unfolded(g, x, w, value), range(2 + rank, 2 + 2 * rank), how)


@operator("AveragePool")
def average_pool(g: Lowering, n: Node):
    x, kernel = n.input(0), tuple(n.attr("kernel_shape"))
    w = windows_of(n, x.shape[2:], kernel)
    counted = known(np.ones((1, 1, *x.shape[2:]), np.float32))
    bare = w
    if n.attr("count_include_pad", 0):      # the padding counts, what rounding up adds behind it does not
        counted = known(np.ones((1, 1, *(s + b + a for s, b, a in zip(x.shape[2:], w.before, w.after, strict=True))), np.float32))
        none = (0,) * len(kernel)
        bare = Windows(kernel, w.strides, w.dilations, none, none, w.beyond, w.out)
    seen = unfolded(g, counted, bare, 0).array
    assert seen is not None
    count = seen.sum(tuple(range(2 + len(kernel), 2 + 2 * len(kernel))))
    return g.each("div", pooled(g, x, w, "sum", 0), known(np.maximum(count, 1).astype(np.float32)))


@operator("MaxPool")
def max_pool(g: Lowering, n: Node):
    x, kernel = n.input(0), tuple(n.attr("kernel_shape"))
    w, rank = windows_of(n, x.shape[2:], kernel), len(kernel)
    seen = unfolded(g, x, w, -math.inf if x.floating else np.iinfo(x.dtype).min)
    y = g.reduce(seen, range(2 + rank, 2 + 2 * rank), "maximum")
    if not n.wants(1):
        return y
    at = g.cast(g.reduce(g.reshape(seen, (*seen.shape[:2 + rank], math.prod(kernel))), [2 + rank], "argmax"), "int32")
    steps = row_major(x.shape[2:]) if not n.attr("storage_order", 0) else tuple(math.prod(x.shape[2:2 + k]) for k in range(rank))
    base = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * rank) * math.prod(x.shape[2:])
    place: Tensor | None = None
    for k, (size, below) in enumerate(zip(kernel, row_major(kernel), strict=True)):
        within = g.each("int_remainder", g.each("int_div", at, known(np.int32(below))), known(np.int32(size)))
        part = g.each("mul", within, known(np.int32(w.dilations[k] * steps[k])))
        starts = (np.arange(w.out[k]) * w.strides[k] - w.before[k]) * steps[k]
        base = base + starts.reshape(-1, *[1] * (rank - k - 1))
        place = part if place is None else g.each("add", place, part)
    assert place is not None
    return [y, g.cast(g.each("add", place, known(base.astype(np.int32))), "int64")]


@operator("LpPool")
def lp_pool(g: Lowering, n: Node):
    x, p = n.input(0), n.attr("p", 2)
    w = windows_of(n, x.shape[2:], tuple(n.attr("kernel_shape")))
    power = g.each("power", g.each("absolute", x), g.scalar(p, x))
    return g.each("power", pooled(g, power, w, "sum", 0), g.scalar(1 / p, x))


@operator("GlobalLpPool")
def global_lp_pool(g: Lowering, n: Node):
    x, p = n.input(0), n.attr("p", 2)
    total = g.reduce(g.each("power", g.each("absolute", x), g.scalar(p, x)), range(2, len(x.shape)), "sum", True)
    return g.each("power", total, g.scalar(1 / p, x))


@operator("MaxUnpool")
def max_unpool(g: Lowering, n: Node):
    x, index, given = n.input(0), g.cast(n.input(1), "int32"), n.optional(2)
    rank = len(x.shape) - 2
    strides, pads = list(n.attr("strides") or [1] * rank), list(n.attr("pads") or [0] * 2 * rank)
    sizes = [(d - 1) * s + k - b - a for d, s, k, b, a in zip(x.shape[2:], strides, n.attr("kernel_shape"), pads[:rank], pads[rank:], strict=True)]
    shape = (*x.shape[:2], *sizes)
    made = scattered(g, g.expand(g.scalar(0, x), shape), index, x, 1, "replace")
    if given is None:
        return made
    wanted = g.numbers(given, "the shape of a MaxUnpool")
    return g.pad(made, [0] * len(shape), [w - s for w, s in zip(wanted, shape, strict=True)])


@operator("Col2Im")
def col2im(g: Lowering, n: Node):
    x, image, block = n.input(0), *(g.numbers(n.input(i), "the sizes of a Col2Im") for i in (1, 2))
    rank = len(image)
    proto = Node(n.op, (), (), {**n.attributes, "auto_pad": "NOTSET"}, n.opset, {}, None)
    w = windows_of(proto, tuple(image), tuple(block))
    channels = x.shape[1] // math.prod(block)
    target = np.zeros((*block, *w.out), np.int64)
    inside = np.ones(target.shape, bool)
    for k in range(rank):
        at = (np.arange(block[k]) * w.dilations[k]).reshape(-1, *[1] * (2 * rank - k - 1)) \
            + (np.arange(w.out[k]) * w.strides[k] - w.before[k]).reshape(-1, *[1] * (rank - k - 1))
        inside &= (at >= 0) & (at < image[k])
        target = target + at * math.prod(image[k + 1:])
    lines, size = x.shape[0] * channels, math.prod(image)
    places = np.where(inside, target, -1).reshape(1, -1)
    places = np.where(places >= 0, places + np.arange(lines)[:, None] * size, -1)
    zeros = g.expand(g.scalar(0, x), (x.shape[0], channels, *image))
    return scattered(g, zeros, known(places.astype(np.int32)), x, lines, "sum")


__all__ = ["Windows", "convolved", "unfolded", "windows_of"]
