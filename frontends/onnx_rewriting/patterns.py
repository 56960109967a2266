"""A small language of patterns over the graph of ONNX: what a value was made by, as a tree.

    x, w = Any("x"), Any("w")
    silu = Product(x, op.Sigmoid(x))                          # x * sigmoid(x), in whatever order
    norm = Product(w, x, Inverse(op.Sqrt(op.Add(op.ReduceMean(op.Pow(x, 2.0), Any("axes")), Scalar("eps")))))

A name that occurs twice stands for one value. Numbers are constants of one element with that value. `a | b` is either. A match is closed
if no value inside it is taken by others or is an output of the graph; only then may it be replaced.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations
from math import prod
from typing import Any as Anything

from onnx import NodeProto

from .view import View, attribute

COMMUTATIVE = ("Add", "Mul", "And", "Or", "Equal", "Max", "Min")


@dataclass(frozen=True)
class Match:
    """values: what the names stand for; numbers: named scalars; nodes: outputs[0] of every node inside."""

    values: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()

    def bind(self, name: str, value: str) -> Match | None:
        known = self.values.get(name)
        return self if known == value else None if known is not None else replace(self, values={**self.values, name: value})

    def number(self, name: str, value: float) -> Match:
        return replace(self, numbers={**self.numbers, name: value})

    def inside(self, node: NodeProto) -> Match:
        return replace(self, nodes=self.nodes | {node.output[0]})


class Pattern:
    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        """The ways in which this value is what the pattern says."""
        raise NotImplementedError

    def __or__(self, other: Pattern) -> Pattern:
        return Either((self, other))


@dataclass(frozen=True)
class Any(Pattern):
    """Any value, under a name."""

    name: str

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        if bound := found.bind(self.name, value):
            yield bound


@dataclass(frozen=True)
class Number(Pattern):
    """A constant of one element, equal to a number to the precision of its type."""

    number: float

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        got = view.scalar(value)
        if got is not None and close(got, self.number, view, value):
            yield found


@dataclass(frozen=True)
class Scalar(Pattern):
    """A constant of one element, under a name."""

    name: str

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        got = view.scalar(value)
        if got is not None and found.numbers.get(self.name, got) == got:
            yield found.number(self.name, got)


@dataclass(frozen=True)
class Either(Pattern):
    options: tuple[Pattern, ...]

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        for option in self.options:
            yield from option.match(view, value, found)


@dataclass(frozen=True)
class As(Pattern):
    """What the pattern says, under a name."""

    name: str
    pattern: Pattern

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        if bound := found.bind(self.name, value):
            yield from self.pattern.match(view, value, bound)


@dataclass(frozen=True)
class Node(Pattern):
    """The first output of a node with these operands (fewer than it may take only if the others are absent) and these attributes."""

    kind: str
    operands: tuple[Pattern, ...]
    attributes: tuple[tuple[str, Anything], ...] = ()

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        node = view.producer.get(value)
        if node is None or node.op_type != self.kind or node.domain or node.output[0] != value:
            return
        inputs = list(node.input)
        while inputs and not inputs[-1]:
            inputs.pop()
        if len(inputs) != len(self.operands) or any(attribute(node, name) != given for name, given in self.attributes):
            return
        for order in permutations(inputs) if self.kind in COMMUTATIVE else (inputs,):
            yield from _all(view, tuple(zip(self.operands, order)), found.inside(node))


@dataclass(frozen=True)
class Inverse(Pattern):
    """In a product: one divided by what the pattern says."""

    pattern: Pattern


@dataclass(frozen=True)
class Product(Pattern):
    """A product of these factors, however it is associated and written with Mul, Div and Reciprocal, times a constant: a given number,
    or one that gets a name."""

    factors: tuple[Pattern, ...]
    constant: float | str = 1.0

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        for leaves, nodes in _factors(view, value, False, 3 * len(self.factors) + 2):
            rest = [(v, inverted) for v, inverted in leaves if view.scalar(v) is None]
            if len(rest) != len(self.factors):
                continue
            scalars = [(number, v, inverted) for v, inverted in leaves if (number := view.scalar(v)) is not None]
            if any(inverted and not n for n, _, inverted in scalars):
                continue
            number = float(prod(n ** (-1 if inverted else 1) for n, _, inverted in scalars))
            tolerance = max((_precision(view, v) for _, v, _ in scalars), default=0.0)
            if isinstance(self.constant, float) and abs(number - self.constant) > tolerance * abs(self.constant):
                continue
            start = replace(found, nodes=found.nodes | nodes)
            if isinstance(self.constant, str):
                start = start.number(self.constant, number)
            yield from self._assign(view, rest, start)

    def _assign(self, view: View, leaves: list[tuple[str, bool]], found: Match) -> Iterator[Match]:
        for order in dict.fromkeys(permutations(leaves)):
            if all(isinstance(p, Inverse) == inverted for p, (_, inverted) in zip(self.factors, order)):
                yield from _all(view, tuple((p.pattern if isinstance(p, Inverse) else p, v) for p, (v, _) in zip(self.factors, order)), found)


def _all(view: View, pairs: tuple[tuple[Pattern, str], ...], found: Match) -> Iterator[Match]:
    if not pairs:
        yield found
        return
    (pattern, value), *rest = pairs
    for bound in pattern.match(view, value, found):
        yield from _all(view, tuple(rest), bound)


Factors = tuple[tuple[tuple[str, bool], ...], frozenset[str]]


def _factors(view: View, value: str, inverted: bool, most: int) -> Iterator[Factors]:
    """The ways to see a value as a product: its factors, each with whether it divides, and the nodes that multiply them.
    Those with the most factors come first."""
    node = view.producer.get(value)
    kind = node.op_type if node is not None and not node.domain else ""
    if node is not None and most > 1 and kind in ("Mul", "Div"):
        for left, left_nodes in _factors(view, node.input[0], inverted, most - 1):
            for right, right_nodes in _factors(view, node.input[1], inverted ^ (kind == "Div"), most - len(left)):
                yield left + right, left_nodes | right_nodes | {node.output[0]}
    elif node is not None and kind == "Reciprocal":
        for leaves, nodes in _factors(view, node.input[0], not inverted, most):
            yield leaves, nodes | {node.output[0]}
    yield ((value, inverted),), frozenset()


def _precision(view: View, value: str) -> float:
    """The relative error that rounding to the type of a constant may have made, twice over."""
    array = view.array(value)
    if array is None or array.dtype.kind in "iu":
        return 0.0
    return {2: 2**-7 if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else 2**-10}.get(array.dtype.itemsize, 1e-6)


def close(got: float, wanted: float, view: View, value: str) -> bool:
    return abs(got - wanted) <= _precision(view, value) * abs(wanted)


class _Op:
    """`op.Softmax(x, axis=-1)` is the Node that ONNX calls so; plain numbers among its operands are Numbers."""

    def __getattr__(self, kind: str) -> Callable[..., Node]:
        def make(*operands: Pattern | float, **attributes: Anything) -> Node:
            return Node(kind, tuple(p if isinstance(p, Pattern) else Number(p) for p in operands), tuple(attributes.items()))
        return make


op = _Op()


def product(*factors: Pattern, constant: float | str = 1.0) -> Product:
    return Product(factors, constant)


def cast(pattern: Pattern) -> Pattern:
    """The pattern, or a Cast of it."""
    return pattern | Node("Cast", (pattern,))


def is_closed(view: View, found: Match, root: str) -> bool:
    """Whether the values inside a match, but for its root, are taken by nodes inside alone."""
    inside = [view.producer[name] for name in found.nodes]
    taken: dict[str, int] = {}
    for node in inside:
        for name in node.input:
            taken[name] = taken.get(name, 0) + 1
    return all(name == root or (name not in view.kept and view.users[name] == taken.get(name, 0))
               for node in inside for name in node.output if name)
