"""WGSL for values that are computed where they are read: element-wise ops and rearrangements become expressions over an index.

A kernel asks for element i of a value. Values that the dispatch binds are loaded; those that the body makes are computed, and a
rearrangement (`view`, `pad`, `concat`, ...) only changes the index. So a transposed, sliced and padded operand costs no memory.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .codegen import SCALAR, Operand
from .expressions import element, literal
from .ir import Op, Value
from .kernel import Site
from .ops import OPS
from .tensor_ops import INDEXED

Shape = tuple[int, ...]


def computable(site: Site) -> bool:
    """Whether all of the op but its anchor can be computed where it is read, and what follows the anchor goes over its elements.

    An element-wise op must be as large as the result or the anchor's operands: a small one that is spread would be computed again and
    again."""
    anchor = site.anchor if OPS[site.anchor.kind].anchor else None
    sizes = {site.values[n].size for n in ((*anchor.inputs, *anchor.outputs) if anchor else site.op.parts[-1].outputs)}
    made: set[str] = set()      # of the anchor
    for part in site.op.parts:
        if part is anchor:
            made.update(part.outputs)
        elif OPS[part.kind].elementwise:
            if OPS[part.kind].chosen:
                return False
            stored = part.kind == "store"
            if stored and (part is not site.op.parts[-1] or part.attr("count", 0)):
                return False
            size = site.values[part.inputs[1] if stored else part.outputs[0]].size
            if made & set(part.inputs):
                if size != site.values[anchor.outputs[0]].size if anchor else False:
                    return False
                made.update(part.outputs)
            elif size not in sizes and not stored:
                return False
        elif part.kind not in INDEXED or made & set(part.inputs):
            return False
    return len(site.op.outputs) == 1 and all(site.values[n].layout == "row" for n in site.bound)


def result_of(site: Site) -> str:
    """The name of what the dispatch stores: its output, or what is stored in a state."""
    last = site.op.parts[-1]
    return last.inputs[1] if last.kind == "store" else last.outputs[0]


class Elements:
    """Expressions for elements of the values of one op. known: values that have an expression at the index where they are asked for."""

    def __init__(self, site: Site, at: Callable[[str], Operand], known: Mapping[str, str] | None = None, prefix: str = "v"):
        self.values, self._operand, self.known, self._prefix = site.values, at, dict(known or {}), prefix
        self._maker = {n: p for p in site.op.parts for n in p.outputs}
        self._lines: list[str] = []
        self._named: dict[str, str] = {}

    def statements(self) -> str:
        """What the expressions given so far need to stand before them; called again, what came since."""
        lines, self._lines = self._lines, []
        return " ".join(lines)

    def load(self, name: str, index: str) -> str:
        """Element `index` (an expression, u32) of a value."""
        if name in self.known:
            return self.known[name]
        op = self._maker.get(name)
        if op is None:
            return self._let(self._operand(name).load(index))
        if op.kind in INDEXED:
            return self._let(getattr(self, f"_{op.kind}")(op, self.values[op.outputs[0]], self._let(index)))
        shape = self.values[op.outputs[0]].shape
        return self._let(element(op, [self.load(n, broadcast(self._let(index), shape, self.values[n].shape)) for n in op.inputs]))

    def _let(self, expression: str) -> str:
        """A name for an expression, the same for the same one."""
        if expression.isidentifier() or expression.rstrip("u").isdigit():
            return expression
        if expression not in self._named:
            self._named[expression] = f"{self._prefix}{len(self._named)}"
            self._lines.append(f"let {self._named[expression]} = {expression};")
        return self._named[expression]

    def _fill(self, op: Op, value: Value, index: str) -> str:
        return constant(op.attr("value"), value.dtype)

    def _iota(self, op: Op, value: Value, index: str) -> str:
        return f"{op.attr('start', 0)} + {op.attr('step', 1)} * i32({coordinates(index, value.shape)[op.attr('axis')]})"

    def _view(self, op: Op, value: Value, index: str) -> str:
        return self.load(op.inputs[0], strided(index, value.shape, op.attr("strides"), int(op.attr("offset", 0))))

    def _pad(self, op: Op, value: Value, index: str) -> str:
        x, inside, terms = self.values[op.inputs[0]], [], []
        for c, size, stride, before, step, whole in zip(coordinates(index, value.shape), x.shape, row_major(x.shape), op.attr("before"),
                                                        op.attr("step"), value.shape, strict=True):
            if (before, step, size) == (0, 1, whole):
                terms.append(f"{c} * {stride}u")
                continue
            at = self._let(f"{c} - {before}u")      # wraps to a large number in front
            inside += [f"{at} < {(size - 1) * step + 1}u"] + ([f"{at} % {step}u == 0u"] if step > 1 else [])
            terms.append(f"min({at} / {step}u, {size - 1}u) * {stride}u")
        found = self.load(op.inputs[0], " + ".join(terms) or "0u")
        return f"select({constant(op.attr('value'), value.dtype)}, {found}, {' && '.join(inside)})" if inside else found

    def _concat(self, op: Op, value: Value, index: str) -> str:
        axis = int(op.attr("axis"))
        first, second = (math.prod(self.values[n].shape[axis:]) for n in op.inputs)
        wide, within = self._let(f"{index} / {first + second}u"), self._let(f"{index} % {first + second}u")
        a = self.load(op.inputs[0], f"{wide} * {first}u + min({within}, {first - 1}u)")
        b = self.load(op.inputs[1], f"{wide} * {second}u + max({within}, {first}u) - {first}u")
        return f"select({b}, {a}, {within} < {first}u)"

    def _take(self, op: Op, value: Value, index: str) -> str:
        count, inner = int(op.attr("count")), int(op.attr("inner"))
        indices = self.values[op.inputs[1]].size
        line = self._let(f"{index} / {inner}u")
        at = self._wrapped(self.load(op.inputs[1], f"{line} % {indices}u"), count)
        return self.load(op.inputs[0], f"({line} / {indices}u * {count}u + {at}) * {inner}u + {index} % {inner}u")

    def _take_along(self, op: Op, value: Value, index: str) -> str:
        x, axis = self.values[op.inputs[0]], int(op.attr("axis"))
        at = coordinates(index, value.shape)
        at[axis] = self._wrapped(self.load(op.inputs[1], index), x.shape[axis])
        return self.load(op.inputs[0], " + ".join(f"{c} * {s}u" for c, s in zip(at, row_major(x.shape), strict=True)))

    def _wrapped(self, at: str, count: int) -> str:
        return self._let(f"u32(clamp(select({at}, {at} + {count}, {at} < 0), 0, {count - 1}))")


def constant(value: float, dtype: str) -> str:
    """A number of a dtype as WGSL, which has no literals of what is infinite or no number."""
    if SCALAR[dtype] != "f32":
        return "(-2147483647 - 1)" if value == -2**31 else f"{int(value)}{'u' if dtype == 'u32' else ''}"
    if math.isnan(value):
        return "nan()"
    if math.isinf(value):
        return "infinity()" if value > 0 else "(-infinity())"
    return literal(float(value))


def row_major(shape: Shape) -> Shape:
    """Strides of a whole array, the last axis fastest."""
    return tuple(math.prod(shape[k + 1:]) for k in range(len(shape)))


def coordinates(index: str, shape: Shape) -> list[str]:
    """Where the element `index` of an array of this shape is on each axis."""
    found = []
    for k, (size, below) in enumerate(zip(shape, row_major(shape), strict=True)):
        outermost = math.prod(shape[:k]) == 1
        text = f"{index} / {below}u" if below > 1 else index
        found.append("0u" if size == 1 else f"({text})" if outermost else f"({text} % {size}u)")
    return found


def strided(index: str, shape: Shape, strides: Shape, offset: int = 0) -> str:
    """Where element `index` of a view of this shape is, by the strides of what it views."""
    dims: list[tuple[int, int]] = []        # neighbours that are one run become one
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if dims and dims[-1][1] == size * stride:
            dims[-1] = dims[-1][0] * size, stride
        else:
            dims.append((size, stride))
    merged = tuple(d for d, _ in dims)
    text = f"{offset}u" if offset or not dims else ""
    for c, (_, stride) in sorted(zip(coordinates(index, merged), dims, strict=True), key=lambda pair: -pair[1][1]):
        if stride:
            term = c if abs(stride) == 1 else f"{c} * {abs(stride)}u"
            text += f" {'-' if stride < 0 else '+'} {term}" if text else term
    return text or "0u"


def broadcast(index: str, shape: Shape, operand: Shape) -> str:
    """Where an operand that broadcasts to `shape` keeps the element that `shape` has at `index`."""
    padded = (1,) * (len(shape) - len(operand)) + operand
    strides = tuple(0 if o == 1 and d != 1 else s for o, s, d in zip(padded, row_major(padded), shape, strict=True))
    return strided(index, shape, strides)
