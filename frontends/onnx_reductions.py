"""ONNX operators that reduce axes, and the norms that are made of them."""
from __future__ import annotations

import math

import numpy as np

from .checkpoint import CheckpointError
from .onnx_elementwise import scaled
from .onnx_graph import OPERATORS, Lowering, Node, operator
from .onnx_rearranging import axes_of, axis_of
from .onnx_tensors import Tensor, known


def reduced_axes(g: Lowering, n: Node, x: Tensor) -> list[int]:
    axes = axes_of(g, n, 1, len(x.shape))
    if axes:
        return axes
    return [] if n.attr("noop_with_empty_axes", 0) else list(range(len(x.shape)))


def _square(g: Lowering, x: Tensor) -> Tensor:
    return g.each("mul", x, x)


def averaged(g: Lowering, x: Tensor, axes: list[int], keep: bool = True) -> Tensor:
    count = math.prod(x.shape[a] for a in axes)
    total = g.reduce(x, axes, "sum", keep)
    return scaled(g, total, 1 / count if count else math.nan) if x.floating else g.each("int_div", total, known(np.array(count), x.dtype))


# what is done before, the reduction, and what is done after
REDUCTIONS = {
    "ReduceSum": (None, "sum", None), "ReduceProd": (None, "product", None), "ReduceMax": (None, "maximum", None),
    "ReduceMin": (None, "minimum", None),
    "ReduceL1": ("absolute", "sum", None), "ReduceL2": ("square", "sum", "sqrt"), "ReduceSumSquare": ("square", "sum", None),
    "ReduceLogSum": (None, "sum", "log")}


@operator(*REDUCTIONS)
def reduction(g: Lowering, n: Node):
    before, how, after = REDUCTIONS[n.op]
    x = n.input(0)
    axes = reduced_axes(g, n, x)
    if before:
        x = _square(g, x) if before == "square" else g.each(before, x)
    x = g.reduce(x, axes, how, bool(n.attr("keepdims", 1)))
    if not after:
        return x
    return g.cast(g.each(after, g.cast(x, "float32")), x.dtype)


@operator("ReduceMean")
def reduce_mean(g: Lowering, n: Node):
    x = n.input(0)
    return averaged(g, x, reduced_axes(g, n, x), bool(n.attr("keepdims", 1)))


@operator("ReduceLogSumExp")
def reduce_log_sum_exp(g: Lowering, n: Node):
    x = n.input(0)
    axes = reduced_axes(g, n, x)
    if not x.size:
        return g.reduce(x, axes, "maximum", bool(n.attr("keepdims", 1)))
    x = g.cast(x, "float32")
    top = g.reduce(x, axes, "maximum", True)
    total = g.reduce(g.each("exp", g.each("sub", x, top)), axes, "sum", True)
    found = g.each("add", g.each("log", total), top)
    return g.cast(found if n.attr("keepdims", 1) else g.reshape(found, [d for k, d in enumerate(x.shape) if k not in axes]), n.input(0).dtype)


@operator("ArgMax", "ArgMin")
def arg_extreme(g: Lowering, n: Node):
    how = n.op.lower() + ("_last" if n.attr("select_last_index", 0) else "")
    return g.reduce(n.input(0), [axis_of(n, len(n.input(0).shape))], how, bool(n.attr("keepdims", 1)))


# Softmax and its like; before opset 13 all axes from `axis` on count as one.

def softmax_axes(n: Node, rank: int) -> list[int]:
    if n.opset < 13:
        return list(range(axis_of(n, rank, 1), rank))
    return [axis_of(n, rank, -1)]


def softmax(g: Lowering, x: Tensor, axes: list[int]) -> Tensor:
    if not x.size:
        return x
    raised = g.each("exp", g.each("sub", x, g.reduce(x, axes, "maximum", True)))
    return g.each("div", raised, g.reduce(raised, axes, "sum", True))


@operator("Softmax")
def softmax_operator(g: Lowering, n: Node):
    return softmax(g, n.input(0), softmax_axes(n, len(n.input(0).shape)))


@operator("LogSoftmax")
def log_softmax(g: Lowering, n: Node):
    x = n.input(0)
    axes = softmax_axes(n, len(x.shape))
    moved = g.each("sub", x, g.reduce(x, axes, "maximum", True))
    return g.each("sub", moved, g.each("log", g.reduce(g.each("exp", moved), axes, "sum", True)))


@operator("Hardmax")
def hardmax(g: Lowering, n: Node):
    x = n.input(0)
    axes = softmax_axes(n, len(x.shape))
    flat = g.reshape(x, (*x.shape[:axes[0]], math.prod(x.shape[a] for a in axes), *x.shape[axes[-1] + 1:]))
    best = g.reduce(flat, [axes[0]], "argmax", True)
    hit = g.each("equal", g.iota(flat.shape, axes[0]), g.cast(g.expand(best, flat.shape), "int32"), dtype="bool")
    return g.reshape(g.cast(hit, x.dtype), x.shape)


# Norms.

def standardized(g: Lowering, x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x less its mean, over its standard deviation; the mean; and the reciprocal of the deviation."""
    mean = averaged(g, x, axes)
    centred = g.each("sub", x, mean)
    inverse = g.each("div", g.scalar(1, x), g.each("sqrt", g.each("add", averaged(g, _square(g, centred), axes), g.scalar(eps, x))))
    return g.each("mul", centred, inverse), mean, inverse


@operator("LayerNormalization")
def layer_normalization(g: Lowering, n: Node):
    x, axis = n.input(0), axis_of(n, len(n.input(0).shape), -1)
    y, mean, inverse = standardized(g, x, list(range(axis, len(x.shape))), n.attr("epsilon", 1e-5))
    y, bias = g.each("mul", y, n.input(1)), n.optional(2)
    return [y if bias is None else g.each("add", y, bias), mean, inverse]


@operator("RMSNormalization")
def rms_normalization(g: Lowering, n: Node):
    x, weight, axis = n.input(0), n.input(1), axis_of(n, len(n.input(0).shape), -1)
    eps, axes = float(n.attr("epsilon", 1e-5)), list(range(axis, len(x.shape)))
    if axis == len(x.shape) - 1 and weight.shape == x.shape[-1:]:
        return g.make("rms_norm", x, weight, eps=eps)
    mean = averaged(g, _square(g, x), axes)
    return g.each("mul", g.each("div", x, g.each("sqrt", g.each("add", mean, g.scalar(eps, x)))), weight)


@operator("InstanceNormalization")
def instance_normalization(g: Lowering, n: Node):
    x = n.input(0)
    y, _, _ = standardized(g, x, list(range(2, len(x.shape))), n.attr("epsilon", 1e-5))
    return g.each("add", g.each("mul", y, per_channel(g, n.input(1), x)), per_channel(g, n.input(2), x))


@operator("GroupNormalization")
def group_normalization(g: Lowering, n: Node):
    x, groups = n.input(0), n.attr("num_groups")
    if n.opset < 21:
        raise CheckpointError("GroupNormalization before opset 21 has one scale a group; convert the model to opset 21 or above")
    y, _, _ = standardized(g, g.reshape(x, (x.shape[0], groups, x.size // x.shape[0] // groups)), [2], n.attr("epsilon", 1e-5))
    return g.each("add", g.each("mul", g.reshape(y, x.shape), per_channel(g, n.input(1), x)), per_channel(g, n.input(2), x))


def per_channel(g: Lowering, values: Tensor, x: Tensor) -> Tensor:
    """One number a channel, in a shape that broadcasts to x."""
    return g.reshape(values, [d if k == 1 else 1 for k, d in enumerate(x.shape)]) if values.size > 1 else g.reshape(values, ())


@operator("BatchNormalization")
def batch_normalization(g: Lowering, n: Node):
    x, scale, bias, mean, var = (n.input(i) for i in range(5))
    outputs = []
    if n.attr("training_mode", 0):
        axes, momentum = [k for k in range(len(x.shape)) if k != 1], n.attr("momentum", 0.9)
        now = averaged(g, x, axes, keep=False)
        spread = averaged(g, _square(g, g.each("sub", x, per_channel(g, now, x))), axes, keep=False)
        outputs = [g.each("add", scaled(g, old, momentum), scaled(g, new, 1 - momentum)) for old, new in ((mean, now), (var, spread))]
        mean, var = now, spread
    factor = g.each("div", scale, g.each("sqrt", g.each("add", var, g.scalar(n.attr("epsilon", 1e-5), var))))
    y = g.each("mul", g.each("sub", x, per_channel(g, mean, x)), per_channel(g, factor, x))
    return [g.each("add", y, per_channel(g, bias, x)), *outputs]


@operator("LpNormalization")
def lp_normalization(g: Lowering, n: Node):
    x = n.input(0)
    axis = axis_of(n, len(x.shape), -1)
    if n.attr("p", 2) == 1:
        size = g.reduce(g.each("absolute", x), [axis], "sum", True)
    else:
        size = g.each("sqrt", g.reduce(_square(g, x), [axis], "sum", True))
    none = g.each("equal", size, g.scalar(0, size), dtype="bool")
    return g.each("where", g.expand(none, x.shape), g.scalar(0, x), g.each("div", x, size), dtype=x.dtype)


@operator("LRN")
def local_response(g: Lowering, n: Node):
    x, size = n.input(0), n.attr("size")
    squares = g.pad(_square(g, x), [0, (size - 1) // 2] + [0] * (len(x.shape) - 2), [0, size // 2] + [0] * (len(x.shape) - 2))
    below = math.prod(x.shape[2:])
    windows = g.view(squares, (x.shape[0], x.shape[1], size, below), (squares.shape[1] * below, below, below, 1))
    total = g.reshape(g.reduce(windows, [2], "sum"), x.shape)
    base = g.each("add", scaled(g, total, n.attr("alpha", 1e-4) / size), g.scalar(n.attr("bias", 1.0), x))
    return g.each("div", x, g.each("power", base, g.scalar(n.attr("beta", 0.75), x)))


OPERATORS["GlobalAveragePool"] = lambda g, n: averaged(g, n.input(0), list(range(2, len(n.input(0).shape))))
OPERATORS["GlobalMaxPool"] = lambda g, n: g.reduce(n.input(0), range(2, len(n.input(0).shape)), "maximum", True)

__all__ = ["averaged", "per_channel", "softmax", "standardized"]
