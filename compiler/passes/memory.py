"""Give every temporary a place: arenas shared by lifetimes, coloured so that no dispatch reads and writes one buffer.

WebGPU forbids a buffer that is both read and written in one dispatch, even in disjoint ranges, so temporaries that one op reads and
writes get different arenas (a colouring of that graph); inside an arena, those that do not live at the same time share bytes.
"""
from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from ..ir import Graph, GraphError
from ..layouts import plane_bytes
from ..ops import buffers_of

ALIGN = 256     # bytes; every WebGPU device takes bindings that begin at multiples of it

@dataclass(frozen=True)
class Place:
    """Where a temporary lives: arena number, byte offset, bytes."""

    arena: int
    offset: int
    size: int


@dataclass(frozen=True)
class Memory:
    """places: by name. arenas: bytes of each. unshared: bytes that the temporaries would take apart."""

    places: Mapping[str, Place]
    arenas: tuple[int, ...]
    unshared: int


def place(graph: Graph) -> Memory:
    home = buffers_of(graph)
    temps = {n for op in graph.ops for n in op.outputs if home[n] == n}
    life = {n: [i, i] for i, op in enumerate(graph.ops) for n in op.outputs if n in temps}
    apart: dict[str, set[str]] = {n: set() for n in life}       # from what another arena holds
    for i, op in enumerate(graph.ops):
        reads, writes = ({home[n] for n in names if home[n] in temps} for names in (op.inputs, op.outputs))
        for n in reads | writes:
            life[n][1] = i
        for n in reads:
            apart[n] |= writes - {n}
        for n in writes:
            apart[n] |= reads - {n}
    colours = _coloured(apart)
    sizes = {n: -(-sum(plane_bytes(v.shape, v.dtype, v.layout)) // ALIGN) * ALIGN for n in life for v in (graph.values[n],)}
    places: dict[str, Place] = {}
    arenas: list[list[tuple[int, int, int, int]]] = [[] for _ in range(max(colours.values(), default=-1) + 1)]    # first and last op, bytes from, to
    for name in sorted(life, key=lambda n: -sizes[n]):
        arena, (first, last), at = arenas[colours[name]], life[name], 0
        for start, end in sorted((start, end) for born, dead, start, end in arena if born <= last and first <= dead):
            if at + sizes[name] <= start:
                break
            at = max(at, end)
        places[name] = Place(colours[name], at, sizes[name])
        arena.append((first, last, at, at + sizes[name]))
    memory = Memory(places, tuple(max(end for *_, end in arena) for arena in arenas), sum(sizes.values()))
    check(graph, memory)
    return memory


def _coloured(apart: Mapping[str, Set[str]]) -> dict[str, int]:
    """A colour for every name that no neighbour has, those with the most neighbours first (Welsh and Powell,
    https://doi.org/10.1093/comjnl/10.1.85)."""
    colours: dict[str, int] = {}
    for name in sorted(apart, key=lambda n: -len(apart[n])):
        taken = {colours[n] for n in apart[name] if n in colours}
        colours[name] = next(c for c in range(len(taken) + 1) if c not in taken)
    return colours


def check(graph: Graph, memory: Memory) -> None:
    """Raise GraphError if an op reads and writes one arena, or if a value is overwritten while it is still to be read."""
    home = buffers_of(graph)
    last = {home[n]: i for i, op in enumerate(graph.ops) for n in op.inputs}
    living: dict[str, Place] = {}
    for i, op in enumerate(graph.ops):
        reads = {home[n] for n in op.inputs} & memory.places.keys()
        for name in (home[n] for n in op.outputs if home[n] in memory.places):
            mine = memory.places[name]
            if clash := [r for r in reads if r != name and memory.places[r].arena == mine.arena]:
                raise GraphError(f"after memory: op {i} reads %{clash[0]} and writes %{name} in one arena, {mine.arena}")
            for other, p in living.items():
                if other != name and p.arena == mine.arena and p.offset < mine.offset + mine.size and mine.offset < p.offset + p.size:
                    raise GraphError(f"after memory: op {i} writes %{name} over %{other}, which is still to be read")
            living[name] = mine
        living = {n: p for n, p in living.items() if last.get(n, -1) > i}
