"""A llama as exporters write it (tests/export_onnx.py): after rewriting it consists of a decoder's operators and computes the truth."""
from __future__ import annotations

import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import tilewright
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator
from onnx_graphs import OPSET, Written, kinds
from tilewright.api import compile_for, record_of
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.frontends.onnx_rewriting import rewrite
from tilewright.sessions import compile_onnx, compile_tensors

DATA = Path(__file__).parent / "data"
EXPORTS = sorted((DATA / "onnx").glob("llama-*.onnx"))
GATED = {"SwiGLU": 4} if OPSET >= 28 else {"Swish": 4, "Mul": 4}
DECODER = {"Gather": 1, "RMSNormalization": 9, "MatMul": 29, "RotaryEmbedding": 8, "Attention": 4, "Add": 8, **GATED}
RECOGNISED = {"Attention", "RotaryEmbedding", "RMSNormalization", "LayerNormalization", "Swish", "SwiGLU", "Gelu"}


@pytest.fixture(scope="module")
def truth():
    return np.load(DATA / "truth" / "llama" / "truth.npz")


def sized(path: Path, n: int, weights: bool = True) -> onnx.ModelProto:
    """The model for so many tokens."""
    model = onnx.load(path, load_external_data=weights)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = n
    del model.graph.value_info[:]
    return model


def logits(model: onnx.ModelProto, ids: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(model).run(None, {"input_ids": ids[None].astype(np.int64)})[0][0]


@pytest.mark.parametrize("path", EXPORTS, ids=lambda p: p.stem)
def test_an_export_becomes_a_decoder(path, truth):
    after = rewrite(sized(path, 90))
    onnx.checker.check_model(after, full_check=True)
    assert kinds(after) == DECODER
    assert np.abs(logits(after, truth["token_ids"]) - truth["logits"]).max() <= 1e-3
    attributes = {a.name: onnx.helper.get_attribute_value(a) for n in after.graph.node if n.op_type == "Attention" for a in n.attribute}
    assert {n: attributes[n] for n in ("is_causal", "q_num_heads", "kv_num_heads", "scale")} == {
        "is_causal": 1, "q_num_heads": 4, "kv_num_heads": 2, "scale": 0.25}


@pytest.mark.parametrize("path", EXPORTS, ids=lambda p: p.stem)
def test_weights_need_not_be_loaded(path):
    """Large models are recognised without their weights, which stay where they lie."""
    after = rewrite(sized(path, 7, weights=False))
    assert kinds(after) == DECODER
    assert sum(t.data_location == onnx.TensorProto.EXTERNAL for t in after.graph.initializer) >= 29


@pytest.mark.parametrize("path", EXPORTS, ids=lambda p: p.stem)
def test_any_length_stays_right(path, truth):
    """With a length that has a name, masks and tables stay computed, and what was recognised holds for all."""
    after = rewrite(onnx.load(path))
    known = kinds(after)
    assert known["RMSNormalization"] == 9 and (known["Attention"], known["RotaryEmbedding"]) == ((0, 0) if "torchscript" in path.stem else (4, 8))
    for n in (2, 90):
        assert np.abs(logits(after, truth["token_ids"][:n]) - truth["logits"][:n]).max() <= 1e-3


def dispatches(package, program: str) -> list[str]:
    """The kernels that a program's dispatches run, without their schedules."""
    manifest = package.manifest
    return [manifest["shaders"][d["shader"]]["kernel"].split("(")[0] for d in manifest["programs"][program]["dispatches"]]


@pytest.mark.parametrize("path", EXPORTS, ids=lambda p: p.stem)
def test_an_export_plays(path, truth, gpu):
    """In a session on the GPU, for several lengths."""
    session = tilewright.session(path)
    try:
        for n in (90, 7, 1):
            got = session.run({"input_ids": truth["token_ids"][None, :n].astype(np.int64)})["logits"]
            assert got.shape == (1, n, 256) and np.abs(got[0] - truth["logits"][:n]).max() <= 1e-3
    finally:
        session.close()


@pytest.mark.parametrize("n, program", [(90, "prefill_90"), (1, "decode_1")])
def test_an_export_runs_on_the_kernels_of_the_checkpoint(n, program, gpu):
    """Dispatch for dispatch what the same llama takes that was read from its folder; only the embedding is looked up as any tensor is."""
    device = record_of(gpu)
    for path in EXPORTS:
        ours = dispatches(compile_onnx(path, [device], {"input_ids": (1, n)}), "main")
        package = compile_for(open_checkpoint(DATA / "truth" / "llama"), device, context=n)
        theirs = dispatches(package, program)
        if program == "decode_1":       # whose cache may hold more than its own key, so that its attention is split
            theirs = ["attention" if k == "attention_split" else k for k in theirs if k != "attention_merge"]
            # and whose projections turn heads and fill caches themselves; what some exporters write has a dispatch for it
            assert [k for k in ours if k != "heads"] == ["elements", *theirs[1:]] and {"attention", "matvec"} < set(ours)
        else:       # whose last norm and projection are a program of their own
            assert ours == ["elements", *theirs[1:], "rms_norm", "matmul"] and {"rms_norm", "heads", "attention", "matmul"} < set(ours)


def test_an_export_plays_in_numpy(truth):
    session = tilewright.session(EXPORTS[0], device="reference")
    got = session.run({"input_ids": truth["token_ids"][None, :20].astype(np.int64)})["logits"][0]
    assert np.abs(got - truth["logits"][:20]).max() <= 1e-3


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("batch, window, positions", [(2, -1, False), (1, 2, True), (2, 2, True)])
def test_batches_windows_and_positions(interleaved, batch, window, positions, gpu):
    """The decoder's own ops for operators of ONNX, against the operators' meaning."""
    if window >= 0 and OPSET < 25:
        pytest.skip("the installed onnx knows no windows: they came with opset 25")
    g = Written()
    x = [g.input(name, (batch, 6, heads * 8)) for name, heads in (("q", 4), ("k", 2), ("v", 2))]
    angles = g.rng.standard_normal((9, 4) if positions else (batch, 6, 4)).astype(np.float32)
    at = [g.const(g.rng.integers(0, 9, (batch, 6)))] if positions else []
    cos, sin = g.const(np.cos(angles)), g.const(np.sin(angles))
    q, k = (g.RotaryEmbedding(y, cos, sin, *at, num_heads=heads, interleaved=interleaved) for y, heads in zip(x, (4, 2)))
    windows = {"left_window_size": window} if window >= 0 else {}
    model = g.model(g.Attention(q, k, x[2], is_causal=1, q_num_heads=4, kv_num_heads=2, scale=0.3, **windows))
    want = ReferenceEvaluator(model).run(None, g.feeds)[0]
    session = tilewright.session(model)
    try:
        (got,) = session.run(g.feeds).values()
        np.testing.assert_allclose(got, want, atol=1e-4)
        assert set(dispatches(compile_tensors(model, "it", [record_of(gpu)], {n: a.shape for n, a in g.feeds.items()})[0], "main")) <= {
            "heads", "attention", "attention_split", "attention_merge", "elements", "map"}
    finally:
        session.close()


def test_what_the_standard_takes_apart_is_put_together_again():
    """ONNX's own test cases of function bodies: where something is recognised in one, it gives what the case asks for."""
    found = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = re.compile("(attention|rotary|rms_norm|swi|layer_norm|gelu).*_expanded")
        cases = [c for c in load_model_tests(kind="node") if made.search(c.name)]
    for case in cases:
        after = rewrite(case.model)
        if after is case.model:
            continue
        found.update(kinds(after).keys() & RECOGNISED)
        for inputs, outputs in case.data_sets:
            got = ReferenceEvaluator(after).run(None, dict(zip((v.name for v in case.model.graph.input), inputs)))
            for have, want in zip(got, outputs):
                np.testing.assert_allclose(np.asarray(have, np.float64), np.asarray(want, np.float64), rtol=2e-3, atol=1e-4, err_msg=case.name)
    assert found.keys() >= {"Attention", "RotaryEmbedding", "RMSNormalization", "Swish"}, found
