"""OLMo 2: Llama with its norms after attention and feed-forward, and norms over all heads of queries and keys."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import CheckpointError
from ..gguf_config import Metadata
from ..lower import Decoder, Tensor
from . import llama
from .llama import Config, attention, embedding, feed_forward, head, norm


def read(raw: Mapping[str, Any]) -> Config:
    return llama.read({"rms_norm_eps": 1e-5, **raw}, qk_norm="row")


def gguf(meta: Metadata) -> dict[str, Any]:
    if window := meta.number("attention.sliding_window", 0):
        raise CheckpointError(f"{meta.checkpoint.path}: an olmo2 with a sliding window of {window} is OLMo 3, which is not read")
    return {}


def tensors(c: Config) -> dict[str, Tensor]:
    found = llama.tensors(c)
    for i in range(c.num_hidden_layers):
        for ours, hf, gguf in (("attn_norm", "post_attention_layernorm", "post_attention_norm"),
                               ("ffn_norm", "post_feedforward_layernorm", "post_ffw_norm")):
            found[f"layers.{i}.{ours}"] = Tensor(f"model.layers.{i}.{hf}.weight", f"blk.{i}.{gguf}.weight")
    return found


def decoder(g: Decoder, c: Config, x: str) -> str:
    for i in range(c.num_hidden_layers):
        x = g.add(x, norm(g, c, attention(g, c, i, x), f"layers.{i}.attn_norm"))
        x = g.add(x, norm(g, c, feed_forward(g, c, i, x), f"layers.{i}.ffn_norm"))
    return x


__all__ = ["Config", "decoder", "embedding", "gguf", "head", "read", "tensors"]
