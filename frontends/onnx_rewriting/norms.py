"""RMSNormalization and LayerNormalization from means, roots and quotients."""
from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from .patterns import Any, As, Inverse, Pattern, Scalar, cast, op, product
from .rules import Found, Rule

COMPUTED = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)      # types whose means these operators take in float32

x, w, b, axes = Any("x"), Any("w"), Any("b"), Any("axes")


def over_root(of: Pattern, *factors: Pattern) -> Pattern:
    """The product of some factors / sqrt(mean(of²) + eps)."""
    square = op.Pow(of, 2.0) | op.Mul(of, of)
    mean = op.Add(op.ReduceMean(square, axes, keepdims=1), Scalar("eps"))
    return product(*factors, Inverse(op.Sqrt(mean))) | product(*factors, op.Pow(mean, -0.5))


centred = op.Sub(cast(x), op.ReduceMean(cast(x), axes, keepdims=1))
rms = over_root(cast(x), cast(x))
deviation = over_root(centred, centred)


def weighted(of: Pattern, norm: Pattern) -> Pattern:
    """The norm, in the type of x again, times a weight; or all three multiplied in some other order."""
    return op.Mul(w, As("norm", cast(norm))) | over_root(of, w, of)


weighted_rms, weighted_deviation = weighted(x, rms), weighted(op.Sub(x, op.ReduceMean(x, axes, keepdims=1)), deviation)


def _flat(found: Found, name: str) -> bool:
    """Whether a weight has an element for each of the last axis."""
    return found.shape(found[name]) == found.shape(found["x"])[-1:] != ()


def _make(kind: str):
    def make(found: Found) -> bool:
        of = found["x"]
        typed = found.view.types.get(of)
        normed = found.view.types.get(found.get("norm") or found.root)
        if typed not in COMPUTED or normed != typed or not found.is_last(found["axes"], of):
            return False
        if not all(_flat(found, n) for n in "wb" if n in found.match.values):
            return False
        if not found.get("w"):
            width = found.shape(of)[-1]
            if isinstance(width, str):
                return False
            ones = found.constant(np.ones(width, helper.tensor_dtype_to_np_dtype(typed)), "ones")
        found.node(kind, of, found.get("w") or ones, found.get("b"), out=found.root, epsilon=found.number("eps"), axis=-1)
        return True
    return make


RULES = (Rule(op.Add(weighted_deviation, b), _make("LayerNormalization")), Rule(weighted_deviation, _make("LayerNormalization")),
         Rule(deviation, _make("LayerNormalization")), Rule(weighted_rms, _make("RMSNormalization")), Rule(rms, _make("RMSNormalization")))
