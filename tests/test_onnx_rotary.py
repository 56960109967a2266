"""Rotations of heads that exporters took apart: halves and neighbours, whole and partial, in both layouts."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_graphs import Written, kinds, node, rewritten, untouched
from tilewright.frontends.onnx_rewriting import rewrite

FEW = settings(max_examples=25, deadline=None)
SIZES = st.tuples(*(st.integers(1, 3) for _ in range(3)), st.sampled_from([2, 4, 8]))      # batch, heads, positions, d


def angles(g: Written, shape: tuple[int, ...], whole: bool, neighbours: bool = False, computed: bool = False) -> tuple[str, str]:
    """cos and sin: numbers, or computed from an input of the graph; `whole` of a head, then equal for its halves or neighbours."""
    half = (*shape[:-1], shape[-1] // 2)
    if computed:
        f = g.input("angle", half)
        f = g.Concat(f, f, axis=-1) if whole else f
        return g.Cos(f), g.Mul(g.Sin(f), 1.0)
    f = g.rng.standard_normal(half).astype(np.float32)
    if whole:
        f = np.repeat(f, 2, -1) if neighbours else np.concatenate([f, f], -1)
    return g.const(np.cos(f)), g.const(np.sin(f))


def halves(g: Written, x: str, d: int, split: bool) -> tuple[str, str]:
    if split:
        return tuple(g.op("Split", x, g.ints(d // 2, d // 2), axis=-1, outputs=2))
    return g.part(x, 0, d // 2), g.part(x, d // 2, 2**63 - 1, axis=3)


def turned(g: Written, x: str, cos: str, sin: str, rotated: str, draw) -> str:
    first, second = (g.Mul(*draw(st.permutations(pair))) for pair in ((x, cos), (rotated, sin)))
    return g.Add(*draw(st.permutations([first, second])))


@FEW
@given(data=st.data(), sizes=SIZES, split=st.booleans(), computed=st.booleans())
def test_rotate_half(data, sizes, split, computed):
    batch, heads, n, d = sizes
    g = Written(18)
    x = g.input("x", (batch, heads, n, d))
    cos, sin = angles(g, (batch if computed else data.draw(st.sampled_from([1, batch])), 1, n, d), True, computed=computed)
    low, high = halves(g, x, d, split)
    after = rewrite(g.model(y := turned(g, x, cos, sin, g.Concat(g.Neg(high), low, axis=-1), data.draw)))
    assert kinds(after)["RotaryEmbedding"] == 1 and kinds(after)["Concat"] == int(computed), kinds(after)
    rewritten(g, y, **kinds(after))
    assert not node(after, "RotaryEmbedding")["interleaved"]


@FEW
@given(data=st.data(), sizes=SIZES, split=st.booleans())
def test_halves_with_an_angle_a_pair_before_heads_are_brought_forward(data, sizes, split):
    batch, heads, n, d = sizes
    g = Written(18)
    x = g.input("x", (batch, n, heads, d))
    cos, sin = angles(g, (n, 1, d), False)
    a, b = halves(g, x, d, split)
    y = g.Concat(g.Sub(g.Mul(a, cos), g.Mul(sin, b)), g.Add(*data.draw(st.permutations([g.Mul(b, cos), g.Mul(sin, a)]))), axis=3)
    after = rewrite(g.model(y))
    assert kinds(after)["RotaryEmbedding"] == 1 and kinds(after).keys() <= {"RotaryEmbedding", "Reshape"}
    rewritten(g, y, **kinds(after))


def pairs(g: Written, x: str, shape: tuple[int, ...], how: str) -> tuple[str, str]:
    """Even and odd elements."""
    if how == "slice":
        return tuple(g.part(x, start, shape[-1], step=2) for start in (0, 1))
    two = g.Reshape(x, g.ints(*shape[:-1], shape[-1] // 2, 2))
    if how == "gather":
        return tuple(g.Gather(two, g.const(np.array(i)), axis=-1) for i in (0, 1))
    cut = g.op("Split", two, g.ints(1, 1), axis=-1, outputs=2) if how == "split" else [g.part(two, i, i + 1) for i in (0, 1)]
    return tuple(g.Squeeze(c, g.ints(-1)) for c in cut)


def stacked(g: Written, a: str, b: str, shape: tuple[int, ...]) -> str:
    return g.Reshape(g.Concat(*(g.Unsqueeze(v, g.ints(-1)) for v in (a, b)), axis=-1), g.ints(*shape))


@FEW
@given(data=st.data(), sizes=SIZES, how=st.sampled_from(["slice", "gather", "split", "squeeze"]), whole=st.booleans())
def test_neighbours(data, sizes, how, whole):
    """GPT-J's rotate_every_two, and Llama 4's complex product."""
    g = Written(18)
    x = g.input("x", sizes)
    cos, sin = angles(g, (1, 1, *sizes[2:]), whole, neighbours=True)
    a, b = pairs(g, x, sizes, how)
    if whole:
        y = turned(g, x, cos, sin, stacked(g, g.Neg(b), a, sizes), data.draw)
    else:
        y = stacked(g, g.Sub(g.Mul(a, cos), g.Mul(b, sin)), g.Add(g.Mul(a, sin), g.Mul(b, cos)), sizes)
    assert node(rewritten(g, y, RotaryEmbedding=1), "RotaryEmbedding")["interleaved"] == 1


@pytest.mark.parametrize("rest", [0, 2, 6])
def test_partial(rest):
    g = Written(18)
    x = g.input("x", (1, 2, 3, 4 + rest))
    cos, sin = angles(g, (1, 1, 3, 4), True)
    part = g.part(x, 0, 4)
    low, high = halves(g, part, 4, False)
    y = g.Add(g.Mul(part, cos), g.Mul(g.Concat(g.Neg(high), low, axis=-1), sin))
    after = rewritten(g, g.Concat(y, g.part(x, 4, 99), axis=-1), RotaryEmbedding=1)
    assert node(after, "RotaryEmbedding").get("rotary_embedding_dim", 0) == 4 * (rest > 0)


@pytest.mark.parametrize("what", ["halves differ", "the other half is turned", "no sign", "signs both", "sin of other rows", "a head of its own",
                                  "cut elsewhere"])
def test_what_is_no_rotation(what):
    g = Written()
    x = g.input("x", (1, 2, 3, 4))
    cos, sin = angles(g, (1, 2 if what == "a head of its own" else 1, 3, 4), True)
    if what == "halves differ":
        cos = g.weight(1, 1, 3, 4)
    if what == "sin of other rows":
        sin = g.const(np.full((1, 1, 1, 4), 0.5, np.float32))
    low, high = (g.part(x, 0, 1), g.part(x, 1, 4)) if what == "cut elsewhere" else halves(g, x, 4, False)
    first, second = (low, high) if what == "the other half is turned" else (high, low)
    first = first if what == "no sign" else g.Neg(first)
    second = g.Neg(second) if what == "signs both" else second
    untouched(g, g.Add(g.Mul(x, cos), g.Mul(g.Concat(first, second, axis=-1), sin)))


def test_neighbours_that_are_put_beside_each_other_are_halves_no_longer():
    """Taken by pairs but put back as halves: some exports permute so, and it is no RotaryEmbedding."""
    g = Written()
    x = g.input("x", (1, 2, 3, 4))
    cos, sin = angles(g, (1, 1, 3, 4), False)
    a, b = pairs(g, x, (1, 2, 3, 4), "slice")
    untouched(g, g.Concat(g.Sub(g.Mul(a, cos), g.Mul(b, sin)), g.Add(g.Mul(a, sin), g.Mul(b, cos)), axis=-1))


def test_pairs_one_below_the_other_are_no_neighbours():
    """With d = 4, stacking before the last axis gives the same shapes as stacking behind it."""
    g = Written()
    x = g.input("x", (1, 2, 3, 4))
    cos, sin = angles(g, (1, 1, 3, 4), False)
    a, b = pairs(g, x, (1, 2, 3, 4), "slice")
    turned = g.Sub(g.Mul(a, cos), g.Mul(b, sin)), g.Add(g.Mul(a, sin), g.Mul(b, cos))
    untouched(g, g.Reshape(g.Concat(*(g.Unsqueeze(v, g.ints(-2)) for v in turned), axis=-2), g.ints(1, 2, 3, 4)))


@pytest.mark.parametrize("normed", [False, True])
def test_heads_are_turned_where_projections_leave_them(normed):
    g = Written(23)
    x = g.input("x", (2, 3, 8))
    cos, sin = angles(g, (1, 1, 3, 4), True)
    heads = g.Transpose(g.Reshape(x, g.ints(2, 3, 2, 4)), perm=[0, 2, 1, 3])
    heads = g.RMSNormalization(heads, g.weight(4)) if normed else heads
    low, high = halves(g, heads, 4, False)
    y = g.Add(g.Mul(heads, cos), g.Mul(g.Concat(g.Neg(high), low, axis=-1), sin))
    norms = {"RMSNormalization": 1, "Reshape": 2} if normed else {}
    after = rewritten(g, g.Reshape(g.Transpose(y, perm=[0, 2, 1, 3]), g.ints(2, 3, 8)), RotaryEmbedding=1, **norms)
    assert node(after, "RotaryEmbedding")["num_heads"] == 2
