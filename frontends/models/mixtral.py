"""Mixtral: Mistral with a mixture of experts for a feed-forward; the best of the router's softmax weigh what their experts give."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..lower import Decoder, Tensor
from . import llama
from .llama import embedding, head


@dataclass(frozen=True)
class Config(llama.Config):
    rms_norm_eps: float = 1e-5
    num_local_experts: int = 8
    num_experts_per_tok: int = 2


def read(raw: Mapping[str, Any]) -> Config:
    windows = (raw.get("sliding_window") or 0,) * (raw.get("num_hidden_layers") or 0)
    return llama.read({"num_key_value_heads": 8, "rope_theta": 1e6, **raw}, Config, windows=windows)


def tensors(c: Config) -> dict[str, Tensor]:
    found = llama.tensors(c)
    for i in range(c.num_hidden_layers):
        found |= expert_tensors(i, c.num_local_experts, "block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
    return found


def expert_tensors(i: int, experts: int, inside: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Router and experts of layer i, a matrix an expert in a folder. inside: what holds them there; names: theirs for gate, up and down."""
    hf, gguf = f"model.layers.{i}.{inside}", f"blk.{i}.ffn"
    return {f"layers.{i}.router": Tensor(f"{hf}.gate.weight", f"{gguf}_gate_inp.weight"),
            **{f"layers.{i}.experts.{ours}": Tensor(tuple(f"{hf}.experts.{e}.{name}.weight" for e in range(experts)), f"{gguf}_{ours}_exps.weight")
               for ours, name in names.items()}}


def decoder(g: Decoder, c: Config, x: str) -> str:
    return llama.decoder(g, c, x, feed_forward=lambda g, c, i, h: experts(g, c, i, h, c.intermediate_size))


def experts(g: Decoder, c: Any, i: int, h: str, width: int, normalize: bool = True) -> str:
    """The chosen experts' sum, each of `width`, weighed by the softmax over all or, normalized, over the chosen."""
    logits = g.linear(h, f"layers.{i}.router", c.num_local_experts, dtype="f32")
    expert, score = g.op("route", logits, top_k=c.num_experts_per_tok, score="softmax", normalize=normalize)
    gate, up = (g.expert_matmul(h, g.stored(f"layers.{i}.experts.{n}", c.num_local_experts, width, c.hidden_size), expert) for n in ("gate", "up"))
    down = g.stored(f"layers.{i}.experts.down", c.num_local_experts, c.hidden_size, width)
    return g.expert_sum(g.mul(g.silu(gate), up), down, expert, score)


__all__ = ["Config", "decoder", "embedding", "expert_tensors", "experts", "head", "read", "tensors"]
