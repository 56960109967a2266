"""A rule: a pattern, and the nodes that a match becomes."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, helper

from .folding import reshape, target
from .patterns import Match, Pattern, is_closed
from .view import Shape, View


@dataclass
class Found:
    """A match in its graph; `found["x"]` is the value that x stands for. What replaces it is written with `node`, whose last call
    makes the root."""

    view: View
    match: Match
    root: str
    nodes: list[NodeProto] = field(default_factory=list)
    others: list[NodeProto] = field(default_factory=list)       # nodes outside the match whose outputs the new nodes make

    def __getitem__(self, name: str) -> str:
        return self.match.values[name]

    def get(self, name: str) -> str:
        """As with brackets, or "" for what this match lacks: an absent operand of ONNX."""
        return self.match.values.get(name, "")

    def number(self, name: str, default: float = 1.0) -> float:
        return self.match.numbers.get(name, default)

    def shape(self, value: str) -> Shape:
        """The shape of a value; () if it is unknown."""
        return self.view.shape(value) or ()

    def node(self, kind: str, *inputs: str, out: str = "", outputs: tuple[str, ...] = (), **attributes) -> str:
        """Write a node; the name of its first output, `out` or a new one."""
        names = outputs or (out or self.view.fresh(kind.lower()),)
        given = list(inputs)
        while given and not given[-1]:
            given.pop()
        self.nodes.append(helper.make_node(kind, given, names, **{k: v for k, v in attributes.items() if v is not None}))
        return names[0]

    def reshape(self, x: str, shape: Shape | list[int], out: str = "") -> str:
        """x in another shape; one dimension at most may be unknown, and 0 keeps that of x."""
        to = shape if 0 in shape else target(tuple(shape))
        assert to is not None, shape
        self.nodes.append(reshape(self.view, x, [int(d) for d in to], out or self.view.fresh("reshape")))
        return self.nodes[-1].output[0]

    def constant(self, array: np.ndarray, hint: str = "constant") -> str:
        return self.view.constant(array, hint)

    def is_last(self, axes: str, of: str) -> bool:
        """Whether a constant list of axes names the last axis of a value alone."""
        array, rank = self.view.array(axes) if axes in self.view.tensors else None, len(self.shape(of))
        return array is not None and rank > 0 and [int(a) % rank for a in array.ravel()] == [rank - 1]


@dataclass(frozen=True)
class Rule:
    """`make` writes the nodes for a match and says whether it did: what a pattern cannot say is checked there."""

    pattern: Pattern
    make: Callable[[Found], bool]


def apply(view: View, rule: Rule) -> int:
    """Replace every match of a rule; how many there were."""
    old: list[NodeProto] = []
    new: list[NodeProto] = []
    gone: set[str] = set()
    for node in reversed(view.nodes):
        if node.domain or node.output[0] in gone:
            continue
        found = _first(view, rule, node.output[0], gone)
        if found:
            replaced = [*(view.producer[n] for n in found.match.nodes), *found.others]
            gone |= {n for r in replaced for n in r.output}
            old += replaced
            new += found.nodes
    if old:
        view.change(old, new)
    return len(old)


def _first(view: View, rule: Rule, root: str, gone: set[str]) -> Found | None:
    for match in rule.pattern.match(view, root, Match()):
        found = Found(view, match, root)
        if root in match.nodes and not gone & match.nodes and is_closed(view, match, root) and rule.make(found):
            return found
    return None
