"""The metadata of a GGUF file as the config.json that it stands for."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .checkpoint import Checkpoint, CheckpointError
from .models import family


@dataclass(frozen=True)
class Metadata:
    """Reads the keys of one architecture."""

    checkpoint: Checkpoint
    architecture: str

    def number(self, key: str, default: float | None = None) -> Any:
        """The number `{architecture}.key`, or a full key's such as tilewright.attention.chunk_size; one that all layers share."""
        full = key if key.startswith("tilewright.") else f"{self.architecture}.{key}"
        value = self.checkpoint.config.get(full, default)
        if value is None:
            raise CheckpointError(f"{self.checkpoint.path} lacks the key {full}; convert the model again")
        values = value if isinstance(value, list) and value else [value]
        if any(type(v) not in (int, float) for v in values):
            raise CheckpointError(f"{self.checkpoint.path}: {full} is {value!r}, not a number; convert the model again")
        if len(set(values)) > 1:
            raise CheckpointError(f"{self.checkpoint.path}: {full} differs between layers ({values[:4]} and on), which no model family here takes")
        return values[0]

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.number(key, default)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{self.checkpoint.path}: {self.architecture}.{key} is {value}, not a whole number above 0")
        return value


def config_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Keys as in config.json: those that all architectures share, and what the model file's `gguf` reads."""
    architecture = checkpoint.config.get("general.architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(f"{checkpoint.path}: the metadata names no general.architecture; convert the model again")
    module = family(architecture)
    if not hasattr(module, "gguf"):
        raise CheckpointError(f"{checkpoint.path}: GGUF files of {architecture} are not read; give the Hugging Face folder of the model")
    meta = Metadata(checkpoint, architecture)
    hidden, heads = meta.count("embedding_length"), meta.count("attention.head_count")
    head_dim = meta.count("attention.key_length", max(1, hidden // heads))
    values, rotary = meta.count("attention.value_length", head_dim), meta.count("rope.dimension_count", head_dim)
    for key, count, fits in (("attention.value_length", values, values == head_dim),
                             ("rope.dimension_count", rotary, rotary <= head_dim and rotary % 2 == 0)):
        if not fits:
            raise CheckpointError(f"{checkpoint.path}: {architecture}.{key} is {count} where heads have {head_dim} elements, "
                                  "which no model family here takes")
    return {
        "model_type": architecture, "vocab_size": _vocabulary(checkpoint), "hidden_size": hidden, "num_hidden_layers": meta.count("block_count"),
        "intermediate_size": meta.count("feed_forward_length"), "num_attention_heads": heads,
        "num_key_value_heads": meta.count("attention.head_count_kv", heads), "head_dim": head_dim,
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"), "max_position_embeddings": meta.count("context_length"),
        "rope_parameters": {**_rope(meta, rotary), "partial_rotary_factor": rotary / head_dim},
        "tie_word_embeddings": "output.weight" not in checkpoint.tensors,
        "attention_bias": "blk.0.attn_q.bias" in checkpoint.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in checkpoint.tensors, **module.gguf(meta)}


def _vocabulary(checkpoint: Checkpoint) -> int:
    embedding = checkpoint.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError(f"{checkpoint.path} holds no token_embd.weight, so it is no whole model; a vocabulary alone cannot be played")
    return embedding.shape[0]


def _rope(meta: Metadata, rotary: int) -> Mapping[str, Any]:
    """llama3 scaling comes as a tensor of divisors, LongRoPE as two; a scaling of another kind as keys, where "linear" by 1 is none."""
    config, tensors = meta.checkpoint.config, meta.checkpoint.tensors
    kind = config.get(f"{meta.architecture}.rope.scaling.type", "linear")
    found = {"rope_type": "default" if kind == "none" else str(kind), "rope_theta": meta.number("rope.freq_base", 10000.0),
             "factor": meta.number("rope.scaling.factor", 1.0) or 1.0}
    for ours, theirs in (("original_max_position_embeddings", "original_context_length"), ("beta_fast", "yarn_beta_fast"),
                         ("beta_slow", "yarn_beta_slow")):
        if f"{meta.architecture}.rope.scaling.{theirs}" in config:
            found[ours] = meta.number(f"rope.scaling.{theirs}")
    for ours, theirs in (("divisors", "rope_freqs"), ("long_factor", "rope_factors_long"), ("short_factor", "rope_factors_short")):
        if (tensor := tensors.get(f"{theirs}.weight")) is not None:
            if tensor.shape != (rotary // 2,):
                raise CheckpointError(f"{meta.checkpoint.path}: {theirs}.weight has the shape {list(tensor.shape)} but heads of {rotary} "
                                      f"rotating elements need {rotary // 2} divisors")
            found[ours] = tensor.array().astype(np.float64).tolist()
    if "long_factor" in found:
        found |= {"rope_type": "longrope", "attention_factor": meta.number("rope.scaling.attn_factor", 1.0)}
    return found
