"""Graphs of ONNX written by hand, as exporters write them."""
from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tilewright.frontends.onnx_rewriting import rewrite

OPSET = onnx.defs.onnx_opset_version()


class Written:
    """g = Written(); x = g.input("x", (2, 3)); m = g.model(g.Mul(x, g.Sigmoid(x))); numbers become constants."""

    def __init__(self, opset: int = min(28, OPSET)):
        self.nodes, self.inputs, self.tensors, self.opset, self.feeds = [], [], [], opset, {}
        self.rng = np.random.default_rng(0)

    def input(self, name: str, shape: tuple, dtype=np.float32, known: tuple | None = None) -> str:
        """known: the shape as the model states it, with names for unknown dimensions."""
        array = self.rng.standard_normal(shape) if np.dtype(dtype).kind == "f" else self.rng.integers(0, 2, shape)
        self.feeds[name] = array.astype(dtype)
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), known or shape))
        return name

    def const(self, value, dtype=None) -> str:
        array = np.asarray(value, dtype or (np.float32 if isinstance(value, float) else None))
        self.tensors.append(numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array, f"c{len(self.tensors)}"))
        return self.tensors[-1].name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def weight(self, *shape: int, dtype=np.float32) -> str:
        return self.const(self.rng.standard_normal(shape).astype(dtype))

    def op(self, kind: str, *inputs, outputs: int = 1, **attrs):
        names = [f"{kind}{len(self.nodes)}.{i}" for i in range(outputs)]
        given = [i if isinstance(i, str) else self.const(i) for i in inputs]
        self.nodes.append(helper.make_node(kind, given, names, **attrs))
        return names[0] if outputs == 1 else names

    def __getattr__(self, kind: str):
        return lambda *inputs, **attrs: self.op(kind, *inputs, **attrs)

    def part(self, x: str, start: int, stop: int, axis: int = -1, step: int = 1) -> str:
        return self.Slice(x, self.ints(start), self.ints(stop), self.ints(axis), self.ints(step))

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "written", self.inputs, [helper.make_empty_tensor_value_info(o) for o in outputs], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(model).run(None, feeds)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def node(model: onnx.ModelProto, kind: str) -> dict:
    """The attributes of the only node of a kind."""
    found, = (n for n in model.graph.node if n.op_type == kind)
    return {a.name: helper.get_attribute_value(a) for a in found.attribute}


def rewritten(g: Written, *outputs: str, rtol: float = 1e-4, **wanted: int) -> onnx.ModelProto:
    """The model after rewriting, which computes the same, is valid, stays as it is, and consists of just so many nodes of each kind."""
    model = g.model(*outputs)
    before = model.SerializeToString(deterministic=True)
    after = rewrite(model)
    assert model.SerializeToString(deterministic=True) == before, "the model that was given changed"
    onnx.checker.check_model(after, full_check=True)
    for want, got in zip(run(model, g.feeds), run(after, g.feeds), strict=True):
        assert want.dtype == got.dtype and want.shape == got.shape
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=rtol, atol=rtol)
    assert rewrite(after).SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True), "not idempotent"
    assert kinds(after) == Counter(wanted), kinds(after)
    return after


def untouched(g: Written, *outputs: str) -> None:
    """Rewriting leaves every node of the graph as it is, though it finds something elsewhere."""
    nodes = kinds(g.model(*outputs))
    bait = g.input("bait", (3,))
    model = g.model(*outputs, g.Mul(bait, g.Sigmoid(bait)))
    after = rewrite(model)
    assert kinds(after) == nodes + Counter({"Swish": 1})
    for want, got in zip(run(model, g.feeds)[:-1], run(after, g.feeds)[:-1], strict=True):
        np.testing.assert_array_equal(got, want)
