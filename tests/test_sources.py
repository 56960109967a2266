"""Weights that are made of others: joined, interleaved and cut, in any nesting."""
from __future__ import annotations

from itertools import count

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tilewright.compiler.ir import Value
from tilewright.compiler.sources import assemble, pieces_of

NUMBERS = count()


@st.composite
def weights(draw, depth=2, flat=None):
    """Values with sources, arrays of those without, the name of the outermost, and its array."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    flat = draw(st.booleans()) if flat is None else flat
    rows = draw(st.integers(1, 7))
    how = draw(st.sampled_from(("leaf", "concat", "interleave", "rows"))) if depth else "leaf"
    name = f"w{next(NUMBERS)}"
    if how == "leaf":
        array = rng.standard_normal(rows if flat else (2, rows, 3))
        return {}, {name: array}, name, array
    if how == "rows":
        values, leaves, part, array = draw(weights(depth - 1, flat))
        axis = -2 if array.ndim > 1 else 0
        start = draw(st.integers(0, array.shape[axis] - 1))
        stop = draw(st.integers(start + 1, array.shape[axis]))
        values[name] = Value((), source=("rows", part, start, stop))
        return values, leaves, name, array.take(range(start, stop), axis)
    parts = [draw(weights(depth - 1, flat)) for _ in range(draw(st.integers(1, 3)))]
    arrays = [p[3] for p in parts]
    axis = -2 if arrays[0].ndim > 1 else 0
    if how == "interleave":
        least = min(a.shape[axis] for a in arrays)
        if any(a.shape[axis] != least for a in arrays):
            parts, arrays = parts[:1], arrays[:1]
        array = np.stack(arrays, axis if axis else 1).reshape(*arrays[0].shape[:-2], -1, *arrays[0].shape[-1:] if axis else ())
    else:
        array = np.concatenate(arrays, axis)
    values = {k: v for p in parts for k, v in p[0].items()} | {name: Value((), source=(how, *(p[2] for p in parts)))}
    return values, {k: v for p in parts for k, v in p[1].items()}, name, array


@settings(max_examples=200, deadline=None, derandomize=True)
@given(weights())
def test_pieces_put_together(case):
    values, leaves, name, want = case
    np.testing.assert_array_equal(assemble(name, values, leaves.__getitem__), want)
    pieces = pieces_of(name, values, leaves.__getitem__)
    taken = sorted(row for p in pieces for row in range(p.start, p.start + p.count * p.step, p.step))
    assert taken == list(range(want.shape[-2 if want.ndim > 1 else 0])), "every row comes from one piece"
