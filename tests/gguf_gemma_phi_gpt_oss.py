"""GGUF files of Gemma 2 and 3, Phi-3 and gpt-oss, written with the public writer as llama.cpp's converter does."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from tilewright.frontends.checkpoint import open_checkpoint

ARCHITECTURES = {"gemma2": gguf.MODEL_ARCH.GEMMA2, "gemma3_text": gguf.MODEL_ARCH.GEMMA3, "phi3": gguf.MODEL_ARCH.PHI3,
                 "gpt_oss": gguf.MODEL_ARCH.GPT_OSS}


def write_family(folder: Path, path: Path, kind: Kind, **changes: Any) -> Path:
    """Matrices in a format (MXFP4 blocks stay what they are), norms, biases and routers in f32. changes: metadata that replaces the right
    one, by key with `__` for `.`."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    architecture = ARCHITECTURES[config["model_type"]]
    arch, names = gguf.MODEL_ARCH_NAMES[architecture], gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (_metadata(config) | {k.replace("__", "."): v for k, v in changes.items()}).items():
        {float: writer.add_float32, str: writer.add_string}.get(type(value), writer.add_uint32)(f"{arch}.{key}", value)
    for name, array in _tensors(config, checkpoint.tensors):
        stored = name if name.startswith("rope_factors") else names.get_name(name, try_suffixes=(".weight", ".bias"))
        exact = array.ndim == 1 or "router" in name or name.endswith(".bias")
        data = np.ascontiguousarray(array)
        if data.dtype == np.uint8:
            writer.add_tensor(stored, data, raw_dtype=Kind.MXFP4)
        else:
            writer.add_tensor(stored, data if exact else gguf.quants.quantize(data, kind), raw_dtype=Kind.F32 if exact else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(c: dict[str, Any]) -> dict[str, Any]:
    dim = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    rope = c["rope_parameters"]
    found = {"block_count": c["num_hidden_layers"], "context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"],
             "feed_forward_length": c["intermediate_size"], "attention.head_count": c["num_attention_heads"],
             "attention.head_count_kv": c["num_key_value_heads"], "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
             "attention.sliding_window": c["sliding_window"] or 0}
    full = rope.get("full_attention", rope)
    found["rope.freq_base"] = float(full["rope_theta"])
    if full["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": full["rope_type"], "rope.scaling.factor": float(full["factor"])}
    if c["model_type"] == "phi3":
        found["rope.dimension_count"] = int(dim * rope["partial_rotary_factor"])
        found["rope.scaling.original_context_length"] = c["original_max_position_embeddings"]
        stretch = c["max_position_embeddings"] / c["original_max_position_embeddings"]
        if "long_factor" in rope:
            found["rope.scaling.attn_factor"] = float((1 + np.log(stretch) / np.log(c["original_max_position_embeddings"])) ** 0.5)
        return found
    found |= {"attention.key_length": dim, "attention.value_length": dim}
    if c["model_type"] == "gpt_oss":
        return found | {"rope.scaling.original_context_length": rope["original_max_position_embeddings"], "expert_count": c["num_local_experts"],
                        "expert_used_count": c["num_experts_per_tok"], "expert_feed_forward_length": c["intermediate_size"]}
    return found | {f"{what}_logit_softcapping": float(cap) for what in ("attn", "final") if (cap := c[f"{what}_logit_softcapping"])}


def _tensors(c: dict[str, Any], tensors) -> Iterator[tuple[str, np.ndarray]]:
    """As the converter leaves them: Gemma's norms with the 1 that is added to them; gpt-oss' gate and up by themselves, [experts, out, in]."""
    for name, tensor in tensors.items():
        array = tensor.rows() if tensor.format == "mxfp4" else tensor.array().astype(np.float32)
        if name.endswith("norm.weight") and c["model_type"].startswith("gemma"):
            yield name, array + 1
        elif name.endswith("sinks"):
            yield f"{name}.weight", array
        elif ".experts." in name:
            bias = name.endswith("_bias")
            array = array if bias or array.dtype == np.uint8 else array.swapaxes(1, 2)
            stem, suffix = name.removesuffix("_bias"), ".bias" if bias else ".weight"
            if stem.endswith("down_proj"):
                yield stem + suffix, array
            else:
                for part, start in (("gate_proj", 0), ("up_proj", 1)):
                    yield stem.replace("gate_up_proj", part) + suffix, array[:, start::2]
        else:
            yield name, array
    if "long_factor" in c["rope_parameters"]:
        for which in ("long", "short"):
            yield f"rope_factors_{which}.weight", np.array(c["rope_parameters"][f"{which}_factor"], np.float32)
