"""Gemma 2: norms before and after attention and feed-forward, soft caps on scores and logits, a sliding window in every other layer."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint import CheckpointError
from ..gguf_config import Metadata
from ..lower import Decoder, Tensor, known_value, read_config
from ..rope import rope_parameters, rope_table


@dataclass(frozen=True)
class Config:
    """Fields are named as in config.json; a soft cap of 0 is none."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_parameters: Mapping[str, Any]
    layer_types: tuple[str, ...]
    attn_logit_softcapping: float
    final_logit_softcapping: float
    head_dim: int = 256
    query_pre_attn_scalar: float = 256
    sliding_window: int = 4096
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True


def read(raw: Mapping[str, Any]) -> Config:
    return read_config(Config, {**shared(raw, period=2), "rope_parameters": rope_parameters(raw),
                                **{f"{what}_logit_softcapping": raw.get(f"{what}_logit_softcapping", usual) or 0.0
                                   for what, usual in (("attn", 50.0), ("final", 30.0))}})


def shared(raw: Mapping[str, Any], period: int) -> dict[str, Any]:
    """What Gemma 2 and 3 have in common."""
    known_value(raw, "hidden_activation", "gelu_pytorch_tanh")
    known_value(raw, "attention_bias", False)
    known_value(raw, "use_bidirectional_attention", False)
    return {**raw, "layer_types": layer_types(raw, period)}


def layer_types(raw: Mapping[str, Any], period: int) -> tuple[str, ...]:
    """What every layer's queries see; every so many layers one sees all positions where the config does not say."""
    layers = raw.get("num_hidden_layers", 0)
    types = raw.get("layer_types") or ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)]
    for kind in types:
        known_value({**raw, "layer_types": kind}, "layer_types", "sliding_attention", "full_attention")
    if len(types) < layers:
        raise CheckpointError(f"config.json: layer_types has {len(types)} entries for {layers} layers")
    return tuple(types)


def gguf(meta: Metadata) -> dict[str, Any]:
    """llama.cpp's own values stand for keys that a file lacks."""
    return {"sliding_window": meta.count("attention.sliding_window", 4096), "attn_logit_softcapping": meta.number("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": meta.number("final_logit_softcapping", 30.0), "query_pre_attn_scalar": query_scalar(meta, largest=46)}


def query_scalar(meta: Metadata, largest: int) -> int:
    """No key of GGUF holds it: it is the size of a head, but in the 27B models, told by their number of layers."""
    hidden, heads = meta.count("embedding_length"), meta.count("attention.head_count")
    return hidden // heads if meta.count("block_count") == largest else meta.count("attention.key_length", hidden // heads)


def one_more(weight: np.ndarray) -> np.ndarray:
    """A norm's weight as it is used; GGUF holds it so."""
    return weight.astype(np.float32) + 1


def tensors(c: Config) -> dict[str, Tensor]:
    found = {"embedding": Tensor("model.embed_tokens.weight", "token_embd.weight"), "head": Tensor("lm_head.weight", "output.weight"),
             "norm": Tensor("model.norm.weight", "output_norm.weight", one_more)}
    for i in range(c.num_hidden_layers):
        for name, hf, gguf in (("attn_norm", "input", "attn_norm"), ("attn_post_norm", "post_attention", "post_attention_norm"),
                               ("ffn_norm", "pre_feedforward", "ffn_norm"), ("ffn_post_norm", "post_feedforward", "post_ffw_norm")):
            found[f"layers.{i}.{name}"] = Tensor(f"model.layers.{i}.{hf}_layernorm.weight", f"blk.{i}.{gguf}.weight", one_more)
        for name, hf, gguf in (*((n, f"self_attn.{n}_proj", f"attn_{n}") for n in "qkv"), ("o", "self_attn.o_proj", "attn_output"),
                               *((n, f"mlp.{n}_proj", f"ffn_{n}") for n in ("gate", "up", "down"))):
            found[f"layers.{i}.{name}"] = Tensor(f"model.layers.{i}.{hf}.weight", f"blk.{i}.{gguf}.weight")
    return found


def embedding(g: Decoder, c: Config) -> str:
    return g.stored("embedding", c.vocab_size, c.hidden_size)


def decoder(g: Decoder, c: Config, x: str) -> str:
    table = g.constant("rope", lambda: rope_table(c.rope_parameters, c.head_dim, g.plan.context))

    def turn(y: str, i: int) -> str:
        return g.rope(y, table, "position", interleaved=False)
    return layers(g, c, x, (turn, turn))


def layers(g: Decoder, c: Config, x: str, turns: tuple[Callable[[str, int], str], Callable[[str, int], str]]) -> str:
    """All layers; turns: what is done to the heads of queries and of keys in a layer before attention."""
    x = g.scale(x, by=c.hidden_size**0.5)       # not rounded to bfloat16, as it is where the whole model runs in that
    for i in range(c.num_hidden_layers):
        def norm(y: str, name: str, i=i) -> str:
            return g.rms_norm(y, g.stored(f"layers.{i}.{name}", c.hidden_size), eps=c.rms_norm_eps)
        x = g.add(x, norm(_attention(g, c, i, norm(x, "attn_norm"), turns), "attn_post_norm"))
        h = norm(x, "ffn_norm")
        gate, up = (g.linear(h, f"layers.{i}.{name}", c.intermediate_size) for name in ("gate", "up"))
        x = g.add(x, norm(g.linear(g.mul(g.gelu_tanh(gate), up), f"layers.{i}.down", c.hidden_size), "ffn_post_norm"))
    return x


def _attention(g: Decoder, c: Config, i: int, h: str, turns) -> str:
    q, k, v = (g.heads(g.linear(h, f"layers.{i}.{name}", n * c.head_dim), c.head_dim)
               for name, n in (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)))
    q, k = (turn(y, i) for turn, y in zip(turns, (q, k), strict=True))
    sliding = c.layer_types[i] == "sliding_attention"
    y = g.attend(i, q, k, v, scale=c.query_pre_attn_scalar**-0.5, mask="sliding" if sliding else "full",
                 window=c.sliding_window if sliding else 0, cap=c.attn_logit_softcapping)
    return g.linear(y, f"layers.{i}.o", c.hidden_size)


def head(g: Decoder, c: Config, x: str) -> str:
    h = g.rms_norm(x, g.stored("norm", c.hidden_size), eps=c.rms_norm_eps)
    y = g.linear(h, "embedding" if c.tie_word_embeddings else "head", c.vocab_size, dtype="f32")
    return g.softcap(y, cap=c.final_logit_softcapping) if c.final_logit_softcapping else y
