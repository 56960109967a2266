"""Llama 2, 3 and 3.1-3.3: RMSNorm, rotate-half RoPE, grouped-query attention, SiLU-gated feed-forward."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint import CheckpointError
from ..gguf_config import Metadata
from ..lower import Decoder, Tensor, read_config
from ..rope import rope_parameters, rope_table


@dataclass(frozen=True)
class Config:
    """Fields are named as in config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rope_parameters: Mapping[str, Any]
    num_key_value_heads: int = 0
    head_dim: int = 0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    rope_interleaved: bool = False      # whether neighbours turn together, or the halves of a head


def read(raw: Mapping[str, Any]) -> Config:
    heads = raw.get("num_attention_heads", 1)
    return read_config(Config, {"num_key_value_heads": heads, "head_dim": raw.get("hidden_size", 0) // heads,
                                **{k: v for k, v in raw.items() if v is not None}, "rope_parameters": rope_parameters(raw)})


def gguf(meta: Metadata) -> dict[str, Any]:
    """GGUF files hold the rows of Q and K in the order of interleaved RoPE."""
    if experts := meta.number("expert_count", 0):
        raise CheckpointError(f"{meta.checkpoint.path}: llama with {experts} experts (Mixtral) is not read; dense llama and llama4 are")
    return {"rope_interleaved": True}


def tensors(c: Config) -> dict[str, Tensor]:
    found = {"embedding": Tensor("model.embed_tokens.weight", "token_embd.weight"), "norm": Tensor("model.norm.weight", "output_norm.weight"),
             "head": Tensor("lm_head.weight", "output.weight")}
    for i in range(c.num_hidden_layers):
        for name, hf, gguf in (("attn_norm", "input_layernorm", "attn_norm"), ("ffn_norm", "post_attention_layernorm", "ffn_norm"),
                               ("q", "self_attn.q_proj", "attn_q"), ("k", "self_attn.k_proj", "attn_k"), ("v", "self_attn.v_proj", "attn_v"),
                               ("o", "self_attn.o_proj", "attn_output"), ("gate", "mlp.gate_proj", "ffn_gate"), ("up", "mlp.up_proj", "ffn_up"),
                               ("down", "mlp.down_proj", "ffn_down")):
            found[f"layers.{i}.{name}"] = Tensor(f"model.layers.{i}.{hf}.weight", f"blk.{i}.{gguf}.weight")
    return found


def embedding(g: Decoder, c: Config) -> str:
    return g.stored("embedding", c.vocab_size, c.hidden_size)


def decoder(g: Decoder, c: Config, x: str) -> str:
    table = g.constant("rope", lambda: rope_table(c.rope_parameters, c.head_dim, g.plan.context))
    for i in range(c.num_hidden_layers):
        layer = f"layers.{i}"
        h = g.rms_norm(x, g.stored(f"{layer}.attn_norm", c.hidden_size), eps=c.rms_norm_eps)
        q, k, v = (g.heads(g.linear(h, f"{layer}.{name}", n * c.head_dim), c.head_dim)
                   for name, n in (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)))
        q, k = (g.rope(y, table, "position", interleaved=c.rope_interleaved) for y in (q, k))
        x = g.add(x, g.linear(g.attend(i, q, k, v, scale=c.head_dim**-0.5), f"{layer}.o", c.hidden_size))
        h = g.rms_norm(x, g.stored(f"{layer}.ffn_norm", c.hidden_size), eps=c.rms_norm_eps)
        gate, up = (g.linear(h, f"{layer}.{name}", c.intermediate_size) for name in ("gate", "up"))
        x = g.add(x, g.linear(g.mul(g.silu(gate), up), f"{layer}.down", c.hidden_size))
    return x


def head(g: Decoder, c: Config, x: str) -> str:
    h = g.rms_norm(x, g.stored("norm", c.hidden_size), eps=c.rms_norm_eps)
    return g.linear(h, "embedding" if c.tie_word_embeddings else "head", c.vocab_size, dtype="f32")
