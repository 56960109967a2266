"""Ops on activations that are rounded to 8-bit integers by blocks of 32, once for all projections that read them."""
from __future__ import annotations

import numpy as np

from .ir import Value
from .ops import OPS, define, need


def _quantize(x: Value, weight: Value | None = None) -> tuple[Value, Value]:
    need(weight is None or weight.shape == x.shape[-1:], f"the weight {weight} does not fit rows of {x}")
    need(x.shape[-1] % 32 == 0, f"rows of {x} do not divide into blocks of 32")
    return Value((*x.shape[:-1], x.shape[-1] // 4), "u32"), Value((*x.shape[:-1], x.shape[-1] // 32, 4), "f32")


def _quantize_reference(x, weight=None):
    """Of x times weight, four integers a word, lowest byte first; and for each block its scale, the scaled sums of the integers of its
    halves, and the sum of the squares of x, from which a projection has the RMS norm."""
    squares = (x * x).reshape(*x.shape[:-1], -1, 32).sum(-1, keepdims=True)
    x = x if weight is None else x * weight
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    scale = most / np.float32(127)
    integers = np.rint(blocks * np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0))
    sums = integers.reshape(*blocks.shape[:-1], 2, 16).sum(-1)
    return integers.astype(np.int8).reshape(x.shape).view(np.uint32), np.concatenate([scale, scale * sums, squares], -1)


def _restored(x, scales):
    """The numbers that rounded activations stand for."""
    blocks = np.ascontiguousarray(x).view(np.int8).astype(np.float32).reshape(*scales.shape[:-1], 32)
    return (blocks * scales[..., :1]).reshape(*x.shape[:-1], -1)


def _on_integers(kind: str) -> None:
    """The projection `kind` of rounded activations: operands x (integers) and scales where the plain one has x. With `eps`, the result is
    divided by the root mean square of what was rounded, plus eps."""
    plain = OPS[kind]

    def rule(x: Value, scales: Value, *rest: Value, dtype: str = "f32", eps: float = 0.0, **attrs) -> Value:
        need(scales.shape == (*x.shape[:-1], x.shape[-1] // 8, 4), f"scales {scales} do not fit x {x}")
        made = plain.infer(Value((*x.shape[:-1], 4 * x.shape[-1])), *rest, **attrs)
        assert isinstance(made, Value)
        return Value(made.shape, dtype)

    def reference(x, scales, *rest, dtype="f32", eps=0.0, **attrs):
        result = plain.reference(_restored(x, scales), *rest, **attrs)
        if not eps:
            return result
        root = np.sqrt(scales[..., 3].sum(-1) / np.float32(4 * x.shape[-1]) + np.float32(eps))
        return result / root.reshape(*root.shape, *[1] * (result.ndim - root.ndim))
    define(f"{kind}_q8", " ".join(("x", "scales", *plain.operands[1:])), rule, reference, anchor=True)


define("quantize", "x weight?", _quantize, _quantize_reference)
for _kind in ("matmul", "expert_matmul", "expert_sum"):
    _on_integers(_kind)
