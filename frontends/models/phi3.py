"""Phi-3, Phi-3.5 and Phi-4: Llama with fused projections, RoPE on a part of every head, LongRoPE, and perhaps a sliding window."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..gguf_config import Metadata
from ..lower import Decoder, Tensor, known_value
from ..rope import rope_table
from . import llama
from .llama import embedding, head


@dataclass(frozen=True)
class Config(llama.Config):
    """sliding_window: 0 for none."""

    sliding_window: int = 0


def read(raw: Mapping[str, Any]) -> Config:
    known_value(raw, "hidden_act", "silu")
    base = llama.read({"rms_norm_eps": 1e-5, **raw})
    parameters = dict(base.rope_parameters)
    if parameters["rope_type"] in ("su", "yarn"):       # what early files call it
        parameters["rope_type"] = "longrope"
    return Config(**{**vars(base), "rope_parameters": parameters}, sliding_window=raw.get("sliding_window") or 0)


def gguf(meta: Metadata) -> dict[str, Any]:
    return {"sliding_window": meta.number("attention.sliding_window", 0)}


def tensors(c: Config) -> dict[str, Tensor]:
    found = {"embedding": Tensor("model.embed_tokens.weight", "token_embd.weight"), "norm": Tensor("model.norm.weight", "output_norm.weight"),
             "head": Tensor("lm_head.weight", "output.weight")}
    for i in range(c.num_hidden_layers):
        for name, hf, gguf in (("attn_norm", "input_layernorm", "attn_norm"), ("ffn_norm", "post_attention_layernorm", "ffn_norm"),
                               ("qkv", "self_attn.qkv_proj", "attn_qkv"), ("o", "self_attn.o_proj", "attn_output"),
                               ("gate_up", "mlp.gate_up_proj", "ffn_up"), ("down", "mlp.down_proj", "ffn_down")):
            found[f"layers.{i}.{name}"] = Tensor(f"model.layers.{i}.{hf}.weight", f"blk.{i}.{gguf}.weight")
    return found


def decoder(g: Decoder, c: Config, x: str) -> str:
    table = g.constant("rope", lambda: rope_table(c.rope_parameters, c.head_dim, g.plan.context))
    sizes = tuple(n * c.head_dim for n in (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads))
    mask, width = "sliding" if c.sliding_window else "full", c.intermediate_size
    for i in range(c.num_hidden_layers):
        layer = f"layers.{i}"
        h = g.rms_norm(x, g.stored(f"{layer}.attn_norm", c.hidden_size), eps=c.rms_norm_eps)
        q, k, v = g.op("split", g.linear(h, f"{layer}.qkv", sum(sizes)), sizes=sizes, head_dim=c.head_dim)
        q, k = (g.rope(y, table, "position", interleaved=False) for y in (q, k))
        y = g.attend(i, q, k, v, scale=c.head_dim**-0.5, mask=mask, window=c.sliding_window)
        x = g.add(x, g.linear(y, f"{layer}.o", c.hidden_size))
        h = g.rms_norm(x, g.stored(f"{layer}.ffn_norm", c.hidden_size), eps=c.rms_norm_eps)
        gate, up = (g.matmul(h, g.part(f"{layer}.gate_up", 2 * width, start, start + width, c.hidden_size)) for start in (0, width))
        x = g.add(x, g.linear(g.mul(g.silu(gate), up), f"{layer}.down", c.hidden_size))
    return x


__all__ = ["Config", "decoder", "embedding", "gguf", "head", "read", "tensors"]
