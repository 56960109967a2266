"""Write a graph by hand: every op of ops.py is a method that takes value names and attributes and returns the new names."""
from __future__ import annotations

from collections.abc import Callable

from .ir import Attr, Graph, GraphError, Op, Value
from .ops import OPS, infer


class Builder:
    """Collects values and ops.

    g = Builder()
    x, w = g.input("x", (4, 64), "f32"), g.weight("w", (32, 64))
    y = g.matmul(x, w)
    graph = g.graph(y)
    """

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.ops: list[Op] = []

    def _declare(self, name: str, value: Value) -> str:
        if self.values.get(name, value) != value:
            raise GraphError(f"%{name} is {self.values[name]} already and cannot be {value}")
        self.values[name] = value
        return name

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "i32") -> str:
        """A value that the host writes before every run."""
        return self._declare(name, Value(shape, dtype, "input"))

    def weight(self, name: str, shape: tuple[int, ...], dtype: str = "f32", layout: str = "row") -> str:
        """A value that the package holds."""
        return self._declare(name, Value(shape, dtype, "weight", layout))

    def state(self, name: str, shape: tuple[int, ...], dtype: str = "f32", layout: str = "row") -> str:
        """A buffer that lives across runs and programs."""
        return self._declare(name, Value(shape, dtype, "state", layout))

    def op(self, kind: str, *inputs: str, **attrs: Attr) -> tuple[str, ...]:
        """Append an op and return the names of its outputs. Raises GraphError when its operands do not type."""
        if kind not in OPS:
            raise GraphError(f"{kind} is no op; known: {', '.join(OPS)}")
        op = Op(kind, inputs, (), tuple(attrs.items()))
        try:
            made = infer(op, self.values)
        except (ValueError, TypeError, KeyError) as err:
            raise GraphError(f"{kind}({', '.join(f'%{n}: {self.values.get(n)}' for n in inputs)}) does not type: {err}") from err
        names = tuple(f"{kind}{len(self.ops)}" + (f".{i}" if len(made) > 1 else "") for i in range(len(made)))
        self.values.update(zip(names, made, strict=True))
        self.ops.append(Op(kind, inputs, names, op.attrs))
        return names

    def __getattr__(self, kind: str) -> Callable[..., str]:
        if kind not in OPS:
            raise AttributeError(f"{kind} is no op; known: {', '.join(OPS)}")

        def method(*inputs: str, **attrs: Attr):
            names = self.op(kind, *inputs, **attrs)
            return names[0] if len(names) == 1 else names
        return method

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def graph(self, *outputs: str) -> Graph:
        """The graph of what was written so far, with these outputs."""
        return Graph(dict(self.values), tuple(self.ops), outputs)
