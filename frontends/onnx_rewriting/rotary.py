"""RotaryEmbedding: rotations of the halves of heads, or of neighbours, by angles that come as cosines and sines.

before: %a = Mul(%x, %cos)   %r = Concat(Neg(%x[d/2:]), %x[:d/2])   %b = Mul(%r, %sin)   %y = Add(%a, %b)
after:  %y = RotaryEmbedding(%x, %c, %s)        # c and s [batch, positions, d / 2]

Of angles that are given for all of a head, both halves (or neighbours) must be proved equal. (Su et al., RoFormer, arXiv:2104.09864)
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from .patterns import Any, As, Match, Pattern, cast, op
from .rules import Found, Rule
from .view import Shape, View, attribute

PARTS = {"low": lambda d: slice(0, d // 2), "high": lambda d: slice(d // 2, d), "even": lambda d: slice(0, d, 2), "odd": lambda d: slice(1, d, 2)}
UNARY = ("Cos", "Sin", "Cast", "Neg", "Identity")


@dataclass(frozen=True)
class Part(Pattern):
    """Half of the last axis of what the pattern says: low, high, even or odd."""

    pattern: Pattern
    which: str

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        node = view.producer.get(value)
        if node is None:
            return
        for source, taken, nodes in (_sliced(view, node, value), _paired(view, node)):
            width = (view.shape(source) or ("",))[-1]
            if isinstance(width, int) and width % 2 == 0 and np.array_equal(np.arange(width)[PARTS[self.which](width)], taken):
                inside = found
                for n in nodes:
                    inside = inside.inside(n)
                yield from self.pattern.match(view, source, inside)


Taken = tuple[str, np.ndarray, tuple[NodeProto, ...]]
NOTHING: Taken = ("", np.zeros(0), ())


def _sliced(view: View, node: NodeProto, value: str) -> Taken:
    """The source of a Slice or Split of the last axis, and the indices taken."""
    x = node.input[0] if node.input else ""
    shape = view.shape(x)
    if not shape or not isinstance(shape[-1], int) or node.op_type not in ("Slice", "Split"):
        return NOTHING
    last, index = len(shape) - 1, np.arange(shape[-1])
    if node.op_type == "Split":
        sizes = [(view.shape(o) or ("",))[-1] for o in node.output]
        if attribute(node, "axis") % len(shape) != last or not all(isinstance(s, int) for s in sizes):
            return NOTHING
        which = list(node.output).index(value)
        return x, np.split(index, np.cumsum(np.array(sizes, int))[:-1])[which], (node,)
    given = [view.array(n) if n in view.tensors else None for n in node.input[1:]]
    if any(g is None or g.size != 1 for g in given) or len(given) < 3:
        return NOTHING
    start, stop, axis, *step = (int(g.ravel()[0]) for g in given if g is not None)
    return (x, index[start:stop:(step or [1])[0]], (node,)) if axis % len(shape) == last else NOTHING


def _paired(view: View, node: NodeProto) -> Taken:
    """The source of one of each pair: element 0 or 1 of the last axis of a Reshape to [..., d / 2, 2]."""
    nodes, which = [node], None
    if node.op_type in ("Squeeze", "Reshape"):
        cut = view.producer.get(node.input[0])
        source, taken, found = _sliced(view, cut, node.input[0]) if cut is not None else NOTHING
        if len(taken) == 1 and (view.shape(node.output[0]) == (view.shape(source) or ())[:-1]):
            nodes, which = [node, *found], int(taken[0])
    elif node.op_type == "Gather" and (index := view.scalar(node.input[1])) is not None:
        source, rank = node.input[0], len(view.shape(node.input[0]) or ())
        if rank and attribute(node, "axis") % rank == rank - 1 and view.shape(node.output[0]) == (view.shape(source) or ())[:-1]:
            which = int(index)
    pairs = view.producer.get(source) if which is not None else None
    if pairs is None or pairs.op_type != "Reshape" or which is None:
        return NOTHING
    x = pairs.input[0]
    before, after = view.shape(x), view.shape(pairs.output[0])
    if not before or not after or after[-1] != 2 or before[:-1] != after[:-2] or not isinstance(before[-1], int) or after[-2] != before[-1] // 2:
        return NOTHING
    return x, np.arange(before[-1])[which % 2::2], (pairs, *nodes)


x, cos, sin = Any("x"), Any("cos"), Any("sin")


def rotated(a: Pattern, b: Pattern) -> tuple[Pattern, Pattern]:
    """(a cos - b sin, a sin + b cos)"""
    return op.Sub(op.Mul(a, cos), op.Mul(b, sin)), op.Add(op.Mul(a, sin), op.Mul(b, cos))


@dataclass(frozen=True)
class Stacked(Pattern):
    """Two values as neighbours in the last axis: Reshape(Concat(Unsqueeze(a), Unsqueeze(b))), the last axis [d / 2, 2] becoming d."""

    a: Pattern
    b: Pattern

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        for m in op.Reshape(As("pairs", op.Concat(_one_more(self.a), _one_more(self.b))), Any("shape")).match(view, value, found):
            pairs, flat = view.shape(m.values["pairs"]), view.shape(value)
            single = view.shape(view.producer[m.values["pairs"]].input[0]) or (0,)
            if pairs and flat and isinstance(pairs[-2], int) and (single[-1], pairs[-1]) == (1, 2) and flat == (*pairs[:-2], 2 * pairs[-2]):
                rest = {k: v for k, v in m.values.items() if k not in ("pairs", "shape", "last", "last shape")}
                yield Match(rest, m.numbers, m.nodes)


def _one_more(pattern: Pattern) -> Pattern:
    return op.Unsqueeze(pattern, Any("last")) | op.Reshape(pattern, Any("last shape"))


def joined(a: Pattern, b: Pattern) -> Pattern:
    return op.Concat(a, b, axis=-1) | op.Concat(a, b, axis=3)


low, high, even, odd = (Part(cast(x), which) for which in PARTS)
# all angles of a head: x cos + rotate(x) sin
half_turn, pair_turn = joined(op.Neg(high), low), Stacked(op.Neg(odd), even)
whole_halves, whole_pairs = (op.Add(op.Mul(cast(x), cos), op.Mul(turn, sin)) for turn in (half_turn, pair_turn))
# an angle a pair
half_halves, half_pairs = joined(*rotated(low, high)), Stacked(*rotated(even, odd))


def _laid_out(cos: Shape, x: Shape) -> int | None:
    """The axis of positions of x [4 axes] by the angles: 2, 1, or none."""
    spread: Shape = (*([1] * (4 - len(cos))), *cos)
    if len(x) != 4 or len(cos) > 4 or spread[0] not in (1, x[0]):
        return None
    return next((axis for axis, other in ((2, 1), (1, 2)) if spread[other] == 1 and spread[axis] == x[axis]), None)


def repeats(view: View, value: str, neighbours: bool) -> bool:
    """Whether the halves of the last axis of a value (or its neighbours) are equal, element by element."""
    if value in view.tensors:
        array = view.array(value)
        if array is None or array.ndim == 0 or array.shape[-1] % 2:
            return False
        first, second = (array[..., ::2], array[..., 1::2]) if neighbours else np.split(array, 2, -1)
        return np.array_equal(first, second)
    node = view.producer.get(value)
    if node is None or node.domain:
        return False
    if node.op_type in UNARY:
        return repeats(view, node.input[0], neighbours)
    if node.op_type in ("Mul", "Div") and view.scalar(node.input[1]) is not None:
        return repeats(view, node.input[0], neighbours)
    shape = view.shape(value) or ()
    if node.op_type == "Unsqueeze" and (axes := view.array(node.input[1])) is not None:
        return all(int(a) % len(shape) != len(shape) - 1 for a in axes.ravel()) and repeats(view, node.input[0], neighbours)
    return node.op_type == "Concat" and not neighbours and len(node.input) == 2 and node.input[0] == node.input[1] \
        and attribute(node, "axis") % len(shape) == len(shape) - 1


def _angles(found: Found, name: str, axis: int, whole: bool, interleaved: bool, like: Shape) -> str | None:
    """cos or sin as [batch, positions, d / 2]; None if it cannot be had."""
    view, value = found.view, found[name]
    if whole and not repeats(view, value, interleaved):
        return None
    width = view.shapes[value][-1]
    if not isinstance(width, int):
        return None
    part = slice(0, None, 2) if interleaved and whole else slice(0, width // 2 if whole else width)
    if value in view.tensors:
        array = view.array(value)
        if array is None or not isinstance(like[0], int):
            return None
        array = array.reshape(*[1] * (4 - array.ndim), *array.shape).squeeze(3 - axis)[..., part]
        return found.constant(np.broadcast_to(array, (like[0], *array.shape[1:])), f"{name}_cache")
    shape = view.shapes[value]
    if len(shape) != 4 or shape[0] != like[0]:
        return None
    if whole:
        ends = (np.array([n], np.int64) for n in (0, width if interleaved else width // 2, 3, 2 if interleaved else 1))
        value = found.node("Slice", value, *(found.constant(e, "index") for e in ends))
    return found.node("Squeeze", value, found.constant(np.array([3 - axis], np.int64), "axis"))


def _make(whole: bool, interleaved: bool):
    def make(found: Found) -> bool:
        of, like = found["x"], found.shape(found["x"])
        axis = _laid_out(found.shape(found["cos"]), like)
        width = like[-1] if like else None
        halves = found.view.types.get(of) == found.view.types.get(found.root)
        if axis is None or found.shape(found["cos"]) != found.shape(found["sin"]) or not isinstance(width, int) or not halves:
            return False
        if found.shape(found["cos"])[-1] != (width if whole else width // 2):
            return False
        cos, sin = (_angles(found, name, axis, whole, interleaved, like) for name in ("cos", "sin"))
        if cos is None or sin is None:
            return False
        if axis == 1:       # [batch, positions, heads, d], which the operator takes as [batch, positions, heads * d]
            if any(isinstance(d, str) for d in like[2:]):
                return False
            flat = found.node("Reshape", of, found.constant(np.array([0, 0, -1], np.int64), "shape"))
            turned = found.node("RotaryEmbedding", flat, cos, sin, interleaved=int(interleaved), num_heads=int(like[2]))
            found.reshape(turned, [0, 0, int(like[2]), width], out=found.root)
        else:
            found.node("RotaryEmbedding", of, cos, sin, out=found.root, interleaved=int(interleaved))
        return True
    return make



@dataclass(frozen=True)
class Beginning(Pattern):
    """The last axis of x up to the `name`d number, or from it on."""

    name: str
    rest: bool = False

    def match(self, view: View, value: str, found: Match) -> Iterator[Match]:
        node = view.producer.get(value)
        source, taken, nodes = _sliced(view, node, value) if node is not None else NOTHING
        if not len(taken) or not np.array_equal(taken, np.arange(taken[0], taken[-1] + 1)):
            return
        edge, whole = (int(taken[0]), taken[-1] + 1 == view.shapes[source][-1]) if self.rest else (len(taken), taken[0] == 0)
        if whole and found.numbers.get(self.name, edge) == edge and (bound := found.bind("x", source)):
            yield bound.number(self.name, edge).inside(nodes[0])


def _partial(found: Found) -> bool:
    turned = next(n for n in map(found.view.producer.__getitem__, found.match.nodes) if n.op_type == "RotaryEmbedding")
    if len(found.shape(found["x"])) != 4 or attribute(turned, "rotary_embedding_dim"):
        return False
    found.node("RotaryEmbedding", found["x"], found["cos"], found["sin"], out=found.root, interleaved=attribute(turned, "interleaved"),
               rotary_embedding_dim=int(found.number("edge")))
    return True


partial = tuple(joined(op.RotaryEmbedding(Beginning("edge"), cos, sin, interleaved=i), Beginning("edge", rest=True)) for i in (0, 1))
RULES = (Rule(whole_halves, _make(True, False)), Rule(whole_pairs, _make(True, True)), Rule(half_halves, _make(False, False)),
         Rule(half_pairs, _make(False, True)), *(Rule(p, _partial) for p in partial))
