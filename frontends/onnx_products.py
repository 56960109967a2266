"""ONNX operators that multiply matrices, and what rounds numbers to small integers for them."""
from __future__ import annotations

import math

import numpy as np

from .checkpoint import CheckpointError
from .onnx_elementwise import scaled
from .onnx_graph import Lowering, Node, operator
from .onnx_tensors import NARROW, Tensor, is_float, known

RANGES = {name: ((0, 2**bits - 1) if name[0] == "u" else (-2**(bits - 1), 2**(bits - 1) - 1)) for name, bits in NARROW.items()}


def product(g: Lowering, a: Tensor, b: Tensor) -> Tensor:
    """As numpy's matmul. A matrix that is known is the weight of a projection."""
    flat_a, flat_b = len(a.shape) == 1, len(b.shape) == 1
    a = g.reshape(a, (1, *a.shape)) if flat_a else a
    b = g.reshape(b, (*b.shape, 1)) if flat_b else b
    if a.shape[-1] != b.shape[-2]:
        raise CheckpointError(f"{list(a.shape)} times {list(b.shape)} do not fit")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    if 0 in (*shape, a.shape[-1]):
        made = known(np.zeros(shape), a.dtype)
    elif b.array is not None and len(b.shape) == 2 and not a.known and a.floating:
        made = g.make("matmul", a, known(np.ascontiguousarray(b.array.T)))
    else:
        count = math.prod(batch)
        a, b = (g.reshape(g.expand(x, (*batch, *x.shape[-2:])), (count, *x.shape[-2:])) for x in (a, b))
        made = g.reshape(g.make("batch_matmul", a, b), shape)
    if flat_a or flat_b:
        shape = tuple(d for k, d in enumerate(shape) if not (flat_a and k == len(shape) - 2) and not (flat_b and k == len(shape) - 1))
        made = g.reshape(made, shape)
    return made


@operator("MatMul")
def matmul(g: Lowering, n: Node):
    return product(g, n.input(0), n.input(1))


@operator("Gemm")
def gemm(g: Lowering, n: Node):
    a, b, c = n.input(0), n.input(1), n.optional(2)
    a, b = (g.transpose(x, (1, 0)) if n.attr(name, 0) else x for x, name in ((a, "transA"), (b, "transB")))
    y = product(g, a, b)
    alpha, beta = n.attr("alpha", 1.0), n.attr("beta", 1.0)
    y = y if alpha == 1 else scaled(g, y, alpha)
    if c is None or not beta:
        return y
    return g.each("add", y, c if beta == 1 else scaled(g, c, beta))


@operator("Einsum")
def einsum(g: Lowering, n: Node):
    """Two operands at a time: letters of both and of what is left go into the batch, those that are summed into the depth."""
    text, operands = n.attr("equation").replace(" ", ""), [x for x in n.inputs if x is not None]
    given, _, result = text.partition("->")
    terms = given.split(",")
    rest = max((len(x.shape) - len(t.replace("...", "")) for t, x in zip(terms, operands, strict=True) if "..." in t), default=0)
    spare = "".join(chr(0x3b1 + k) for k in range(rest))
    pairs = []
    for term, x in zip(terms, operands, strict=True):
        width = len(x.shape) - len(term.replace("...", ""))
        pairs.append(_diagonal(g, term.replace("...", spare[rest - width:]), x))
    if "->" not in text:
        letters = "".join(t.replace("...", "") for t in terms)
        result = ("..." if "..." in given else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    result = result.replace("...", spare)
    while len(pairs) > 1:
        (ta, a), (tb, b), *others = pairs
        needed = set(result).union(*(t for t, _ in others))
        kept = "".join(dict.fromkeys(c for c in ta + tb if c in needed))
        pairs = [(kept, _contract(g, ta, a, tb, b, kept)), *others]
    term, x = pairs[0]
    gone = [k for k, c in enumerate(term) if c not in result]
    x = g.reduce(x, gone, "sum") if gone else x
    term = "".join(c for c in term if c in result)
    return g.transpose(x, [term.index(c) for c in result])


def _diagonal(g: Lowering, term: str, x: Tensor) -> tuple[str, Tensor]:
    """A letter that stands twice takes the diagonal."""
    letters = "".join(dict.fromkeys(term))
    if letters == term:
        return term, x
    below = [math.prod(x.shape[k + 1:]) for k in range(len(x.shape))]
    strides = [sum(s for c, s in zip(term, below, strict=True) if c == letter) for letter in letters]
    return letters, g.view(x, [x.shape[term.index(c)] for c in letters], strides)


def _contract(g: Lowering, ta: str, a: Tensor, tb: str, b: Tensor, kept: str) -> Tensor:
    sizes = dict(zip(tb, b.shape, strict=True)) | {c: max(d, dict(zip(tb, b.shape, strict=True)).get(c, 1)) for c, d in zip(ta, a.shape, strict=True)}
    both = [c for c in kept if c in ta and c in tb]
    summed = [c for c in ta if c in tb and c not in kept]
    only_a, only_b = ([c for c in kept if c in t and c not in u] for t, u in ((ta, tb), (tb, ta)))
    if lone := [k for k, c in enumerate(ta) if c not in kept and c not in tb]:
        a, ta = g.reduce(a, lone, "sum"), "".join(c for k, c in enumerate(ta) if k not in lone)
    if lone := [k for k, c in enumerate(tb) if c not in kept and c not in ta]:
        b, tb = g.reduce(b, lone, "sum"), "".join(c for k, c in enumerate(tb) if k not in lone)

    def arranged(x: Tensor, term: str, *groups: list[str]) -> Tensor:
        order = [c for group in groups for c in group]
        x = g.expand(g.transpose(x, [term.index(c) for c in order]), [sizes[c] for c in order])
        return g.reshape(x, [math.prod(sizes[c] for c in group) for group in groups])
    made = product(g, arranged(a, ta, both, only_a, summed), arranged(b, tb, both, summed, only_b))
    order = [*both, *only_a, *only_b]
    return g.transpose(g.reshape(made, [sizes[c] for c in order]), [order.index(c) for c in kept])


# Small integers.

def spread(g: Lowering, values: Tensor, x: Tensor, axis: int, block: int) -> Tensor:
    """A scale or zero point as it goes with the elements of x: one for all, one a place on an axis, or one a block of that axis."""
    if values.size == 1 and not block:
        return g.reshape(values, ())
    if not block:
        return g.reshape(values, [d if k == axis else 1 for k, d in enumerate(x.shape)])
    wide = [p for k, d in enumerate(values.shape) for p in ((d, block) if k == axis else (d,))]
    single = [p for k, d in enumerate(values.shape) for p in ((d, 1) if k == axis else (d,))]
    joined = [d * block if k == axis else d for k, d in enumerate(values.shape)]
    made = g.reshape(g.expand(g.reshape(values, single), wide), joined)
    return g.slice(made, axis, 0, x.shape[axis]) if joined[axis] != x.shape[axis] else made


def axis_and_block(n: Node, x: Tensor) -> tuple[int, int]:
    return int(n.attr("axis", 1)) % max(1, len(x.shape)), int(n.attr("block_size", 0))


@operator("DequantizeLinear")
def dequantize_linear(g: Lowering, n: Node):
    x, scale, zero = n.input(0), n.input(1), n.optional(2)
    axis, block = axis_and_block(n, x)
    y = restored(g, x, zero, axis, block)
    return g.each("mul", y, spread(g, scale, x, axis, block))


def restored(g: Lowering, x: Tensor, zero: Tensor | None, axis: int = 0, block: int = 0) -> Tensor:
    """Stored integers less their zero point, as floats."""
    if is_float(x.dtype):
        return g.cast(x, "float32")
    x = g.cast(x, "int32")
    return g.cast(x if zero is None else g.each("sub", x, spread(g, g.cast(zero, "int32"), x, axis, block)), "float32")


def rounded(g: Lowering, x: Tensor, scale: Tensor, zero: Tensor | None, dtype: str, axis: int = 0, block: int = 0) -> Tensor:
    """x / scale to the nearest integer, plus the zero point, within the range of the dtype."""
    if dtype not in RANGES:
        raise CheckpointError(f"rounding to {dtype} is not supported")
    y = g.each("round", g.each("div", x, spread(g, scale, x, axis, block)))
    if zero is not None:
        y = g.each("add", y, spread(g, g.cast(zero, "float32"), x, axis, block))
    low, high = RANGES[dtype]
    y = g.each("clamp", y, low=float(low), high=float(high))
    return g.cast(y, dtype)


@operator("QuantizeLinear")
def quantize_linear(g: Lowering, n: Node):
    from .onnx_file import DTYPES
    x, scale, zero = n.input(0), n.input(1), n.optional(2)
    asked = DTYPES[n.attr("output_dtype")].name if n.attr("output_dtype") else "uint8"
    axis, block = axis_and_block(n, x)
    return rounded(g, g.cast(x, "float32"), scale, zero, zero.dtype if zero is not None else asked, axis, block)


@operator("MatMulInteger")
def matmul_integer(g: Lowering, n: Node):
    a, b = (g.cast(n.input(i), "int32") for i in (0, 1))
    zero_a, zero_b = (n.optional(i) for i in (2, 3))
    if zero_a is not None:
        z = g.cast(zero_a, "int32")
        a = g.each("sub", a, g.reshape(z, (*z.shape, 1)) if len(z.shape) == 1 and z.size > 1 else z)
    if zero_b is not None:
        b = g.each("sub", b, g.cast(zero_b, "int32"))
    return product(g, a, b)


@operator("QLinearMatMul")
def qlinear_matmul(g: Lowering, n: Node):
    a, scale_a, zero_a, b, scale_b, zero_b, scale, zero = (n.input(i) for i in range(8))

    def lifted(x: Tensor, z: Tensor, row: bool) -> Tensor:
        z = g.cast(z, "int32")
        return g.each("sub", g.cast(x, "int32"), g.reshape(z, (*z.shape, 1)) if row and len(z.shape) == 1 and z.size > 1 else z)
    total = g.cast(product(g, lifted(a, zero_a, True), lifted(b, zero_b, False)), "float32")
    scale_a = g.reshape(scale_a, (*scale_a.shape, 1)) if len(scale_a.shape) == 1 and scale_a.size > 1 else scale_a
    factor = g.each("div", g.each("mul", g.cast(scale_a, "float32"), g.cast(scale_b, "float32")), g.cast(scale, "float32"))
    y = g.each("mul", total, factor)
    return rounded(g, y, known(np.float32(1)), zero, zero.dtype)


__all__ = ["product", "restored", "rounded", "spread"]
