"""SmolLM 3: Llama with layers that have no RoPE."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..gguf_config import Metadata
from ..layers import per_layer, sliding_windows
from . import llama
from .llama import Config, decoder, embedding, head, tensors


def read(raw: Mapping[str, Any]) -> Config:
    """`no_rope_layers[i] == 1` means that the layer has RoPE; without the key, every `no_rope_layer_interval`th has none."""
    given, interval = raw.get("no_rope_layers"), raw.get("no_rope_layer_interval") or 4
    usual = [(i + 1) % interval for i in range(raw.get("num_hidden_layers") or 0)]
    uses_rope = tuple(map(bool, per_layer(raw, "no_rope_layers", usual if given is None else given)))
    return llama.read({"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True, **raw}, uses_rope=uses_rope,
                      windows=sliding_windows(raw, lambda i: not uses_rope[i]))


def gguf(meta: Metadata) -> dict[str, Any]:
    """llama.cpp has the interval as a constant; a key of our own tells others."""
    return {"rope_interleaved": True, "no_rope_layer_interval": meta.number("tilewright.no_rope_layer_interval", 4)}


__all__ = ["Config", "decoder", "embedding", "gguf", "head", "read", "tensors"]
