"""Qwen 3 MoE: Qwen 3 with a mixture of experts in most layers."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..gguf_config import Metadata
from ..lower import Decoder, Tensor
from . import llama, mixtral
from .llama import embedding, head


@dataclass(frozen=True)
class Config(llama.Config):
    moe_layers: tuple[int, ...] = ()    # from mlp_only_layers and decoder_sparse_step
    moe_intermediate_size: int = 768
    num_local_experts: int = 128
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False


def read(raw: Mapping[str, Any]) -> Config:
    layers, dense = raw.get("num_hidden_layers") or 0, raw.get("mlp_only_layers") or ()
    experts = raw["num_experts"] if raw.get("num_experts") is not None else raw.get("num_local_experts")
    step = raw.get("decoder_sparse_step") or 1
    moe = tuple(i for i in range(layers) if i not in dense and (i + 1) % step == 0 and experts != 0)
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window") else 0
    return llama.read({"num_key_value_heads": 4, **raw, "num_local_experts": experts}, Config, qk_norm="head", moe_layers=moe,
                      windows=(window or 0,) * layers)


def gguf(meta: Metadata) -> dict[str, Any]:
    """A layer is dense where the file has its matrices; llama.cpp always divides the scores by their sum."""
    dense = [i for i in range(meta.count("block_count")) if f"blk.{i}.ffn_gate.weight" in meta.checkpoint.tensors]
    return {"moe_intermediate_size": meta.count("expert_feed_forward_length"), "num_local_experts": meta.count("expert_count"),
            "num_experts_per_tok": meta.count("expert_used_count"), "mlp_only_layers": dense,
            "norm_topk_prob": meta.checkpoint.config.get("qwen3moe.expert_weights_norm", True)}


def tensors(c: Config) -> dict[str, Tensor]:
    found = llama.tensors(c)
    for i in c.moe_layers:
        found |= mixtral.expert_tensors(i, c.num_local_experts, "mlp", {n: f"{n}_proj" for n in ("gate", "up", "down")})
    return found


def decoder(g: Decoder, c: Config, x: str) -> str:
    def feed_forward(g: Decoder, c: Config, i: int, h: str) -> str:
        if i not in c.moe_layers:
            return llama.feed_forward(g, c, i, h)
        return mixtral.experts(g, c, i, h, c.moe_intermediate_size, c.norm_topk_prob)
    return llama.decoder(g, c, x, feed_forward=feed_forward)


__all__ = ["Config", "decoder", "embedding", "gguf", "head", "read", "tensors"]
