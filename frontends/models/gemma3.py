"""Gemma 3's text decoder: Gemma 2 with norms over heads instead of soft caps on scores, and a slower RoPE where all positions are seen."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..gguf_config import Metadata
from ..lower import Decoder, Tensor, read_config
from ..rope import rope_parameters, rope_table
from . import gemma2
from .gemma2 import embedding, head

# what published configs leave out
USUAL = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4}


@dataclass(frozen=True)
class Config(gemma2.Config):
    """rope_parameters: of the layers that see all positions; sliding_rope_parameters: of the others."""

    sliding_rope_parameters: Mapping[str, Any] = field(default_factory=dict)
    max_position_embeddings: int = 131072


def read(raw: Mapping[str, Any]) -> Config:
    raw = USUAL | {k: v for k, v in raw.items() if v is not None}
    full, sliding = _rope_parameters(raw)
    return read_config(Config, {**gemma2.shared(raw, raw.get("sliding_window_pattern") or 6), "rope_parameters": full,
                                "sliding_rope_parameters": sliding, "attn_logit_softcapping": 0.0,
                                "final_logit_softcapping": raw.get("final_logit_softcapping") or 0.0})


def _rope_parameters(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of full and of sliding layers: each kind has its own in the new form; in the old one (and in GGUF) only the base differs, and a
    scaling is that of full layers."""
    given = dict(raw.get("rope_parameters") or {})
    if kinds := {name: p for name, p in given.items() if isinstance(p, Mapping)}:
        common = {"rope_type": "default"} | {k: v for k, v in given.items() if k not in kinds}
        return tuple({"rope_theta": base, **common, **kinds.get(f"{name}_attention", {})}      # type: ignore[return-value]
                     for name, base in (("full", 1e6), ("sliding", 1e4)))
    return rope_parameters({"rope_theta": 1e6, **raw}), {"rope_type": "default", "rope_theta": raw.get("rope_local_base_freq") or 1e4}


def gguf(meta: Metadata) -> dict[str, Any]:
    return {"sliding_window": meta.count("attention.sliding_window"), "sliding_window_pattern": meta.count("attention.sliding_window_pattern", 6),
            "rope_local_base_freq": meta.number("rope.freq_base_swa", 1e4), "final_logit_softcapping": meta.number("final_logit_softcapping", 0.0),
            "query_pre_attn_scalar": gemma2.query_scalar(meta, largest=62)}


def tensors(c: Config) -> dict[str, Tensor]:
    return gemma2.tensors(c) | {f"layers.{i}.{n}_norm": Tensor(f"model.layers.{i}.self_attn.{n}_norm.weight", f"blk.{i}.attn_{n}_norm.weight",
                                                              gemma2.one_more) for i in range(c.num_hidden_layers) for n in "qk"}


def decoder(g: Decoder, c: Config, x: str) -> str:
    parameters = {"full_attention": c.rope_parameters, "sliding_attention": c.sliding_rope_parameters}

    def turn(name: str):
        def norm_and_rope(y: str, i: int) -> str:
            kind = c.layer_types[i]
            table = g.constant(f"rope.{kind}", lambda: rope_table(parameters[kind], c.head_dim, g.plan.context))
            y = g.rms_norm(y, g.stored(f"layers.{i}.{name}_norm", c.head_dim), eps=c.rms_norm_eps)
            return g.rope(y, table, "position", interleaved=False)
        return norm_and_rope
    return gemma2.layers(g, c, x, (turn("q"), turn("k")))


__all__ = ["Config", "decoder", "embedding", "gguf", "head", "read", "tensors"]
