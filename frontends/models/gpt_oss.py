"""gpt-oss: attention with sinks and biases, a sliding window in every other layer, and experts in MXFP4 with biases and a clamped SwiGLU."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..gguf_config import Metadata
from ..lower import Decoder, Tensor, known_value, read_config
from ..rope import rope_parameters, rope_table
from .gemma2 import layer_types

YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096}


@dataclass(frozen=True)
class Config:
    """Fields are named as in config.json. fused: gate and up are one tensor with their rows in turn; packed: experts are [experts, out, in]
    blocks, not [experts, in, out] numbers."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    num_local_experts: int
    num_experts_per_tok: int
    rope_parameters: Mapping[str, Any]
    layer_types: tuple[str, ...]
    head_dim: int = 64
    sliding_window: int = 128
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    attention_bias: bool = True
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = False
    fused: bool = True
    packed: bool = False


def read(raw: Mapping[str, Any]) -> Config:
    known_value(raw, "hidden_act", "silu")
    stored = raw.get("quantization_config") or {}
    known_value({**raw, **stored}, "quant_method", "mxfp4")
    rope = rope_parameters({"rope_theta": YARN["rope_theta"], **raw}) if raw.get("rope_parameters") or raw.get("rope_scaling") else YARN
    return read_config(Config, {**raw, "layer_types": layer_types(raw, period=2), "rope_parameters": rope, "packed": bool(stored)})


def gguf(meta: Metadata) -> dict[str, Any]:
    """The model rounds no end of YaRN's ramp, which no key says."""
    return {"intermediate_size": meta.count("expert_feed_forward_length"), "num_local_experts": meta.count("expert_count"),
            "num_experts_per_tok": meta.count("expert_used_count"), "sliding_window": meta.count("attention.sliding_window"),
            "fused": False, "truncate": False}


def tensors(c: Config) -> dict[str, Tensor]:
    found = {"embedding": Tensor("model.embed_tokens.weight", "token_embd.weight"), "norm": Tensor("model.norm.weight", "output_norm.weight"),
             "head": Tensor("lm_head.weight", "output.weight")}
    turned = None if c.packed else lambda a: a.swapaxes(1, 2)
    for i in range(c.num_hidden_layers):
        layer, experts, blk = f"layers.{i}", f"model.layers.{i}.mlp.experts", f"blk.{i}"
        for name, hf, gguf in (("attn_norm", "input_layernorm", "attn_norm"), ("ffn_norm", "post_attention_layernorm", "post_attention_norm")):
            found[f"{layer}.{name}"] = Tensor(f"model.{layer}.{hf}.weight", f"{blk}.{gguf}.weight")
        for name, hf, gguf in (*((n, f"self_attn.{n}_proj", f"attn_{n}") for n in "qkv"), ("o", "self_attn.o_proj", "attn_output"),
                               ("router", "mlp.router", "ffn_gate_inp")):
            found[f"{layer}.{name}"] = Tensor(f"model.{layer}.{hf}.weight", f"{blk}.{gguf}.weight")
            found[f"{layer}.{name}_bias"] = Tensor(f"model.{layer}.{hf}.bias", f"{blk}.{gguf}.bias")
        found[f"{layer}.sinks"] = Tensor(f"model.{layer}.self_attn.sinks", f"{blk}.attn_sinks.weight")
        found[f"{layer}.experts.gate_up"] = Tensor(f"{experts}.gate_up_proj", "", turned)
        for name, part in (("gate", lambda a: a[:, ::2]), ("up", lambda a: a[:, 1::2])):
            found[f"{layer}.experts.{name}"] = Tensor("", f"{blk}.ffn_{name}_exps.weight")
            found[f"{layer}.experts.{name}_bias"] = Tensor(f"{experts}.gate_up_proj_bias", f"{blk}.ffn_{name}_exps.bias", part)
        found[f"{layer}.experts.down"] = Tensor(f"{experts}.down_proj", f"{blk}.ffn_down_exps.weight", turned)
        found[f"{layer}.experts.down_bias"] = Tensor(f"{experts}.down_proj_bias", f"{blk}.ffn_down_exps.bias")
    return found


def embedding(g: Decoder, c: Config) -> str:
    return g.stored("embedding", c.vocab_size, c.hidden_size)


def decoder(g: Decoder, c: Config, x: str) -> str:
    for i in range(c.num_hidden_layers):
        h = g.rms_norm(x, g.stored(f"layers.{i}.attn_norm", c.hidden_size), eps=c.rms_norm_eps)
        x = g.add(x, _attention(g, c, i, h))
        h = g.rms_norm(x, g.stored(f"layers.{i}.ffn_norm", c.hidden_size), eps=c.rms_norm_eps)
        x = g.add(x, _experts(g, c, i, h))
    return x


def _attention(g: Decoder, c: Config, i: int, h: str) -> str:
    def projected(y: str, name: str, out: int) -> str:
        y = g.linear(y, f"layers.{i}.{name}", out)
        return g.add(y, g.stored(f"layers.{i}.{name}_bias", out)) if c.attention_bias else y
    q, k, v = (g.heads(projected(h, name, n * c.head_dim), c.head_dim)
               for name, n in (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)))
    table = g.constant("rope", lambda: rope_table(c.rope_parameters, c.head_dim, g.plan.context))
    q, k = (g.rope(y, table, "position", interleaved=False) for y in (q, k))
    sliding = c.layer_types[i] == "sliding_attention"
    y = g.attend(i, q, k, v, scale=c.head_dim**-0.5, mask="sliding" if sliding else "full", window=c.sliding_window if sliding else 0,
                 sinks=g.stored(f"layers.{i}.sinks", c.num_attention_heads))
    return projected(y, "o", c.hidden_size)


def _experts(g: Decoder, c: Config, i: int, h: str) -> str:
    """The chosen experts' results, weighed by a softmax over the chosen ones' logits alone."""
    layer, width, experts = f"layers.{i}.experts", c.intermediate_size, c.num_local_experts

    def bias(name: str, out: int) -> str:
        return g.weight(f"{layer}.{name}_bias", (experts, out))
    logits = g.add(g.linear(h, f"layers.{i}.router", experts, dtype="f32"), g.stored(f"layers.{i}.router_bias", experts))
    expert, score = g.op("route", logits, top_k=c.num_experts_per_tok, score="softmax_chosen")
    if c.fused:
        gate, up = g.op("unzip", g.expert_matmul(h, g.stored(f"{layer}.gate_up", experts, 2 * width, c.hidden_size), expert))
    else:
        gate, up = (g.expert_matmul(h, g.stored(f"{layer}.{name}", experts, width, c.hidden_size), expert) for name in ("gate", "up"))
    gate, up = (g.expert_bias(y, bias(name, width), expert) for y, name in ((gate, "gate"), (up, "up")))
    y = g.clamped_swiglu(gate, up, alpha=c.swiglu_alpha, limit=c.swiglu_limit)
    y = g.expert_sum(y, g.stored(f"{layer}.down", experts, c.hidden_size, width), expert, score)
    return g.expert_bias(y, bias("down", c.hidden_size), expert, score)


def head(g: Decoder, c: Config, x: str) -> str:
    h = g.rms_norm(x, g.stored("norm", c.hidden_size), eps=c.rms_norm_eps)
    return g.linear(h, "embedding" if c.tie_word_embeddings else "head", c.vocab_size, dtype="f32")
