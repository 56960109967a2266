"""RNN, GRU and LSTM, their steps written out."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .checkpoint import CheckpointError
from .onnx_control import stacked
from .onnx_graph import Lowering, Node, operator
from .onnx_products import product
from .onnx_tensors import Tensor, known

Function = Callable[[Tensor], Tensor]
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
DEFAULTS = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
ACTIVATIONS = {"Tanh": "tanh", "Sigmoid": "sigmoid", "Relu": "relu", "Softplus": "softplus"}


class Cell:
    """One direction of a recurrent operator."""

    def __init__(self, g: Lowering, n: Node, direction: int, functions: list[str]):
        self.g, self.n, self.hidden = g, n, n.attr("hidden_size")
        clip = n.attr("clip")
        self.functions = [self._function(name, clip) for name in functions]
        self.w, self.r = (self._part(n.input(i), direction) for i in (1, 2))
        bias, count = n.optional(3), GATES[n.op] * self.hidden
        both = self._part(bias, direction) if bias is not None else known(np.zeros(2 * count, np.float32))
        self.wb, self.rb = g.slice(both, 0, 0, count), g.slice(both, 0, count, count)
        peep = n.optional(7)
        self.peepholes = [g.slice(self._part(peep, direction), 0, k * self.hidden, self.hidden) for k in range(3)] if peep is not None else None

    def _function(self, name: str, clip: float | None) -> Function:
        if name not in ACTIVATIONS:
            raise CheckpointError(f"the activation {name} is not supported in {self.n.op}; known: {', '.join(ACTIVATIONS)}")

        def apply(x: Tensor) -> Tensor:
            x = self.g.each("clamp", x, low=-float(clip), high=float(clip)) if clip else x
            return self.g.each("maximum", x, self.g.scalar(0, x)) if name == "Relu" else self.g.each(ACTIVATIONS[name], x)
        return apply

    def _part(self, x: Tensor, direction: int) -> Tensor:
        return self.g.reshape(self.g.slice(x, 0, direction, 1), x.shape[1:])

    def gates(self, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
        """x [batch, in] times weight [gates * hidden, in], a tensor a gate."""
        y = self.g.each("add", product(self.g, x, self.g.transpose(weight, (1, 0))), bias)
        return [self.g.slice(y, 1, k * self.hidden, self.hidden) for k in range(GATES[self.n.op])]

    def step(self, x: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        given = self.gates(x, self.w, self.wb)
        if self.n.op == "GRU":
            return self._gru(given, h), None
        kept = self.gates(h, self.r, self.rb)
        sums = [self.g.each("add", a, b) for a, b in zip(given, kept, strict=True)]
        if self.n.op == "RNN":
            return self.functions[0](sums[0]), None
        assert c is not None
        return self._lstm(sums, c)

    def _gru(self, given: list[Tensor], h: Tensor) -> Tensor:
        g, (f, out) = self.g, self.functions
        kept = self.gates(h, self.r, self.rb)
        z, r = (f(g.each("add", given[k], kept[k])) for k in (0, 1))
        if self.n.attr("linear_before_reset", 0):
            last = g.each("mul", r, kept[2])
        else:
            last = self.gates(g.each("mul", r, h), self.r, self.rb)[2]
        new = out(g.each("add", given[2], last))
        return g.each("add", g.each("mul", g.each("sub", g.scalar(1, z), z), new), g.each("mul", z, h))

    def _lstm(self, sums: list[Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
        g, (f, cell, out) = self.g, self.functions

        def seen(x: Tensor, state: Tensor, k: int) -> Tensor:
            return x if self.peepholes is None else g.each("add", x, g.each("mul", state, self.peepholes[k]))
        i, o, forget, new = sums
        i, forget = f(seen(i, c, 0)), f(seen(forget, c, 2))
        c = g.each("add", g.each("mul", forget, c), g.each("mul", i, cell(new)))
        return g.each("mul", f(seen(o, c, 1)), out(c)), c


@operator("RNN", "GRU", "LSTM")
def recurrent(g: Lowering, n: Node):
    x, lengths = n.input(0), n.optional(4)
    if n.attr("layout", 0):
        x = g.transpose(x, (1, 0, 2))
    if lengths is not None and any(length != x.shape[0] for length in g.numbers(lengths, "the lengths of sequences")):
        raise CheckpointError("sequences that are shorter than the input are not supported")
    both = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[n.attr("direction", "forward")]
    names = list(n.attr("activations") or DEFAULTS[n.op] * len(both))
    each = len(DEFAULTS[n.op])
    outs, lasts, cells = [], [], []
    for d, backward in enumerate(both):
        cell = Cell(g, n, d, names[d * each:(d + 1) * each])
        h, c = (_start(g, n, i, d, x.shape[1], cell.hidden) for i in (5, 6))
        made = []
        for t in reversed(range(x.shape[0])) if backward else range(x.shape[0]):
            h, c = cell.step(g.reshape(g.slice(x, 0, t, 1), x.shape[1:]), h, c)     # type: ignore[assignment]
            made.append(h)
        outs.append(stacked(g, made[::-1] if backward else made, 0))
        lasts.append(h)
        cells.append(c)
    results = [stacked(g, outs, 1), stacked(g, lasts, 0), *([stacked(g, cells, 0)] if n.op == "LSTM" else [])]
    if n.attr("layout", 0):
        results = [g.transpose(results[0], (2, 0, 1, 3)), *(g.transpose(r, (1, 0, 2)) for r in results[1:])]
    return results


def _start(g: Lowering, n: Node, i: int, direction: int, batch: int, hidden: int) -> Tensor:
    given = n.optional(i)
    if given is None:
        return known(np.zeros((batch, hidden), np.float32))
    given = g.transpose(given, (1, 0, 2)) if n.attr("layout", 0) else given
    return g.reshape(g.slice(given, 0, direction, 1), given.shape[1:])


__all__ = ["Cell"]
