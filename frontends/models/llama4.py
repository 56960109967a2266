"""Llama 4's text decoder: chunked attention with RoPE on most layers, full attention without it on the others, mixture of experts."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..gguf_config import Metadata
from ..layers import FULL, per_layer
from ..lower import Decoder, Tensor, known_value, read_config, unquantized
from ..rope import rope_parameters, rope_table

CHUNKED = "chunked_attention"


@dataclass(frozen=True)
class Config:
    """Fields are named as in config.json; `no_rope_layers` is translated to `uses_rope`, since its 1 means that a layer has RoPE."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_parameters: Mapping[str, Any]
    uses_rope: tuple[bool, ...]
    moe_layers: tuple[int, ...]
    head_dim: int = 128
    intermediate_size_mlp: int = 16384
    num_local_experts: int = 16
    num_experts_per_tok: int = 1
    use_qk_norm: bool = True
    attention_chunk_size: int = 8192
    attn_temperature_tuning: bool = True
    floor_scale: float = 8192
    attn_scale: float = 0.1
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = False
    layer_types: tuple[str, ...] = field(default=())


def read(raw: Mapping[str, Any]) -> Config:
    layers, interval, step = raw.get("num_hidden_layers", 0), raw.get("no_rope_layer_interval") or 4, raw.get("interleave_moe_layer_step") or 1
    known_value(raw, "hidden_act", "silu", "swish")
    known_value(raw, "attention_bias", False)
    unquantized(raw)
    uses_rope = tuple(map(bool, per_layer(raw, "no_rope_layers", raw.get("no_rope_layers") or [(i + 1) % interval for i in range(layers)])))
    moe = raw["moe_layers"] if raw.get("moe_layers") is not None else range(step - 1, layers, step)
    types = raw.get("layer_types") or [CHUNKED if r else FULL for r in uses_rope]
    return read_config(Config, {**raw, "uses_rope": uses_rope, "moe_layers": tuple(moe),
                                "layer_types": per_layer(raw, "layer_types", types, (FULL, CHUNKED)),
                                "rope_parameters": rope_parameters(raw)})


def gguf(meta: Metadata) -> dict[str, Any]:
    """What GGUF names otherwise; and what it has no keys for: llama.cpp's constants, unless the file carries keys of our own."""
    layers, step, experts = meta.count("block_count"), meta.number("interleave_moe_layer_step"), meta.number("expert_count", 0)
    plain = meta.number("attention.sliding_window", 1) == 0     # RoPE and full attention in every layer
    return {"intermediate_size": meta.count("expert_feed_forward_length"), "intermediate_size_mlp": meta.count("feed_forward_length"),
            "num_local_experts": experts, "num_experts_per_tok": meta.number("expert_used_count", 1),
            "moe_layers": [i for i in range(layers) if step and (i + 1) % step == 0], "use_qk_norm": experts != 128,
            "no_rope_layers": [1] * layers if plain else None, "layer_types": [FULL] * layers if plain else None,
            **{f"{prefix}{name}": meta.number(f"tilewright.attention.{name}", usual)
               for prefix, name, usual in (("attention_", "chunk_size", 8192), ("", "floor_scale", 8192), ("", "attn_scale", 0.1))}}


def tensors(c: Config) -> dict[str, Tensor]:
    found = {"embedding": Tensor("model.embed_tokens.weight", "token_embd.weight"), "norm": Tensor("model.norm.weight", "output_norm.weight"),
             "head": Tensor("lm_head.weight", "output.weight")}
    width = c.intermediate_size
    for i in range(c.num_hidden_layers):
        names = [("attn_norm", "input_layernorm.weight", "attn_norm"), ("ffn_norm", "post_attention_layernorm.weight", "ffn_norm"),
                 *((n, f"self_attn.{n}_proj.weight", f"attn_{n}") for n in ("q", "k", "v")), ("o", "self_attn.o_proj.weight", "attn_output")]
        inside = "feed_forward.shared_expert." if i in c.moe_layers else "feed_forward."
        names += [(n, f"{inside}{n}_proj.weight", f"ffn_{n}{'_shexp' if i in c.moe_layers else ''}") for n in ("gate", "up", "down")]
        names += [("router", "feed_forward.router.weight", "ffn_gate_inp")]
        found |= {f"layers.{i}.{ours}": Tensor(f"model.layers.{i}.{hf}", f"blk.{i}.{gguf}.weight") for ours, hf, gguf in names}
        # packed as x W, [experts, in, out]; gate and up are the halves of the columns
        packed, experts = f"model.layers.{i}.feed_forward.experts", f"blk.{i}.ffn_{{}}_exps.weight"
        found[f"layers.{i}.experts.gate"] = Tensor(f"{packed}.gate_up_proj", experts.format("gate"), lambda a: a[..., :width].swapaxes(1, 2))
        found[f"layers.{i}.experts.up"] = Tensor(f"{packed}.gate_up_proj", experts.format("up"), lambda a: a[..., width:].swapaxes(1, 2))
        found[f"layers.{i}.experts.down"] = Tensor(f"{packed}.down_proj", experts.format("down"), lambda a: a.swapaxes(1, 2))
    return found


def embedding(g: Decoder, c: Config) -> str:
    return g.stored("embedding", c.vocab_size, c.hidden_size)


def decoder(g: Decoder, c: Config, x: str) -> str:
    for i in range(c.num_hidden_layers):
        h = g.rms_norm(x, g.stored(f"layers.{i}.attn_norm", c.hidden_size), eps=c.rms_norm_eps)
        x = g.add(x, g.linear(_attention(g, c, i, h), f"layers.{i}.o", c.hidden_size))
        h = g.rms_norm(x, g.stored(f"layers.{i}.ffn_norm", c.hidden_size), eps=c.rms_norm_eps)
        x = _experts(g, c, i, h, x) if i in c.moe_layers else g.add(x, _feed_forward(g, c, i, h, c.intermediate_size_mlp))
    return x


def _attention(g: Decoder, c: Config, i: int, h: str) -> str:
    q, k, v = (g.heads(g.linear(h, f"layers.{i}.{name}", n * c.head_dim), c.head_dim)
               for name, n in (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)))
    if c.uses_rope[i]:
        table = g.constant("rope", lambda: rope_table(c.rope_parameters, c.head_dim, g.plan.context))
        q, k = (g.rope(y, table, "position", interleaved=True) for y in (q, k))
        if c.use_qk_norm:       # after RoPE, over a head, without a weight
            q, k = (g.rms_norm(y, eps=c.rms_norm_eps) for y in (q, k))
    elif c.attn_temperature_tuning:
        q = g.position_scale(q, g.constant("temperature", lambda: temperature(c, g.plan.context)), "position")
    chunked = c.layer_types[i] == CHUNKED
    return g.attend(i, q, k, v, scale=c.head_dim**-0.5, mask="chunked" if chunked else "full", window=c.attention_chunk_size if chunked else 0)


def temperature(c: Config, positions: int) -> np.ndarray:
    """What queries of layers without RoPE are multiplied by, float32 [positions]."""
    at = np.arange(positions, dtype=np.float64)
    return (c.attn_scale * np.log1p((at + 1) // c.floor_scale) + 1).astype(np.float32)


def _feed_forward(g: Decoder, c: Config, i: int, h: str, width: int) -> str:
    gate, up = (g.linear(h, f"layers.{i}.{name}", width) for name in ("gate", "up"))
    return g.linear(g.mul(g.silu(gate), up), f"layers.{i}.down", c.hidden_size)


def _experts(g: Decoder, c: Config, i: int, h: str, x: str) -> str:
    """The shared expert, and the chosen ones on inputs times their scores (which is to scale their first projections)."""
    logits = g.linear(h, f"layers.{i}.router", c.num_local_experts, dtype="f32")
    expert, score = g.op("route", logits, top_k=c.num_experts_per_tok, score="sigmoid")
    gate, up = (g.mul(g.expert_matmul(h, g.stored(f"layers.{i}.experts.{n}", c.num_local_experts, c.intermediate_size, c.hidden_size), expert), score)
                for n in ("gate", "up"))
    down = g.stored(f"layers.{i}.experts.down", c.num_local_experts, c.hidden_size, c.intermediate_size)
    x = g.add(x, _feed_forward(g, c, i, h, c.intermediate_size))
    return g.add(x, g.expert_sum(g.mul(g.silu(gate), up), down, expert))


def head(g: Decoder, c: Config, x: str) -> str:
    h = g.rms_norm(x, g.stored("norm", c.hidden_size), eps=c.rms_norm_eps)
    return g.linear(h, "embedding" if c.tie_word_embeddings else "head", c.vocab_size, dtype="f32")
