"""ONNX files from outside: sessions of any graph, exported decoders against truth, packages, and what is said of bad files."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright import CheckpointError, GraphError, TensorError
from tilewright.__main__ import main
from tilewright.api import record_of
from tilewright.compiler.device import REFERENCE
from tilewright.sessions import Session, compile_onnx

onnx = pytest.importorskip("onnx", reason="the ONNX frontend needs the package onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

DATA = Path(__file__).parent / "data"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
BOTH = pytest.mark.parametrize("device", ["auto", "reference"])


def value(name: str, shape, dtype: int = FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, weights=(), opset: int = 20, functions=()):
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), [numpy_helper.from_array(a, n) for n, a in weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("local", 1)], functions=list(functions))


def perceptron():
    """relu(x w) + b, x [batch, 4]."""
    w, b = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([1, -50, 0.5], np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "b"], ["sum"]), helper.make_node("Relu", ["sum"], ["y"])]
    return model(nodes, [value("x", ["batch", 4])], [value("y", ["batch", 3])], [("w", w), ("b", b)]), lambda x: np.maximum(x @ w + b, 0)


@pytest.fixture
def opened():
    """Sessions that are closed when the test is over."""
    made = []

    def make(source, device: str = "auto") -> Session:
        made.append(tilewright.session(source, device))
        return made[-1]
    yield make
    for session in made:
        session.close()


@BOTH
def test_a_session_compiles_for_the_shapes_that_come(opened, device):
    proto, meaning = perceptron()
    session = opened(proto, device)
    assert session.inputs == {"x": ("float32", ["batch", 4])}
    for rows in (1, 7, 1, 40):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_allclose(session.run({"x": x})["y"], meaning(x), rtol=1e-4, atol=1e-4)
    assert len(session._players) == 3


@BOTH
def test_shapes_that_are_computed_are_numbers(opened, device):
    """Flatten as exporters write it: Shape, Gather, Unsqueeze, Concat, Reshape."""
    nodes = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Gather", ["shape", "zero"], ["rows"]),
             helper.make_node("Unsqueeze", ["rows", "axis"], ["rows1"]), helper.make_node("Concat", ["rows1", "rest"], ["wanted"], axis=0),
             helper.make_node("Reshape", ["x", "wanted"], ["flat"]), helper.make_node("Neg", ["flat"], ["y"])]
    weights = [("zero", np.array(0)), ("axis", np.array([0])), ("rest", np.array([-1]))]
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(opened(model(nodes, [value("x", ["n", 3, 4])], [value("y", None)], weights), device).run({"x": x})["y"],
                                  -x.reshape(2, 12))


def test_inputs_that_decide_shapes_are_compiled_for(opened):
    session = opened(model([helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)], [value("x", [2, 3]), value("axes", ["k"], INT64)],
                           [value("y", None)]))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for axes in ([0], [1], [0, 1], [0]):
        np.testing.assert_array_equal(session.run({"x": x, "axes": np.array(axes)})["y"], x.sum(tuple(axes)))
    assert len(session._players) == 3


@BOTH
@pytest.mark.parametrize("path", sorted((DATA / "onnx").glob("llama-*.onnx")), ids=lambda p: p.stem)
def test_an_exported_llama(opened, path, device):
    truth = np.load(DATA / "truth" / "llama" / "truth.npz")
    session = opened(path, device)
    got, = session.run({"input_ids": truth["token_ids"][None].astype(np.int64)}).values()
    assert np.abs(got[0] - truth["logits"]).max() < 1e-3
    if device == "auto" and session._gpu:
        player, = session._players.values()
        kernels = [s["kernel"].split("(")[0] for s in player.package.manifest["shaders"]]
        assert "attention" in kernels and "matmul" in kernels


def test_functions_of_the_model(opened):
    twice = helper.make_function("local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 20)])
    proto = model([helper.make_node("Twice", ["x"], ["t"], domain="local"), helper.make_node("Twice", ["t"], ["y"], domain="local")],
                  [value("x", [3])], [value("y", [3])], functions=[twice])
    assert opened(proto).run({"x": np.array([1, 2, 3], np.float32)})["y"].tolist() == [4, 8, 12]


def test_nodes_may_stand_in_any_order(opened):
    proto, meaning = perceptron()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(opened(proto).run({"x": x})["y"], meaning(x), rtol=1e-5)


@BOTH
def test_a_package_plays_alone(opened, tmp_path, device):
    proto, meaning = perceptron()
    onnx.save(proto, tmp_path / "model.onnx")
    tilewright.sessions.compile_onnx(tmp_path / "model.onnx", [record_of(opened(proto, device)._gpu)], {"batch": [5]}).save(tmp_path / "m.wgpu-llama")
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    for opener in (opened, tilewright.load):
        session = opener(tmp_path / "m.wgpu-llama")
        np.testing.assert_allclose(session.run({"x": x})["y"], meaning(x), rtol=1e-4, atol=1e-4)
        session.close()


def test_external_data(opened, tmp_path):
    proto, meaning = perceptron()
    onnx.save(proto, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(opened(tmp_path / "model.onnx").run({"x": x})["y"], meaning(x), rtol=1e-5)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match="keeps weights in files beside it"):
        tilewright.session(tmp_path / "model.onnx")


@pytest.mark.parametrize("damage, said", [(lambda b: b[:len(b) // 2], "only a piece of one|holds no graph|which nothing makes"),
                                          (lambda b: b"", "holds no graph"), (lambda b: b"\x00\xff" * 50, "no ONNX file")])
def test_bad_files(tmp_path, damage, said):
    proto, _ = perceptron()
    path = tmp_path / "bad.onnx"
    path.write_bytes(damage(proto.SerializeToString()))
    with pytest.raises(CheckpointError, match=said):
        compile_onnx(path, [REFERENCE], {"x": (1, 4)})


def node(op: str, inputs: str, outputs: str, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


@pytest.mark.parametrize("nodes, said", [
    ([node("Add", "x z", "y"), node("Neg", "y", "z")], "cyclic"),
    ([node("Add", "x nowhere", "y")], "reads nowhere, which nothing makes"),
    ([node("Frobnicate", "x", "t"), node("Twist", "t", "y", domain="com.me")], "uses Frobnicate, com.me.Twist, which Tilewright does not know"),
    ([node("Transpose", "x", "y", perm=[0, 0, 5])], "Transpose"),
    ([node("Concat", "x x", "y", axis=7)], "axis 7 is not one of 2"),
    ([node("RandomNormalLike", "x", "y")], "RandomNormalLike"),
])
def test_bad_graphs(opened, nodes, said):
    session = opened(model(nodes, [value("x", [2, 3])], [value("y", None)]), "reference")
    with pytest.raises((CheckpointError, GraphError), match=said):
        session.run({"x": np.zeros((2, 3), np.float32)})


def test_bad_feeds(opened):
    session = opened(model([node("Neg", "x", "y")], [value("x", ["n", 3], INT64)], [value("y", None, INT64)]))
    assert session.run({"x": np.array([[1, -2, 3]])})["y"].dtype == np.int64
    good = np.zeros((1, 3), np.int64)
    for feeds, said in (({}, "the input x is missing"), ({"x": good.astype(float)}, "is int64, not float64"), ({"x": good[:, :2]}, "has the shape"),
                        ({"x": good, "z": good}, "has no input z"), ({"x": good + 2**40}, "does not fit 32 bits")):
        with pytest.raises(TensorError, match=said):
            session.run(feeds)


def test_constants_that_do_not_fit(opened):
    session = opened(model([node("Add", "x big", "y")], [value("x", [1], INT64)], [value("y", None, INT64)], [("big", np.array([2**33, 1]))]))
    with pytest.raises(CheckpointError, match="8,589,934,592 does not fit 32 bits"):
        session.run({"x": np.array([1])})


def test_open_shapes_and_contents_cannot_be_compiled_ahead(tmp_path):
    proto, _ = perceptron()
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match=r"x has the open shape \[batch, 4\]; say one with --shape x=1,128"):
        tilewright.compile(tmp_path / "model.onnx", "reference")
    with pytest.raises(CheckpointError, match="has the shape"):
        compile_onnx(tmp_path / "model.onnx", [REFERENCE], {"x": (1, 5)})
    onnx.save(model([node("Reshape", "x s", "y")], [value("x", [4]), value("s", [2], INT64)], [value("y", None)]), tmp_path / "reshape.onnx")
    with pytest.raises(CheckpointError, match="depends on the contents of s"):
        tilewright.compile(tmp_path / "reshape.onnx", "reference")


def test_older_operator_sets(opened):
    """Attributes that became inputs are read; before opset 7 operators broadcast otherwise."""
    def clipped(opset: int):
        return model([node("Clip", "x", "y", min=0.5)], [value("x", [2])], [value("y", None)], opset=opset)
    assert opened(clipped(10), "reference").run({"x": np.array([0, 2], np.float32)})["y"].tolist() == [0.5, 2]
    for opset, said in ((6, "convert it to 7 or above"), (99, "pip install -U onnx")):
        with pytest.raises(CheckpointError, match=said):
            opened(clipped(opset))


def test_the_command_line(tmp_path, capsys):
    proto, meaning = perceptron()
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(SystemExit) as ended:
        main(["compile", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "m.wgpu-llama"), "--shape", "batch=2", "--target", "reference"])
    assert not ended.value.code
    session = tilewright.session(tmp_path / "m.wgpu-llama")
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], meaning(x), rtol=1e-5)
    session.close()
    for words, said in ((["compile", "-o", str(tmp_path / "n.wgpu-llama"), "--shape", "x=b"], "--shape x=b is no shape: give it as NAME=1,128"),
                        (["generate", "--prompt", "Once"], "has no text to go on from")):
        with pytest.raises(SystemExit, match="1"):
            main([words[0], str(tmp_path / "model.onnx"), *words[1:]])
        assert said in " ".join(capsys.readouterr().err.split())
