"""GGUF files of Hugging Face checkpoints, written with the public writer as llama.cpp's converter does."""
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.frontends.rope import SCALINGS, rope_parameters

ARCH = gguf.MODEL_ARCH
ARCHITECTURES = {"llama": ARCH.LLAMA, "llama4_text": ARCH.LLAMA4, "mistral": ARCH.LLAMA, "mixtral": ARCH.LLAMA, "qwen2": ARCH.QWEN2,
                 "qwen3": ARCH.QWEN3, "qwen3_moe": ARCH.QWEN3MOE, "smollm3": ARCH.SMOLLM3, "olmo2": ARCH.OLMO2}
PERMUTED = ("llama", "mistral", "mixtral", "smollm3")       # families whose converter reorders the rows of Q and K


def write_gguf(folder: Path, path: Path, kind: Kind, **changes: Any) -> Path:
    """A GGUF file of a folder: matrices in a format, norms, biases and routers in f32. changes: metadata that replaces the right one, by
    key with `__` for `.`; None leaves a key out."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    arch = gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config["model_type"]]]
    metadata = {key.replace("ARCH", arch): value for key, value in _metadata(config).items()} | {k.replace("__", "."): v for k, v in changes.items()}
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if value is not None:
            kinds = {float: writer.add_float32, list: writer.add_array, str: writer.add_string, bool: writer.add_bool}
            add = kinds.get(type(value), writer.add_uint32)
            add(key, value)
    # qwen3moe knows no dense layers, though transformers does
    maps = [gguf.get_tensor_name_map(a, config["num_hidden_layers"]) for a in (ARCHITECTURES[config["model_type"]], ARCH.QWEN3)]
    for name, array in _tensors(config, {n: t.array().astype(np.float32) for n, t in checkpoint.tensors.items()}):
        found = (m.get_name(name, try_suffixes=(".weight", ".bias")) for m in maps)
        stored = name if name == "rope_freqs.weight" else next(filter(None, found))
        exact = array.ndim == 1 or "ffn_gate_inp" in stored
        data = np.ascontiguousarray(array) if exact else gguf.quants.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(stored if stored.endswith((".weight", ".bias")) else f"{stored}.weight", data, raw_dtype=Kind.F32 if exact else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(c: dict[str, Any]) -> dict[str, Any]:
    c = {"head_dim": c["hidden_size"] // c["num_attention_heads"], **c}
    found = {"ARCH.block_count": c["num_hidden_layers"], "ARCH.context_length": c["max_position_embeddings"],
             "ARCH.embedding_length": c["hidden_size"], "ARCH.attention.head_count": c["num_attention_heads"],
             "ARCH.attention.head_count_kv": c["num_key_value_heads"], "ARCH.attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
             "ARCH.rope.freq_base": float(c["rope_parameters"]["rope_theta"]), "ARCH.rope.dimension_count": c["head_dim"],
             "ARCH.attention.key_length": c["head_dim"], "ARCH.attention.value_length": c["head_dim"],
             "ARCH.feed_forward_length": c["intermediate_size"]}
    if c["model_type"] == "llama4_text":
        found |= {"ARCH.feed_forward_length": c["intermediate_size_mlp"], "ARCH.expert_feed_forward_length": c["intermediate_size"],
                  "ARCH.expert_count": c["num_local_experts"], "ARCH.expert_used_count": c["num_experts_per_tok"],
                  "ARCH.interleave_moe_layer_step": c["interleave_moe_layer_step"],
                  "tilewright.attention.chunk_size": c["attention_chunk_size"], "tilewright.attention.floor_scale": c["floor_scale"],
                  "tilewright.attention.attn_scale": c["attn_scale"]}
    if c["model_type"] in ("mixtral", "qwen3_moe"):
        found |= {"ARCH.expert_count": c["num_local_experts"], "ARCH.expert_used_count": c["num_experts_per_tok"]}
    if c["model_type"] == "qwen3_moe":
        found |= {"ARCH.expert_feed_forward_length": c["moe_intermediate_size"], "ARCH.expert_weights_norm": c["norm_topk_prob"]}
    if c["model_type"] == "smollm3":
        found |= {"tilewright.no_rope_layer_interval": c["no_rope_layer_interval"]}
    if c["model_type"] in ("mistral", "mixtral"):
        found |= {"ARCH.attention.sliding_window": c["sliding_window"]}
    return found


def _tensors(c: dict[str, Any], arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """As the converter leaves them: Q and K of some with their rows in the order of interleaved RoPE, experts one projection at a time
    as [experts, out, in], scaled frequencies as what the plain ones are divided by."""
    for name, array in _stacked(arrays).items():
        if name.endswith("gate_up_proj"):
            for part, half in zip(("gate_proj", "up_proj"), np.split(array.swapaxes(1, 2), 2, axis=1), strict=True):
                yield name.replace("gate_up_proj", part), half
        elif name.endswith("experts.down_proj"):
            yield name, array.swapaxes(1, 2)
        elif c["model_type"] in PERMUTED and (heads := {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])):
            yield name, array.reshape(c[heads], 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        else:
            yield name, array
    parameters = rope_parameters(c)
    if parameters["rope_type"] != "default" or "inv_freq_dtype" in parameters:
        dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        plain, scaled = (SCALINGS[kind](parameters, dim) for kind in ("default", parameters["rope_type"]))
        if parameters.get("inv_freq_dtype"):
            scaled = scaled.astype(ml_dtypes.bfloat16)
        yield "rope_freqs.weight", (plain / scaled.astype(np.float64)).astype(np.float32)


def _stacked(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With the matrices of all experts as one, without the number in the name."""
    found: dict[str, list[np.ndarray]] = {}
    for name in sorted(arrays, key=lambda n: [int(part) if part.isdigit() else 0 for part in n.split(".")]):
        found.setdefault(re.sub(r"\.experts\.\d+\.", ".experts.", name), []).append(arrays[name])
    return {name: np.stack(parts) if ".experts." in name and len(parts) > 1 else parts[0] for name, parts in found.items()}
