"""The op graph: a flat list of ops in execution order over named values.

The law of a graph, which `verify` holds after every pass:

- A graph is data. Values are named, ops refer to them by name, and all records are frozen: a pass builds a new graph.
- Shapes are whole numbers, outermost first. What changes from step to step is in the contents of role `input` values.
- Every name is written once, before it is read. Roles say who writes it: `weight` (the package, once), `input` (the host,
  before every run), `state` (lives across runs and programs), `temp` (an op of this graph).
- State is in this form too: `%k1 = cache_write(%k, ...)` gives the buffer of `%k` a new name, and `%k` is not read after it.
- A `weight` may have a `source`, which says how its elements come from other weights: `("concat", "q", "k", "v")`.
- A `temp` with the source `("alias", "x")` is made by no op: it is the buffer of x in another shape, and is read once x is written.
- A `fused` op runs its `body` in one dispatch. Values made and used inside a body only have no buffer.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Attr = int | float | bool | str | tuple[int, ...]
Source = tuple[str | int, ...]


class GraphError(Exception):
    """The graph breaks a rule of its stage; the message says where, what is, and what was needed."""


@dataclass(frozen=True)
class Value:
    """An array: shape (outermost first), dtype (f32, f16, i32 or u32), role, and the layout that stores it."""

    shape: tuple[int, ...]
    dtype: str = "f32"
    role: str = "temp"          # input | weight | state | temp
    layout: str = "row"         # a name of layouts.py; `row` is plain elements of dtype
    source: Source = ()         # of a weight: how it is made of others

    @property
    def size(self) -> int:
        """Number of elements."""
        n = 1
        for d in self.shape:
            n *= d
        return n

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]" + (f"@{self.layout}" if self.layout != "row" else "")


@dataclass(frozen=True)
class Choice:
    """The kernel that runs an op on one device, and how it is cut up."""

    kernel: str
    schedule: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.kernel}({', '.join(f'{k}={v}' for k, v in self.schedule)})"


@dataclass(frozen=True)
class Op:
    """One operation. `fused` ops keep the ops that they stand for in `body`."""

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: tuple[tuple[str, Attr], ...] = ()
    body: tuple[Op, ...] = ()
    choice: Choice | None = None    # set by the tiling pass

    def attr(self, name: str, default: Attr | None = None) -> Any:
        for k, v in self.attrs:
            if k == name:
                return v
        if default is None:
            raise KeyError(f"{self.kind} has no attribute {name}")
        return default

    @property
    def parts(self) -> tuple[Op, ...]:
        """The ops that this one stands for: its body, or itself."""
        return self.body or (self,)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(o.kind for o in self.parts)


@dataclass(frozen=True)
class Graph:
    """Values by name, ops in execution order, and the names that the outside reads."""

    values: dict[str, Value]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]

    def with_ops(self, ops: Iterable[Op], values: dict[str, Value] | None = None) -> Graph:
        """The graph with other ops, and other values if they are given; itself where these are what it has."""
        made = Graph(self.values if values is None else values, tuple(ops), self.outputs)
        return self if made == self else made

    def with_values(self, values: dict[str, Value]) -> Graph:
        return self.with_ops(self.ops, values)

    def role(self, role: str) -> dict[str, Value]:
        return {n: v for n, v in self.values.items() if v.role == role}

    def readers(self) -> dict[str, list[int]]:
        """For every name, the indices of the ops that read it."""
        found: dict[str, list[int]] = {}
        for i, op in enumerate(self.ops):
            for name in dict.fromkeys(op.inputs):
                found.setdefault(name, []).append(i)
        return found

    def producers(self) -> dict[str, int]:
        """For every written name, the index of the op that writes it."""
        return {name: i for i, op in enumerate(self.ops) for name in op.outputs}
