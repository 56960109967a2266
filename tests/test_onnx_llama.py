"""A llama as exporters write it (tests/export_onnx.py): after rewriting it consists of a decoder's operators and computes the truth."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_graphs import OPSET, kinds
from tilewright.frontends.onnx_rewriting import rewrite

DATA = Path(__file__).parent / "data"
EXPORTS = sorted((DATA / "onnx").glob("llama-*.onnx"))
GATED = {"SwiGLU": 4} if OPSET >= 28 else {"Swish": 4, "Mul": 4}
DECODER = {"Gather": 1, "RMSNormalization": 9, "MatMul": 29, "RotaryEmbedding": 8, "Attention": 4, "Add": 8, **GATED}


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
