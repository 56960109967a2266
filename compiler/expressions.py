"""Element-wise ops as WGSL expressions: an op's operands at one element of its result, and what it makes of them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ir import Op, Value
from .ops import OPS


def literal(number) -> str:
    """A number as WGSL."""
    if isinstance(number, bool):
        return str(number).lower()
    return f"{number:.9g}" + ("" if "." in f"{number:.9g}" or "e" in f"{number:.9g}" else ".0") if isinstance(number, float) else str(number)


def operands_read(op: Op) -> list[str]:
    """The operands that an element-wise op's expression names, in order."""
    wgsl = OPS[op.kind].wgsl
    assert wgsl is not None
    return [name for i, name in enumerate(op.inputs) if f"{{{i}}}" in wgsl]


def chooses(op: Op, name: str) -> bool:
    """Whether the op reads rows of this operand that another one chooses, and not the operand as it is."""
    return OPS[op.kind].chosen and name == op.inputs[1]


def chosen_rows(op: Op, values: Mapping[str, Value], operands: Mapping[str, Any], row: str, col: str) -> str:
    """What ops.chosen_rows means at (row, col): a sum of terms where the result has one row for all choices of a token. operands: by name,
    as codegen's Operand."""
    bias, expert, *score = op.inputs[1:]
    choices = values[expert].shape[-1]
    last, columns = values[bias].shape
    summed = len(values[op.outputs[0]].shape) == len(values[expert].shape)
    terms = []
    for slot in [f"({row}) * {choices}u + {k}u" for k in range(choices)] if summed else [row]:
        term = operands[bias].load(f"min(u32({operands[expert].load(slot)}), {last - 1}u) * {columns}u + {col}")
        terms.append(" * ".join([term, *(operands[s].load(slot) for s in score)]))
    return f"({' + '.join(terms)})"


def element(op: Op, args: list[str]) -> str:
    """An element-wise op as an expression."""
    wgsl = OPS[op.kind].wgsl
    assert wgsl is not None
    return wgsl.format(*args, **{k: literal(float(v) if isinstance(v, int) else v) for k, v in op.attrs})


def broadcast_index(shape: tuple[int, ...], operand: tuple[int, ...], row: str, col: str) -> str:
    """Where an operand that broadcasts to `shape` keeps the element that `shape` has at (row, col)."""
    if not shape:
        return "0u"
    operand = (1,) * (len(shape) - len(operand)) + operand
    lead, terms, stride = operand[:-1], [], 1
    if operand[-1] != 1:
        terms, stride = [col], operand[-1]
    if lead == shape[:-1]:
        terms += [f"({row}) * {stride}u"] if max(lead, default=1) > 1 else []
    else:
        below = 1
        for d, o in zip(reversed(shape[:-1]), reversed(lead), strict=True):
            if o != 1:
                terms.append(f"(({row}) / {below}u % {d}u) * {stride}u")
                stride *= o
            below *= d
    return " + ".join(terms) or "0u"
