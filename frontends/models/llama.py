"""Llama 2, 3 and 3.1-3.3: RMSNorm, rotate-half RoPE, grouped-query attention, SiLU-gated feed-forward."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..gguf_config import Metadata
from ..lower import Decoder, Tensor, known_value, read_config, unquantized
from ..rope import rope_parameters, rope_table

LAYER = (("attn_norm", "input_layernorm", "attn_norm"), ("ffn_norm", "post_attention_layernorm", "ffn_norm"),
         ("q", "self_attn.q_proj", "attn_q"), ("k", "self_attn.k_proj", "attn_k"), ("v", "self_attn.v_proj", "attn_v"),
         ("o", "self_attn.o_proj", "attn_output"), ("q_norm", "self_attn.q_norm", "attn_q_norm"), ("k_norm", "self_attn.k_norm", "attn_k_norm"),
         ("gate", "mlp.gate_proj", "ffn_gate"), ("up", "mlp.up_proj", "ffn_up"), ("down", "mlp.down_proj", "ffn_down"))


@dataclass(frozen=True)
class Config:
    """Fields are named as in config.json, but for the last five, which `read` makes for this family and its relatives."""

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
    biases: tuple[str, ...] = ()        # projections that have one
    qk_norm: str = ""                   # over what queries and keys are normed before RoPE: nothing, each "head", or the whole "row"
    uses_rope: tuple[bool, ...] = ()    # by layer
    windows: tuple[int, ...] = ()       # by layer: how many keys a query sees, itself the last; 0 for all


def read(raw: Mapping[str, Any], kind: type = Config, **found: Any) -> Any:
    """The Config of this family, or of a relative whose file names its kind and what it found out about fields that differ."""
    known_value(raw, "hidden_act", "silu", "swish")
    unquantized(raw)
    layers, heads = raw.get("num_hidden_layers") or 0, raw.get("num_attention_heads") or 1
    usual = {"num_key_value_heads": heads, "head_dim": (raw.get("hidden_size") or 0) // heads}
    biases = ("q", "k", "v", "o") * bool(raw.get("attention_bias")) + ("gate", "up", "down") * bool(raw.get("mlp_bias"))
    ours = {"biases": biases, "uses_rope": (True,) * layers, "windows": (0,) * layers, "rope_parameters": rope_parameters(raw)}
    return read_config(kind, {**usual, **{k: v for k, v in raw.items() if v is not None}, **ours, **found})


def gguf(meta: Metadata) -> dict[str, Any]:
    """GGUF files of Llama, and of Mixtral and Mistral, which go by this name, hold the rows of Q and K in the order of interleaved RoPE."""
    window = meta.number("attention.sliding_window", 0)
    if experts := meta.number("expert_count", 0):
        return {"model_type": "mixtral", "rope_interleaved": True, "sliding_window": window or None, "num_local_experts": experts,
                "num_experts_per_tok": meta.count("expert_used_count")}
    return {"rope_interleaved": True, **({"model_type": "mistral", "sliding_window": window} if window else {})}


def tensors(c: Config) -> dict[str, Tensor]:
    found = {"embedding": Tensor("model.embed_tokens.weight", "token_embd.weight"), "norm": Tensor("model.norm.weight", "output_norm.weight"),
             "head": Tensor("lm_head.weight", "output.weight")}
    for i in range(c.num_hidden_layers):
        for name, hf, gguf in LAYER:
            if c.qk_norm or name not in ("q_norm", "k_norm"):
                found[f"layers.{i}.{name}"] = Tensor(f"model.layers.{i}.{hf}.weight", f"blk.{i}.{gguf}.weight")
            if name in c.biases:
                found[f"layers.{i}.{name}.bias"] = Tensor(f"model.layers.{i}.{hf}.bias", f"blk.{i}.{gguf}.bias")
    return found


def embedding(g: Decoder, c: Config) -> str:
    return g.stored("embedding", c.vocab_size, c.hidden_size)


def norm(g: Decoder, c: Config, x: str, name: str) -> str:
    """RMSNorm over the last axis."""
    return g.rms_norm(x, g.stored(name, g.shape(x)[-1]), eps=c.rms_norm_eps)


def project(g: Decoder, c: Config, i: int, x: str, name: str, out: int) -> str:
    """A projection of layer i, with its bias if it has one."""
    y = g.linear(x, f"layers.{i}.{name}", out)
    return g.add(y, g.stored(f"layers.{i}.{name}.bias", out)) if name in c.biases else y


def attention(g: Decoder, c: Config, i: int, h: str, scale: float = 0) -> str:
    """scale: of the scores, if not the usual one."""
    heads = {"q": c.num_attention_heads, "k": c.num_key_value_heads, "v": c.num_key_value_heads}
    q, k, v = (project(g, c, i, h, name, n * c.head_dim) for name, n in heads.items())
    if c.qk_norm == "row":
        q, k = (norm(g, c, y, f"layers.{i}.{name}_norm") for name, y in (("q", q), ("k", k)))
    q, k, v = (g.heads(y, c.head_dim) for y in (q, k, v))
    if c.qk_norm == "head":
        q, k = (norm(g, c, y, f"layers.{i}.{name}_norm") for name, y in (("q", q), ("k", k)))
    if c.uses_rope[i]:
        table = g.constant("rope", lambda: rope_table(c.rope_parameters, c.head_dim, g.plan.context))
        q, k = (g.rope(y, table, "position", interleaved=c.rope_interleaved) for y in (q, k))
    y = g.attend(i, q, k, v, scale=scale or c.head_dim**-0.5, mask="sliding" if c.windows[i] else "full", window=c.windows[i])
    return project(g, c, i, y, "o", c.hidden_size)


def feed_forward(g: Decoder, c: Config, i: int, h: str) -> str:
    gate, up = (project(g, c, i, h, name, c.intermediate_size) for name in ("gate", "up"))
    return project(g, c, i, g.mul(g.silu(gate), up), "down", c.hidden_size)


def decoder(g: Decoder, c: Config, x: str, attention: Callable[..., str] = attention, feed_forward: Callable[..., str] = feed_forward) -> str:
    """attention, feed_forward: what a relative has in their places; each gets the layer's number and its input, normed."""
    for i in range(c.num_hidden_layers):
        x = g.add(x, attention(g, c, i, norm(g, c, x, f"layers.{i}.attn_norm")))
        x = g.add(x, feed_forward(g, c, i, norm(g, c, x, f"layers.{i}.ffn_norm")))
    return x


def head(g: Decoder, c: Config, x: str) -> str:
    return g.linear(norm(g, c, x, "norm"), "embedding" if c.tie_word_embeddings else "head", c.vocab_size, dtype="f32")
