"""Graphs written by hand, in sessions: what is fed, given and kept, what is refused, and rows for batches."""
import numpy as np
import pytest
import tilewright
from hypothesis import given, settings
from hypothesis import strategies as st
from tilewright import Builder, GraphError
from tilewright.compiler.indexing import row_major
from tilewright.compiler.ops import evaluate
from tilewright.compiler.standalone import standalone
from tilewright.compiler.verify import verify
from tilewright.frontends.onnx_rows import as_rows
from tilewright.testing import check_graph, random_feeds

DEVICES = pytest.mark.parametrize("device", ["auto", "reference"])


@DEVICES
def test_outputs_go_by_their_names(gpu, device):
    """Temporaries, integers, one that is also used inside, and a state that is continued."""
    g = Builder()
    x, n = g.input("x", (3, 8), "f32"), g.input("n", (3,))
    y = g.silu(x)
    z = g.add(y, x)
    kept = g.store(g.state("kept", (5, 8)), z)
    looked = g.gather(g.weight("table", (6, 8)), n)
    row = g.view(z, shape=(8,), strides=(1,), offset=8)
    graph = g.graph(y, z, kept, looked, row)
    feeds = {"x": np.arange(24, dtype=np.float32).reshape(3, 8) / 10, "n": np.array([5, 0, 2], np.int32)}
    table = np.random.default_rng(0).standard_normal((6, 8), np.float32)
    session = tilewright.session(graph, device=device, weights={"table": table})
    try:
        got = session.run(feeds)
    finally:
        session.close()
    want = feeds["x"] / (1 + np.exp(-feeds["x"]))
    assert list(got) == [y, z, kept, looked, row] and got[row].shape == (8,)
    np.testing.assert_array_equal(got[row], got[z][1])
    np.testing.assert_allclose(got[y], want, atol=1e-6)
    np.testing.assert_allclose(got[z], want + feeds["x"], atol=1e-6)
    np.testing.assert_allclose(got[kept], np.concatenate([want + feeds["x"], np.zeros((2, 8))]), atol=1e-6)
    np.testing.assert_array_equal(got[looked], table[feeds["n"]])


@DEVICES
def test_states_are_kept_from_run_to_run(gpu, device):
    g = Builder()
    x, position, slot = g.input("x", (1, 2, 4), "f32"), g.input("position", (1,)), g.input("slot", (1,))
    cache = g.cache_write(g.state("cache", (1, 2, 3, 4)), x, position, slot)
    session = tilewright.session(g.graph(cache), device=device)
    want = np.zeros((1, 2, 3, 4), np.float32)
    try:
        for t in (0, 2, 1):
            row = np.full((1, 2, 4), t + 1, np.float32)
            got = session.run({"x": row, "position": np.array([t], np.int32), "slot": np.zeros(1, np.int32)})[cache]
            want[0, :, t] = row[0]
            np.testing.assert_array_equal(got, want)
    finally:
        session.close()


def test_what_is_refused():
    g = Builder()
    graph = g.graph(g.matmul(g.input("x", (2, 8), "f32"), g.weight("w", (4, 8))))
    with pytest.raises(GraphError, match="needs 1 weights, and w is missing"):
        tilewright.session(graph, device="reference")
    with pytest.raises(GraphError, match=r"%w has the shape \[8, 4\] where the graph needs \[4, 8\]"):
        tilewright.session(graph, device="reference", weights={"w": np.zeros((8, 4), np.float32)})
    session = tilewright.session(graph, device="reference", weights={"w": np.zeros((4, 8), np.float32)})
    with pytest.raises(tilewright.TensorError, match="the input x is missing"):
        session.run({})
    with pytest.raises(tilewright.TensorError, match=r"x has the shape \[2, 8\], not \[3, 8\]"):
        session.run({"x": np.zeros((3, 8), np.float32)})
    half = Builder()
    with pytest.raises(GraphError, match="what is fed is f32 or i32"):
        standalone(half.graph(half.silu(half.input("x", (2, 8), "f16"))))
    packed = Builder()
    cache = packed.cache_write(packed.state("c", (1, 1, 4, 32), layout="q8_cache"), packed.input("x", (1, 1, 32), "f32"),
                               packed.input("p", (1,)), packed.input("s", (1,)), rounding="q8_cache")
    with pytest.raises(GraphError, match="which is packed"):
        standalone(packed.graph(cache))


def test_check_graph_finds_what_is_off(gpu, monkeypatch):
    """A graph that computes something else than it says fails, by the name of its output."""
    g = Builder()
    y = g.mul(g.silu(g.input("x", (3, 8), "f32")), g.weight("w", (8,)))
    assert check_graph(g.graph(y))[y].shape == (3, 8)
    monkeypatch.setattr("tilewright.testing.evaluate", lambda graph, feeds: {n: a + 0.01 for n, a in evaluate(graph, feeds).items()})
    with pytest.raises(AssertionError, match=f"%{y}"):
        check_graph(g.graph(y))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), batch=st.integers(1, 3), n=st.integers(1, 4), heads=st.integers(1, 3))
def test_rows_mean_the_same(data, batch, n, heads):
    """Random chains of ops over [batch, n, width], in other shapes in between."""
    g, width = Builder(), 4 * heads
    shapes = [(batch, n, width), (batch * n, width), (batch, n, heads, 4), (1, batch * n, width), (batch * n, heads, 4), (batch * n * width,)]
    values = [g.state("x", shapes[0])]
    for i in range(data.draw(st.integers(2, 10))):
        x = data.draw(st.sampled_from(values))
        shape = g.shape(x)
        kind = data.draw(st.sampled_from(["view", "silu", "add", "bias", "rms_norm", "matmul", "turn"]))
        if kind == "view":
            to = data.draw(st.sampled_from(shapes))
            values.append(g.view(x, shape=to, strides=row_major(to), offset=0))
        elif kind == "turn" and len(shape) > 1:
            order = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
            values.append(g.view(x, shape=tuple(shape[a] for a in order), strides=tuple(row_major(shape)[a] for a in order), offset=0))
        elif kind == "add":
            values.append(g.add(x, data.draw(st.sampled_from([v for v in values if g.shape(v) == shape]))))
        elif kind == "bias":
            values.append(g.add(x, g.weight(f"b{i}", shape[data.draw(st.integers(0, len(shape) - 1)):])))
        elif kind == "rms_norm":
            values.append(g.rms_norm(x, eps=1e-5))
        elif kind == "matmul" and len(shape) > 1:
            values.append(g.matmul(x, g.weight(f"w{i}", (shape[-1], shape[-1]))))
        else:
            values.append(g.silu(x))
    last = values[-1] if len(g.shape(values[-1])) > 1 else g.view(values[-1], shape=(1, batch * n * width), strides=(batch * n * width, 1), offset=0)
    graph = g.graph(g.store(g.state("out", g.shape(last)), last))
    after = as_rows(graph)
    verify(after, "as_rows")
    feeds = random_feeds(graph)
    (want,), (got,) = evaluate(graph, feeds).values(), evaluate(after, {k: a.reshape(after.values[k].shape) for k, a in feeds.items()}).values()
    np.testing.assert_allclose(got.ravel(), want.ravel(), rtol=1e-5, atol=1e-5)
