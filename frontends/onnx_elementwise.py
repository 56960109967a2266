"""ONNX operators that work element by element."""
from __future__ import annotations

import math
from functools import reduce

import numpy as np

from .checkpoint import CheckpointError
from .onnx_file import DTYPES
from .onnx_graph import Lowering, Node, operator
from .onnx_tensors import NARROW, Tensor, known

UNARY = {"Abs": "absolute", "Neg": "negate", "Sign": "sign", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sqrt": "sqrt", "Exp": "exp",
         "Log": "log", "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh",
         "Tanh": "tanh", "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Sigmoid": "sigmoid", "Erf": "erf", "Softplus": "softplus",
         "BitwiseNot": "bit_not"}
BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "And": "bit_and", "Or": "bit_or", "Xor": "bit_xor", "BitwiseAnd": "bit_and",
          "BitwiseOr": "bit_or", "BitwiseXor": "bit_xor"}
COMPARED = {"Equal": ("equal", False), "Less": ("less", False), "LessOrEqual": ("less_equal", False), "Greater": ("less", True),
            "GreaterOrEqual": ("less_equal", True)}
FOLDED = {"Max": "maximum", "Min": "minimum", "Sum": "add"}


@operator(*UNARY)
def unary(g: Lowering, n: Node):
    return g.each(UNARY[n.op], n.input(0))


@operator(*BINARY)
def binary(g: Lowering, n: Node):
    return g.each(BINARY[n.op], n.input(0), n.input(1))


@operator(*COMPARED)
def compared(g: Lowering, n: Node):
    kind, turned = COMPARED[n.op]
    a, b = (n.input(1), n.input(0)) if turned else (n.input(0), n.input(1))
    return g.each(kind, a, b, dtype="bool")


@operator(*FOLDED)
def folded(g: Lowering, n: Node) -> Tensor:
    return reduce(lambda a, b: g.each(FOLDED[n.op], a, b), [x for x in n.inputs if x])


def negated(g: Lowering, x: Tensor) -> Tensor:
    """Not, of truths."""
    return g.each("equal", x, known(np.array(False)), dtype="bool")


def scaled(g: Lowering, x: Tensor, by: float) -> Tensor:
    return g.each("scale", x, by=float(by))


@operator("Not")
def logical_not(g: Lowering, n: Node):
    return negated(g, n.input(0))


@operator("Identity")
def identity(g: Lowering, n: Node):
    return n.input(0)


@operator("Dropout")
def dropout(g: Lowering, n: Node):
    x, training = n.input(0), n.optional(2)
    ratio = n.optional(1)
    if training is not None and g.value_of(training, "training_mode").item() and (ratio is None or g.value_of(ratio, "ratio").item()):
        raise CheckpointError("Dropout in training draws random numbers, which is not supported")
    return [x, known(np.ones(x.shape, bool))]


@operator("Relu")
def relu(g: Lowering, n: Node):
    return g.each("maximum", n.input(0), g.scalar(0, n.input(0)))


@operator("Mean")
def mean(g: Lowering, n: Node):
    return scaled(g, reduce(lambda a, b: g.each("add", a, b), [x for x in n.inputs if x]), 1 / len(n.inputs))


@operator("Reciprocal")
def reciprocal(g: Lowering, n: Node):
    return g.each("div", g.scalar(1, n.input(0)), n.input(0))


@operator("Div")
def div(g: Lowering, n: Node):
    return divided(g, n.input(0), n.input(1))


def divided(g: Lowering, a: Tensor, b: Tensor) -> Tensor:
    return g.each("div" if a.floating else "int_div", a, b)


@operator("Mod")
def mod(g: Lowering, n: Node):
    a, b = n.input(0), n.input(1)
    if a.floating:
        return g.each("remainder" if n.attr("fmod", 0) else "float_modulo", a, b)
    return g.each("int_remainder" if n.attr("fmod", 0) else "modulo", a, b)


@operator("Pow")
def power(g: Lowering, n: Node):
    a, b = n.input(0), n.input(1)
    if a.floating:
        return g.each("power", a, g.cast(b, a.dtype))
    if b.floating:
        return g.cast(g.each("power", g.cast(a, "float32"), b), a.dtype)
    return g.each("int_power", a, g.cast(b, a.dtype))


@operator("BitShift")
def bit_shift(g: Lowering, n: Node):
    return g.each("shift_left" if n.attr("direction") == "LEFT" else "shift_right", n.input(0), n.input(1))


@operator("Where")
def where(g: Lowering, n: Node):
    return g.each("where", n.input(0), n.input(1), n.input(2), dtype=n.input(1).dtype)


@operator("Clip")
def clip(g: Lowering, n: Node):
    x = n.input(0)
    bounds = [n.optional(1), n.optional(2)]
    for i, name in enumerate(("min", "max")):
        if bounds[i] is None and n.attr(name) is not None:
            bounds[i] = g.scalar(n.attr(name), x)
    low, high = bounds
    x = x if low is None else g.each("maximum", x, low)
    return x if high is None else g.each("minimum", x, high)


@operator("IsNaN")
def is_nan(g: Lowering, n: Node):
    return g.each("is_nan", n.input(0), dtype="bool")


@operator("IsInf")
def is_inf(g: Lowering, n: Node):
    x = n.input(0)
    found = g.each("is_inf", x, dtype="bool")
    for name, a, b in (("detect_positive", x, g.scalar(0, x)), ("detect_negative", g.scalar(0, x), x)):
        if not n.attr(name, 1):
            found = g.each("bit_and", found, g.each("less", g.expand(a, x.shape), b, dtype="bool"))
    return found


@operator("Gelu")
def gelu(g: Lowering, n: Node):
    x = n.input(0)
    if n.attr("approximate", "none") == "tanh":
        return g.each("gelu_tanh", x)
    half = scaled(g, x, 0.5)
    return g.each("mul", half, g.each("add", g.each("erf", scaled(g, x, math.sqrt(0.5))), g.scalar(1, x)))


@operator("Elu")
def elu(g: Lowering, n: Node):
    return g.each("elu", n.input(0), alpha=float(n.attr("alpha", 1.0)))


@operator("Swish")
def swish(g: Lowering, n: Node):
    alpha = float(n.attr("alpha", 1.0))
    return g.each("silu", n.input(0)) if alpha == 1 else g.each("swish", n.input(0), alpha=alpha)


@operator("Cast", "CastLike")
def cast(g: Lowering, n: Node):
    if n.op == "CastLike":
        return converted(g, n.input(0), n.input(1).dtype)
    if n.attr("to") not in DTYPES:
        raise CheckpointError(f"casts to the element type {n.attr('to')} are not supported")
    return converted(g, n.input(0), DTYPES[n.attr("to")].name)


def converted(g: Lowering, x: Tensor, dtype: str) -> Tensor:
    """A cast as the standard has it: what a smaller float type cannot hold is rounded to it."""
    if x.floating and not x.known and dtype not in ("float32", "float64", x.dtype) and "float" in dtype:
        raise CheckpointError(f"numbers that the graph computes cannot be rounded to {dtype}; floats compute as float32")
    return g.cast(x, dtype)


@operator("BitCast")
def bit_cast(g: Lowering, n: Node):
    x, dtype = n.input(0), DTYPES[n.attr("to")].name
    if {x.dtype, dtype} == {"float32", "int32"}:
        return g.each("bits_to_float" if dtype == "float32" else "float_to_bits", x, dtype=dtype, to="f32" if dtype == "float32" else "i32")
    if (x.dtype, dtype) == ("bool", "uint8"):
        return g.cast(x, dtype)
    whole = not any(word in x.dtype + dtype for word in ("64", "float", "bool"))
    if whole and NARROW.get(x.dtype, 32) == NARROW.get(dtype, 32):
        return g.cast(x, dtype)
    raise CheckpointError(f"a BitCast from {x.dtype} to {dtype} is not supported")
