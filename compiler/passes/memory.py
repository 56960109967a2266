"""Give every temporary a place: arenas shared by lifetimes, coloured so that no dispatch reads and writes one buffer.

WebGPU forbids a buffer that is both read and written in one dispatch, even in disjoint ranges, so temporaries that one op reads and
writes get different arenas (a colouring of that graph); inside an arena, those that do not live at the same time share bytes.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx

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
    conflicts = networkx.Graph()
    conflicts.add_nodes_from(life)
    for i, op in enumerate(graph.ops):
        reads, writes = ({home[n] for n in names if home[n] in temps} for names in (op.inputs, op.outputs))
        for n in reads | writes:
            life[n][1] = i
        conflicts.add_edges_from((r, w) for r in sorted(reads) for w in sorted(writes) if r != w)
    colours = networkx.greedy_color(conflicts, strategy="largest_first")
    sizes = {n: -(-sum(plane_bytes(v.shape, v.dtype, v.layout)) // ALIGN) * ALIGN for n in life for v in (graph.values[n],)}
    places: dict[str, Place] = {}
    arenas: dict[int, int] = {}
    for name in sorted(life, key=lambda n: -sizes[n]):
        arena = colours[name]
        taken = sorted((p.offset, p.offset + p.size) for n, p in places.items()
                       if p.arena == arena and life[n][0] <= life[name][1] and life[name][0] <= life[n][1])
        at = 0
        for start, end in taken:
            if at + sizes[name] <= start:
                break
            at = max(at, end)
        places[name] = Place(arena, at, sizes[name])
        arenas[arena] = max(arenas.get(arena, 0), at + sizes[name])
    memory = Memory(places, tuple(arenas.get(a, 0) for a in range(max(arenas, default=-1) + 1)), sum(sizes.values()))
    check(graph, memory)
    return memory


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
