"""How the elements of a weight come from those of others: `Value.source` as pieces of the arrays that have none."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .ir import Value


@dataclass(frozen=True)
class Piece:
    """Rows first to first + count of every matrix in array ([..., rows, columns], or a list of rows that are numbers) are the rows
    start, start + step, … of every matrix of the weight."""

    array: np.ndarray
    first: int
    count: int
    start: int = 0
    step: int = 1

    @property
    def whole(self) -> bool:
        """Whether no row of the array is left out."""
        return self.count == _rows(self.array)


def _rows(array: np.ndarray) -> int:
    return array.shape[_axis(array)]


def _axis(array: np.ndarray) -> int:
    return -2 if array.ndim > 1 else 0


def pieces_of(name: str, values: Mapping[str, Value], leaf: Callable[[str], np.ndarray]) -> list[Piece]:
    """The pieces that a weight is made of; `leaf` gives the arrays of weights that have no source."""
    source = values[name].source if name in values else ()
    if not source:
        array = leaf(name)
        return [Piece(array, 0, _rows(array))]
    how, *rest = source
    parts = [pieces_of(str(p), values, leaf) for p in rest if isinstance(p, str)]
    if how == "concat":
        starts = np.cumsum([0, *(sum(p.count for p in part) for part in parts)]).tolist()
        return [replace(p, start=p.start + start) for start, part in zip(starts, parts, strict=False) for p in part]
    if how == "interleave":
        return [replace(p, start=p.start * len(parts) + i, step=p.step * len(parts)) for i, part in enumerate(parts) for p in part]
    if how == "rows":
        return [cut for p in parts[0] if (cut := _between(p, int(rest[1]), int(rest[2]))).count > 0]
    raise ValueError(f"%{name} has an unknown source {how}; known: concat, interleave, rows")


def _between(piece: Piece, start: int, stop: int) -> Piece:
    """What of a piece falls into some rows of the weight, counted from there."""
    skipped = max(0, -(-(start - piece.start) // piece.step))
    last = min(piece.count, -(-(stop - piece.start) // piece.step))
    return replace(piece, first=piece.first + skipped, count=last - skipped, start=piece.start + skipped * piece.step - start)


def assemble(name: str, values: Mapping[str, Value], leaf: Callable[[str], np.ndarray]) -> np.ndarray:
    """The array of a weight, made from its source."""
    pieces = pieces_of(name, values, leaf)
    array = pieces[0].array
    if len(pieces) == 1 and pieces[0].whole:
        return array
    axis, total = _axis(array), sum(p.count for p in pieces)
    joined = np.empty((*array.shape[:-2], total, array.shape[-1]) if axis else total, np.result_type(*(p.array for p in pieces)))
    for p in pieces:
        rows, taken = slice(p.start, p.start + (p.count - 1) * p.step + 1, p.step), slice(p.first, p.first + p.count)
        if axis:
            joined[..., rows, :] = p.array[..., taken, :]
        else:
            joined[rows] = p.array[taken]
    return joined
