"""Make tests/data/onnx: the llama of tests/data/truth as three exporters write it, over one file of weights.

    python tests/export_onnx.py tests/data/truth/llama tests/data/onnx

Needs torch, transformers, onnx and onnxscript; the files at hand were made with 2.13.0, 5.23.0, 1.23.2 and 0.7.2. Frequencies of RoPE are
rounded to bfloat16 as those of the truth were (`inv_freq_dtype` in its config.json). Tensors above 1,024 elements lie in weights.bin, each
once; traces of where a node came from are dropped.
"""
from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, external_data_helper, numpy_helper
from transformers import AutoModelForCausalLM

LENGTH = torch.export.Dim("n", min=2, max=512)


class Logits(torch.nn.Module):
    """input_ids [1, n] to logits [1, n, vocabulary]; a mask is given where the exporter cannot follow how transformers makes it."""

    def __init__(self, model: torch.nn.Module, masked: bool):
        super().__init__()
        self.model, self.masked = model, masked

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        n = input_ids.shape[1]
        mask = torch.full((n, n), torch.finfo(torch.float32).min).triu(1)[None, None] if self.masked else None
        return self.model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits


def loaded(folder: Path, attention: str, masked: bool = False) -> Logits:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    rope = model.model.rotary_emb
    rope.inv_freq = rope.inv_freq.to(torch.bfloat16).float()
    return Logits(model, masked)


def exported(module: Logits, dynamo: bool, opset: int, ids: torch.Tensor) -> onnx.ModelProto:
    lengths = {"dynamic_shapes": {"input_ids": {1: LENGTH}}} if dynamo else {"dynamic_axes": {n: {1: "n"} for n in ("input_ids", "logits")}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        extra = {"external_data": False, "verbose": False} if dynamo else {}
        torch.onnx.export(module, (ids,), path, dynamo=dynamo, opset_version=opset, input_names=["input_ids"], output_names=["logits"],
                          **lengths, **extra)
        return onnx.load(path)


def spare(model: onnx.ModelProto, weights: dict[bytes, int]) -> None:
    """Drop traces, and point large tensors to where their bytes are in weights.bin; new ones are entered there."""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    for tensor in model.graph.initializer:
        data = numpy_helper.to_array(tensor).tobytes()
        if len(data) > 4096:
            offset = weights.setdefault(data, sum(map(len, weights)))
            tensor.ClearField("float_data")
            tensor.raw_data = data
            external_data_helper.set_external_data(tensor, "weights.bin", offset=offset, length=len(data))
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL


def main(folder: Path, out: Path) -> None:
    truth = np.load(folder / "truth.npz")
    ids = torch.tensor(truth["token_ids"][None].astype(np.int64))
    weights: dict[bytes, int] = {}
    for name, attention, dynamo, opset in (("dynamo-18", "sdpa", True, 18), ("dynamo-23", "sdpa", True, 23), ("torchscript-17", "eager", False, 17)):
        module = loaded(folder, attention, masked=not dynamo)
        with torch.no_grad():
            assert np.abs(module(ids)[0].numpy() - truth["logits"]).max() < 1e-4
        model = exported(module, dynamo, opset, ids)
        spare(model, weights)
        (out / f"llama-{name}.onnx").write_bytes(model.SerializeToString())
    (out / "weights.bin").write_bytes(b"".join(weights))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
