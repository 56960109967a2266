"""What the caches of a compiled model hold: by layer, which keys its queries see, how many positions stay, and the bytes of that."""
from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from .ops import buffers_of
from .package import Package

ATTENTION = ("attention", "attention_split")


def caches(package: Package) -> list[dict[str, Any]]:
    """Layers that are alike in one entry: layers, mask (full, sliding or chunked), window (0 for a full one), positions that the cache
    of one sequence has, and bytes of all of it. A windowed layer keeps its window and the largest prefill chunk, whatever the context."""
    states, buffers = package.manifest["states"], package.manifest["buffers"]
    sizes: dict[int, int] = {}
    for name in states:
        if m := re.match(r"layers\.(\d+)\.", name):
            sizes[int(m[1])] = sizes.get(int(m[1]), 0) + buffers[f"state.{name}"]
    found: dict[tuple[str, int, int], list[int]] = {}
    for layer, key in sorted(_attention(package).items()):
        found.setdefault(key, []).append(layer)
    return [{"layers": layers, "mask": mask, "window": window, "positions": positions, "bytes": sum(sizes[i] for i in layers)}
            for (mask, window, positions), layers in found.items()]


def _attention(package: Package) -> dict[int, tuple[str, int, int]]:
    """Mask, window and positions of every layer that attends in the first program that decodes."""
    name = next((n for n in package.manifest["programs"] if n.startswith("decode")), None)
    if name is None:
        return {}
    graph = package.graph(name)
    home, found = buffers_of(graph), {}
    for op in (part for whole in graph.ops for part in whole.parts if part.kind in ATTENTION):
        cache = home[op.inputs[1]]
        mask = str(op.attr("mask", "full"))
        if m := re.match(r"layers\.(\d+)\.", cache):
            found[int(m[1])] = (mask, int(op.attr("window", 0)) if mask != "full" else 0, graph.values[cache].shape[2])
    return found


def spans(numbers: Sequence[int]) -> str:
    """Rising numbers with runs shortened: 0-2, 4, 6-7."""
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b != a + 1)] if numbers else []
    ends = [*(a for a, b in pairwise(numbers) if b != a + 1), numbers[-1]] if numbers else []
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
