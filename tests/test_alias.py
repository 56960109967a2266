"""Another shape of the same elements costs no dispatch, keeps its meaning, and is never made of a buffer that changes."""
from __future__ import annotations

import numpy as np
import pytest
from tilewright import Builder, GraphError, testing
from tilewright.compiler.ops import buffers_of, evaluate
from tilewright.compiler.passes.alias import alias
from tilewright.compiler.passes.memory import place
from tilewright.compiler.text import read, show
from tilewright.compiler.verify import verify


def reshaped(g: Builder, x: str, *shape: int) -> str:
    return g.view(x, shape=shape, strides=tuple(int(np.prod(shape[k + 1:])) for k in range(len(shape))))


def test_views_that_move_nothing_become_aliases():
    g = Builder()
    x = g.silu(g.state("x", (3, 4)))
    y = reshaped(g, reshaped(g, x, 12), 2, 6)
    before = g.graph(g.silu(y), g.silu(g.view(x, shape=(4, 3), strides=(1, 4))))
    after = alias(before)
    verify(after, "alias")
    assert [op.kind for op in after.ops] == ["silu", "silu", "view", "silu"]
    assert buffers_of(after)[y] == x and after.values[y].shape == (2, 6)
    feeds = testing.random_feeds(before)
    for name, array in evaluate(before, feeds).items():
        np.testing.assert_array_equal(evaluate(after, feeds)[name], array)
    assert show(read(show(after))) == show(after)
    place(after)        # which checks that what an alias stands for lives as long as the alias is read


def test_copies_of_what_changes_stay():
    """A scatter changes its own copy; what was copied is read afterwards."""
    g = Builder()
    x = g.silu(g.state("x", (4,)))
    changed = g.scatter(reshaped(g, x, 4), g.state("at", (1, 2), "i32"), g.state("new", (1, 2)), lines=1, how="replace")
    before = g.graph(g.add(changed, x))
    assert [op.kind for op in alias(before).ops] == [op.kind for op in before.ops]


def test_an_alias_is_not_read_before_what_it_stands_for():
    g = Builder()
    x = g.silu(g.state("x", (3, 4)))
    after = alias(g.graph(g.silu(reshaped(g, x, 12))))
    with pytest.raises(GraphError, match="before it is written"):
        verify(after.with_ops(after.ops[::-1]), "testing")
