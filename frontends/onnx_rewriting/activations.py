"""Swish, SwiGLU and Gelu."""
from __future__ import annotations

from math import pi, sqrt

from .patterns import Any, Pattern, op, product
from .rules import Found, Rule
from .view import OPSET

x, gate, up = Any("x"), Any("gate"), Any("up")

swish = product(x, op.Sigmoid(product(x, constant="alpha")))
SQRT, CUBIC = sqrt(2 / pi), 0.044715
inner = op.Add(x, product(op.Pow(x, 3.0), constant=CUBIC) | product(x, x, x, constant=CUBIC))
outer = op.Add(1.0, product(op.Pow(x, 2.0), constant=CUBIC) | product(x, x, constant=CUBIC))
bent = op.Tanh(product(inner, constant=SQRT) | product(x, outer, constant=SQRT))
gelu_tanh = product(x, op.Add(1.0, bent), constant=0.5)
gelu_erf = product(x, op.Add(1.0, op.Erf(product(x, constant=sqrt(0.5)))), constant=0.5)


def _swish(found: Found) -> bool:
    found.node("Swish", found["x"], out=found.root, alpha=found.number("alpha"))
    return True


def _gelu(approximate: str):
    def make(found: Found) -> bool:
        found.node("Gelu", found["x"], out=found.root, approximate=approximate)
        return True
    return make


def _swiglu(found: Found) -> bool:
    if not found.shape(found["gate"]) or found.shape(found["gate"]) != found.shape(found["up"]):
        return False
    found.node("SwiGLU", found["gate"], found["up"], out=found.root)
    return True


swiglu: Pattern = op.Mul(op.Swish(gate, alpha=1.0), up)
RULES = (Rule(gelu_tanh, _gelu("tanh")), Rule(gelu_erf, _gelu("none")), Rule(swish, _swish), *([Rule(swiglu, _swiglu)] if OPSET >= 28 else []))
