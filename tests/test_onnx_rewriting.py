"""Norms, activations and rotations that exporters took apart: recognised, equal, and left alone where something is off."""
from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_graphs import OPSET, Written, kinds, node, rewritten, untouched
from tilewright.frontends.onnx_rewriting import rewrite

FEW = settings(max_examples=25, deadline=None)
SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=3).flatmap(lambda rows: st.integers(2, 9).map(lambda d: (*rows, d)))
swiglu = pytest.mark.skipif(OPSET < 28, reason="the installed onnx knows no SwiGLU: it came with opset 28")


def times(g: Written, draw, *factors: str | tuple[str]) -> str:
    """Their product, in an order and association that hypothesis chooses; those in a tuple divide."""
    if len(factors) == 1:
        factor, = factors
        return g.Reciprocal(*factor) if isinstance(factor, tuple) else factor
    order = draw(st.permutations(factors))
    cut = draw(st.integers(1, len(order) - 1))
    left, right = order[:cut], order[cut:]
    if len(right) == 1 and isinstance(right[0], tuple) and draw(st.booleans()):
        return g.Div(times(g, draw, *left), *right[0])
    return g.Mul(times(g, draw, *left), times(g, draw, *right))


def mean(g: Written, x: str, axes=(-1,), **attrs) -> str:
    return g.ReduceMean(x, g.ints(*axes), **attrs)


def root(g: Written, x: str, eps: float, axes=(-1,)) -> str:
    return g.Sqrt(g.Add(mean(g, g.Pow(x, 2.0), axes), eps))


@FEW
@given(data=st.data(), shape=SHAPES, eps=st.sampled_from([1e-6, 1e-5, 0.5]), opset=st.sampled_from([18, 23]))
def test_rms_norm(data, shape, eps, opset):
    g = Written(opset)
    x, w = g.input("x", shape), g.weight(shape[-1])
    square = data.draw(st.sampled_from([lambda: g.Pow(x, 2.0), lambda: g.Pow(x, g.const(2)), lambda: g.Mul(x, x)]))()
    axis = data.draw(st.sampled_from([-1, len(shape) - 1]))
    added = data.draw(st.permutations([mean(g, square, (axis,)), g.const(eps)]))
    total = g.Add(*added)
    norm = data.draw(st.sampled_from([lambda: times(g, data.draw, w, x, (g.Sqrt(total),)), lambda: times(g, data.draw, w, x, g.Pow(total, -0.5))]))()
    after = rewritten(g, norm, RMSNormalization=1)
    assert abs(node(after, "RMSNormalization")["epsilon"] - eps) < 1e-9


@pytest.mark.parametrize("opset", [13, 17])
def test_rms_norm_of_older_opsets_has_axes_as_an_attribute(opset):
    g = Written(opset)
    x = g.input("x", (2, 5))
    total = g.Add(g.ReduceMean(g.Pow(x, 2.0), axes=[-1]), 1e-5)
    rewritten(g, g.Mul(g.weight(5), g.Div(x, g.Sqrt(total))), RMSNormalization=1)


def test_rms_norm_without_a_weight():
    g = Written()
    x = g.input("x", (2, 5))
    after = rewritten(g, g.Div(x, root(g, x, 1e-5)), RMSNormalization=1)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(after.graph.initializer[0]), np.ones(5))


def test_half_precision_normalised_in_float32():
    """As Llama writes it: cast up, normalise, cast down, multiply."""
    g = Written()
    x = g.input("x", (4, 16), np.float16)
    up = g.Cast(x, to=TensorProto.FLOAT)
    norm = g.Cast(g.Mul(up, g.Reciprocal(root(g, up, 1e-5))), to=TensorProto.FLOAT16)
    rewritten(g, g.Mul(g.weight(16, dtype=np.float16), norm), rtol=2e-3, RMSNormalization=1)


def test_a_weight_in_float32_is_not_rounded_for():
    """RMSNormalization would round to half precision before the weight; only the norm in float32 is one."""
    g = Written()
    up = g.Cast(g.input("x", (4, 16), np.float16), to=TensorProto.FLOAT)
    rewritten(g, g.Mul(g.weight(16), g.Div(up, root(g, up, 1e-5))), Cast=1, RMSNormalization=1)


@pytest.mark.parametrize("what", ["eps behind the root", "another axis", "two axes", "a cube", "another divided", "no eps", "of doubles",
                                  "dropped axis"])
def test_what_is_no_rms_norm(what):
    g = Written()
    x = g.input("x", (5, 5, 5), np.float64 if what == "of doubles" else np.float32)
    square = g.Pow(x, {"a cube": 3.0}.get(what, 2.0))
    averaged = mean(g, square, {"another axis": (1,), "two axes": (1, 2)}.get(what, (-1,)), keepdims=0 if what == "dropped axis" else 1)
    eps = g.const(np.array(1e-5, g.feeds["x"].dtype)) if what != "of doubles" else g.const(np.zeros((), np.float64) + 1, np.int64)
    if what == "of doubles":
        eps = g.Cast(g.input("eps", ()), to=TensorProto.DOUBLE)
    bottom = g.Add(g.Sqrt(averaged), eps) if what == "eps behind the root" else g.Sqrt(averaged if what == "no eps" else g.Add(averaged, eps))
    untouched(g, g.Div(g.input("other", (5, 5, 5)) if what == "another divided" else x, bottom))


@pytest.mark.parametrize("which", ["the norm", "the mean", "the root"])
def test_what_others_take_stays(which):
    """The weighted norm cannot be one node where its inside is needed, as an output or by another node."""
    for as_output in (True, False):
        g = Written()
        x, w = g.input("x", (3, 5)), g.weight(5)
        averaged = mean(g, g.Pow(x, 2.0))
        bottom = g.Sqrt(g.Add(averaged, 1e-5))
        norm = g.Div(x, bottom)
        inside = {"the norm": norm, "the mean": averaged, "the root": bottom}[which]
        outputs = g.Mul(norm, w), inside if as_output else g.Neg(inside)
        if which == "the norm":
            rewritten(g, *outputs, RMSNormalization=1, Mul=1, **({} if as_output else {"Neg": 1}))
        else:
            untouched(g, *outputs)


def test_the_weight_must_fit_the_axis():
    g = Written()
    x = g.input("x", (3, 5))
    rewritten(g, g.Mul(g.Div(x, root(g, x, 1e-5)), g.input("gate", (3, 5))), RMSNormalization=1, Mul=1)


@FEW
@given(data=st.data(), shape=SHAPES, eps=st.sampled_from([1e-6, 0.25]), twice=st.booleans(), bias=st.booleans(), weight=st.booleans())
def test_layer_norm(data, shape, eps, twice, bias, weight):
    g = Written(18)
    x = g.input("x", shape)
    centred = g.Sub(x, mean(g, x))
    again = g.Sub(x, mean(g, x)) if twice else centred
    norm = times(g, data.draw, centred, (root(g, again, eps),))
    norm = g.Mul(*data.draw(st.permutations([norm, g.weight(shape[-1])]))) if weight else norm
    norm = g.Add(*data.draw(st.permutations([norm, g.weight(shape[-1])]))) if weight and bias else norm
    rewritten(g, norm, LayerNormalization=1)


def test_a_norm_about_another_mean_is_no_layer_norm():
    g = Written()
    x, y = g.input("x", (3, 5)), g.input("y", (3, 5))
    centred = g.Sub(x, mean(g, y))
    after = rewrite(g.model(g.Div(centred, root(g, centred, 1e-5))))
    assert kinds(after) == {"ReduceMean": 1, "Sub": 1, "RMSNormalization": 1}


@FEW
@given(data=st.data(), shape=SHAPES, alpha=st.sampled_from([1.0, 1.702]))
def test_swish(data, shape, alpha):
    g = Written(18)
    x = g.input("x", shape)
    inside = x if alpha == 1 else times(g, data.draw, x, g.const(alpha))
    after = rewritten(g, times(g, data.draw, x, g.Sigmoid(inside)), Swish=1)
    assert node(after, "Swish")["alpha"] == pytest.approx(alpha)


@swiglu
@FEW
@given(data=st.data(), shape=SHAPES)
def test_swiglu(data, shape):
    g = Written(18)
    gate, up = g.input("gate", shape), g.input("up", shape)
    rewritten(g, g.Mul(*data.draw(st.permutations([g.Mul(gate, g.Sigmoid(gate)), up]))), SwiGLU=1)


def test_swiglu_does_not_broadcast():
    g = Written()
    gate, up = g.input("gate", (3, 4)), g.input("up", (4,))
    rewritten(g, g.Mul(g.Mul(gate, g.Sigmoid(gate)), up), Swish=1, Mul=1)


def test_what_is_no_swish():
    g = Written()
    x, y, z, u = (g.input(n, (3, 4)) for n in "xyzu")
    untouched(g, g.Mul(x, g.Sigmoid(y)), g.Div(z, g.Sigmoid(z)), g.Mul(g.Mul(u, u), g.Sigmoid(u)))


@FEW
@given(data=st.data(), shape=SHAPES, form=st.sampled_from(["erf", "tanh", "tanh factored"]))
def test_gelu(data, shape, form):
    g = Written(18)
    x, draw = g.input("x", shape), data.draw
    if form == "erf":
        inside = g.Erf(draw(st.sampled_from([lambda: g.Div(x, 2**0.5), lambda: g.Mul(x, 0.5**0.5)]))())
    elif form == "tanh":
        cube = draw(st.sampled_from([lambda: g.Pow(x, 3.0), lambda: times(g, draw, x, x, x)]))()
        inside = g.Tanh(times(g, draw, g.const((2 / np.pi) ** 0.5), g.Add(*draw(st.permutations([x, times(g, draw, cube, g.const(0.044715))])))))
    else:
        inside = g.Tanh(times(g, draw, x, g.const(0.7978845608), g.Add(1.0, times(g, draw, x, x, g.const(0.044715)))))
    one = g.Add(*draw(st.permutations([inside, g.const(1.0)])))
    after = rewritten(g, times(g, draw, x, one, g.const(0.5)), Gelu=1)
    assert node(after, "Gelu")["approximate"] == (b"none" if form == "erf" else b"tanh")


@pytest.mark.parametrize("half, by, one", [(0.5, 2.0, 1.0), (0.51, 2**0.5, 1.0), (0.5, 2**0.5, 1.01)])
def test_what_is_no_gelu(half, by, one):
    g = Written()
    x = g.input("x", (3, 4))
    untouched(g, g.Mul(g.Mul(x, g.Add(one, g.Erf(g.Div(x, by)))), half))


def test_a_division_by_zero_is_left_alone():
    g = Written()
    x = g.input("x", (3, 4))
    model = g.model(g.Mul(g.Div(x, 0.0), g.Sigmoid(x)))
    assert kinds(rewrite(model)) == kinds(model)


def test_values_that_graphs_inside_nodes_take_stay():
    """Both branches of an If take the sigmoid that a Swish would swallow, and an Identity in front of them."""
    g = Written()
    x, flag = g.input("x", (3,)), g.input("flag", (), np.bool_)
    gate, same = g.Sigmoid(x), g.Identity(x)
    branch = [onnx.helper.make_graph([onnx.helper.make_node(k, [gate, same], ["r"])], k, [], [onnx.helper.make_tensor_value_info("r", 1, [3])])
              for k in ("Add", "Sub")]
    g.nodes.append(onnx.helper.make_node("If", [flag], ["chosen"], then_branch=branch[0], else_branch=branch[1]))
    untouched(g, g.Mul(x, gate), "chosen")


def test_constants_are_computed_but_quantized_weights_are_kept():
    g = Written()
    x = g.input("x", (2, 3))
    w = g.DequantizeLinear(g.const(np.ones((3, 3), np.int8)), 0.5)
    n = g.Gather(g.Shape(x), g.const(np.array(1)))
    y = g.MatMul(g.Mul(x, g.Cast(n, to=TensorProto.FLOAT)), w)
    rewritten(g, g.Mul(y, g.Sigmoid(y)), Mul=1, DequantizeLinear=1, MatMul=1, Swish=1)


def test_a_model_in_which_nothing_is_recognised_is_returned():
    g = Written(17)
    model = g.model(g.Identity(g.Relu(g.input("x", (2, 3)))))
    assert rewrite(model) is model
