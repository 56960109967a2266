"""Attention that exporters took apart: where scales, casts, masks, groups and the past may stand, and what is no attention."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_graphs import OPSET, Written, kinds, node, rewritten, untouched
from tilewright.frontends.onnx_rewriting import rewrite

FEW = settings(max_examples=30, deadline=None)
FLOOR = float(np.finfo(np.float32).min)


def swapped(g: Written, k: str, rank: int = 4) -> str:
    return g.Transpose(k, perm=[*range(rank - 2), rank - 1, rank - 2])


def repeated(g: Written, x: str, shape: tuple[int, ...], times: int, tile: bool = False) -> str:
    batch, heads, n, d = shape
    one = g.Unsqueeze(x, g.ints(2))
    many = g.Tile(one, g.ints(1, 1, times, 1, 1)) if tile else g.Expand(one, g.ints(batch, heads, times, n, d))
    return g.Reshape(many, g.ints(batch, heads * times, n, d))


def causal(g: Written, n: int, how: str) -> str:
    """What adds nothing to the scores of a query with the keys up to its own, and the least number to others."""
    if how == "triu":
        return g.Trilu(g.Expand(FLOOR, g.ints(n, n)), g.const(np.array(1)), upper=1)
    at = g.Range(g.const(np.array(0)), g.const(np.array(n)), g.const(np.array(1)))
    rows, columns = g.Unsqueeze(at, g.ints(1)), g.Unsqueeze(at, g.ints(0))
    if how == "less or equal":
        return g.Unsqueeze(g.Where(g.LessOrEqual(columns, rows), 0.0, FLOOR), g.ints(0, 1))
    if how == "greater":
        return g.Mul(g.Cast(g.Greater(columns, rows), to=TensorProto.FLOAT), -1e9)
    return g.Where(g.Equal(g.Trilu(g.const(np.ones((n, n), np.float32)), upper=0), 0.0), -np.inf, 0.0)


@FEW
@given(data=st.data(), batch=st.integers(1, 2), groups=st.integers(1, 2), times=st.integers(1, 3), n=st.integers(2, 4), m=st.integers(2, 5))
def test_scales_groups_and_masks(data, batch, groups, times, n, m):
    """A scale at q, k or the scores, times or divided; a mask that is any numbers; keys and values repeated or not."""
    draw, d = data.draw, 4
    g = Written(18)
    q, heads = g.input("q", (batch, groups * times, n, d)), groups * times
    k, v = (g.input(name, (batch, groups, m, d)) for name in "kv")
    if times > 1:
        tile = draw(st.booleans())
        k, v = (repeated(g, x, (batch, groups, m, d), times, tile) for x in (k, v))

    def scaled(x: str, by: float) -> str:
        return draw(st.sampled_from([lambda: g.Mul(x, by), lambda: g.Mul(by, x), lambda: g.Div(x, 1 / by)]))() if by != 1 else x
    by = [draw(st.sampled_from([1.0, 0.5, 0.7])) for _ in range(3)]
    keys = scaled(swapped(g, k), by[1]) if draw(st.booleans()) else swapped(g, scaled(k, by[1]))
    s = scaled(g.MatMul(scaled(q, by[0]), keys), by[2])
    if masked := draw(st.booleans()):
        shape = draw(st.sampled_from([(n, m), (1, 1, n, m), (batch, 1, 1, m), (batch, heads, n, m)]))
        s = g.Add(*draw(st.permutations([s, g.input("mask", shape)])))
    p = g.Softmax(s, axis=draw(st.sampled_from([-1, 3])))
    if draw(st.booleans()):
        p = g.Where(g.IsNaN(p), 0.0, p)
    after = rewritten(g, g.MatMul(p, v), Attention=1)
    assert node(after, "Attention")["scale"] == pytest.approx(np.prod(by)) and not node(after, "Attention")["is_causal"]
    assert len(after.graph.node[0].input) == 3 + masked and set(after.graph.node[0].input) == set(g.feeds)


@pytest.mark.parametrize("how", ["triu", "less or equal", "greater", "equal"])
def test_a_causal_mask_is_told_by_its_elements(how):
    g = Written(18)
    q, k, v = (g.input(name, (1, 2, 5, 4)) for name in "qkv")
    y = g.MatMul(g.Softmax(g.Add(g.MatMul(q, swapped(g, k)), causal(g, 5, how)), axis=-1), v)
    after = rewritten(g, y, Attention=1)
    assert node(after, "Attention")["is_causal"] == 1 and len(after.graph.node[0].input) == 3


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_scores_that_are_chosen_by_a_mask(kept, known):
    """torch's masked_fill: Where(mask, floor, scores), or the other way round; of a constant, or of a mask that comes at run time."""
    g = Written(18)
    q, k, v = (g.input(name, (1, 2, 3, 4)) for name in "qkv")
    lower = np.tri(3, dtype=bool)
    g.feeds["keep"] = lower if kept else ~lower
    mask = g.const(g.feeds.pop("keep")) if known else g.input("keep", (3, 3), np.bool_)
    s = g.MatMul(q, swapped(g, k))
    y = g.MatMul(g.Softmax(g.Where(mask, s, FLOOR) if kept else g.Where(mask, FLOOR, s), axis=-1), v)
    after = rewritten(g, y, **({"Attention": 1} if known else {"Where": 1, "Attention": 1}))
    assert node(after, "Attention")["is_causal"] == int(known)


@pytest.mark.skipif(OPSET < 25, reason="the installed onnx knows no windows: they came with opset 25")
@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_sliding_mask(window):
    g = Written(18)
    q, k, v = (g.input(name, (1, 2, 5, 4)) for name in "qkv")
    at = np.arange(5)
    mask = np.where((at <= at[:, None]) & (at > at[:, None] - window), 0, -np.inf).astype(np.float32)
    after = rewritten(g, g.MatMul(g.Softmax(g.Add(g.MatMul(q, swapped(g, k)), g.const(mask)), axis=-1), v), Attention=1)
    assert node(after, "Attention")["left_window_size"] == window - 1 and len(after.graph.node[0].input) == 3


def near(what: str, n: int = 5) -> np.ndarray:
    """Masks that are causal but for something."""
    at = np.arange(n)
    keep = at <= at[:, None]
    if what == "chunked":
        keep &= at // 3 == at[:, None] // 3
    if what == "one more":
        keep[1, 3] = True
    if what == "anti-causal":
        keep = at >= at[:, None]
    mask = np.where(keep, 0, -5.0 if what == "a weak floor" else -np.inf).astype(np.float32)[None, None]
    if what == "by head":
        mask = np.concatenate([mask, np.zeros_like(mask)], 1)
    return mask


@pytest.mark.parametrize("what", ["chunked", "one more", "anti-causal", "a weak floor", "by head"])
def test_a_mask_that_is_not_quite_causal_is_added(what):
    g = Written()
    q, k, v = (g.input(name, (1, 2, 5, 4)) for name in "qkv")
    after = rewritten(g, g.MatMul(g.Softmax(g.Add(g.MatMul(q, swapped(g, k)), g.const(near(what))), axis=-1), v), Attention=1)
    assert node(after, "Attention")["is_causal"] == 0 and len(after.graph.node[0].input) == 4


def test_a_mask_that_hides_nothing_is_dropped():
    g = Written()
    q, k, v = (g.input(name, (1, 2, 3, 4)) for name in "qkv")
    s = g.Add(g.MatMul(q, swapped(g, k)), g.const(np.zeros((1, 2, 3, 3), np.float32)))
    assert len(rewritten(g, g.MatMul(g.Softmax(s, axis=-1), v), Attention=1).graph.node[0].input) == 3


def test_a_soft_cap():
    g = Written()
    q, k, v = (g.input(name, (1, 2, 3, 4)) for name in "qkv")
    s = g.Mul(g.Tanh(g.Div(g.Mul(g.MatMul(q, swapped(g, k)), 0.5), 3.0)), 3.0)
    after = rewritten(g, g.MatMul(g.Softmax(s, axis=-1), v), Attention=1)
    assert node(after, "Attention")["softcap"] == 3 and node(after, "Attention")["scale"] == pytest.approx(0.5)


def test_half_precision_with_a_softmax_in_float32():
    g = Written()
    q, k, v = (g.input(name, (1, 2, 3, 4), np.float16) for name in "qkv")
    s = g.Mul(g.MatMul(q, swapped(g, k)), g.const(np.array(0.5, np.float16)))
    p = g.Cast(g.Softmax(g.Cast(s, to=TensorProto.FLOAT), axis=-1), to=TensorProto.FLOAT16)
    after = rewritten(g, g.MatMul(p, v), rtol=4e-3, Attention=1)
    assert node(after, "Attention")["softmax_precision"] == TensorProto.FLOAT


@pytest.mark.parametrize("merged", [True, False])
def test_heads_are_split_by_the_operator(merged):
    """Reshape and Transpose around it go; the older exporter brings keys into place with one Transpose."""
    g = Written(17)
    x, y = g.input("q", (2, 3, 8)), g.input("kv", (2, 3, 4))

    def heads(x: str, count: int, perm: list[int]) -> str:
        return g.Transpose(g.Reshape(x, g.ints(2, 3, count, 2)), perm=perm)
    keys = heads(y, 2, [0, 2, 3, 1]) if merged else swapped(g, repeated(g, heads(y, 2, [0, 2, 1, 3]), (2, 2, 3, 2), 2))
    values = repeated(g, heads(g.Neg(y), 2, [0, 2, 1, 3]), (2, 2, 3, 2), 2)
    if merged:
        x, values = g.input("q4", (2, 3, 4)), heads(g.Neg(y), 2, [0, 2, 1, 3])
    count = 2 if merged else 4
    out = g.MatMul(g.Softmax(g.MatMul(heads(x, count, [0, 2, 1, 3]), keys), axis=-1), values)
    after = rewritten(g, g.Reshape(g.Transpose(out, perm=[0, 2, 1, 3]), g.ints(2, 3, 2 * count)), Neg=1, Attention=1)
    assert (node(after, "Attention")["q_num_heads"], node(after, "Attention")["kv_num_heads"]) == (count, 2)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("known", [True, False])
def test_past_keys_and_values(times, known):
    """Caches that are graph inputs and, appended to, its outputs; the mask counts from the past."""
    g = Written(18)
    past, n = 3, 2
    q = g.input("q", (1, 2 * times, n, 4))
    before = [g.input(f"past_{x}", (1, 2, past, 4), known=(1, 2, past if known else "past", 4)) for x in "kv"]
    made = [g.Concat(b, g.input(x, (1, 2, n, 4)), axis=2) for b, x in zip(before, "kv")]
    k, v = (repeated(g, x, (1, 2, past + n, 4), times) if times > 1 else x for x in made)
    mask = np.where(np.arange(past + n) <= np.arange(n)[:, None] + past, 0, FLOOR).astype(np.float32)
    y = g.MatMul(g.Softmax(g.Add(g.MatMul(q, swapped(g, k)), g.const(mask)), axis=-1), v)
    after = rewrite(g.model(y, *made))
    assert kinds(after)["Attention"] == 1 and not kinds(after)["Softmax"]
    if known:
        rewritten(g, y, *made, Attention=1)
        assert node(after, "Attention")["is_causal"] == 1 and list(after.graph.node[0].input)[3:] == ["", "past_k", "past_v"]
    else:
        rewritten(g, y, *made, **kinds(after))


@pytest.mark.parametrize("what", ["another axis", "no transposed keys", "values on the left", "queries on the right", "logarithms",
                                  "scaled behind the mask"])
def test_what_is_no_attention(what):
    g = Written()
    q, k, v = (g.input(name, (1, 2, 4, 4)) for name in "qkv")
    turned = k if what == "no transposed keys" else swapped(g, k)
    s = g.MatMul(turned, q) if what == "queries on the right" else g.MatMul(q, turned)
    if what == "scaled behind the mask":
        s = g.Mul(g.Add(s, g.input("mask", (4, 4))), 0.5)
    p = g.LogSoftmax(s, axis=-1) if what == "logarithms" else g.Softmax(s, axis=2 if what == "another axis" else -1)
    untouched(g, g.MatMul(v, p) if what == "values on the left" else g.MatMul(p, v))


@pytest.mark.parametrize("inside", ["the weights", "the scores"])
def test_weights_that_others_look_at_stay(inside):
    g = Written()
    q, k, v = (g.input(name, (1, 2, 4, 4)) for name in "qkv")
    s = g.MatMul(q, swapped(g, k))
    p = g.Softmax(s, axis=-1)
    untouched(g, g.MatMul(p, v), p if inside == "the weights" else g.Neg(s))


def test_keys_repeated_in_another_order_stay():
    """torch's repeat, not repeat_interleave: heads 0 1 0 1 are no groups."""
    g = Written()
    q = g.input("q", (1, 4, 3, 4))
    k, v = (g.Reshape(g.Expand(g.Unsqueeze(g.input(x, (1, 2, 3, 4)), g.ints(1)), g.ints(1, 2, 2, 3, 4)), g.ints(1, 4, 3, 4)) for x in "kv")
    after = rewrite(g.model(g.MatMul(g.Softmax(g.MatMul(q, swapped(g, k)), axis=-1), v)))
    assert kinds(after)["Expand"] == 2


def test_an_attention_of_opset_23_is_tidied():
    """What torch 2.9 and later write: the operator, but with repeated keys and a causal mask as numbers."""
    g = Written(23)
    q = g.input("q", (1, 4, 3, 4))
    k, v = (repeated(g, g.input(x, (1, 2, 3, 4)), (1, 2, 3, 4), 2) for x in "kv")
    after = rewritten(g, g.Attention(q, k, v, g.const(np.tri(3, dtype=bool)[None, None]), scale=0.3), Attention=1)
    assert node(after, "Attention")["is_causal"] == 1 and node(after, "Attention")["scale"] == pytest.approx(0.3)


@pytest.mark.parametrize("last, found", [("n", 1), ("m", 0)])
def test_dimensions_that_have_names(last, found):
    """A mask for keys of unknown number fits if it is the same number; one that may have to be broadcast does not."""
    g = Written(18)
    q, k, v = (g.input(name, (1, 2, 5, 4), known=(1, 2, "n", 4)) for name in "qkv")
    s = g.Add(g.MatMul(q, swapped(g, k)), g.input("mask", (1, 1, 5, 5), known=(1, 1, "n", last)))
    assert kinds(rewrite(g.model(g.MatMul(g.Softmax(s, axis=-1), v))))["Attention"] == found
