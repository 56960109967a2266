"""Models of the shapes that matter, with made-up weights: config.json records, and checkpoints whose tensors are views of one array."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..frontends.checkpoint import Checkpoint, Tensor
from ..frontends.lower import flatten
from ..frontends.models import family

LLAMA3 = {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072, "vocab_size": 128256}
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {**LLAMA3, "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
    "8b": {**LLAMA3, "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128},
    "scout": {"model_type": "llama4_text", "num_hidden_layers": 48, "hidden_size": 5120, "intermediate_size": 8192,
              "intermediate_size_mlp": 16384, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "num_local_experts": 16,
              "num_experts_per_tok": 1, "interleave_moe_layer_step": 1, "use_qk_norm": True, "rope_theta": 500000.0, "vocab_size": 202048,
              "rope_scaling": {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
                               "original_max_position_embeddings": 8192}, "max_position_embeddings": 10485760},
}


def synthetic(config: Mapping[str, Any], dtype: str = "bf16") -> Checkpoint:
    """A checkpoint of the config's shapes. Tensors of one size share their bytes, so that a large model takes little memory."""
    rng = np.random.default_rng(0)
    made: dict[tuple[int, ...], np.ndarray] = {}
    tensors: dict[str, Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        if shape not in made:
            values = (rng.standard_normal(min(int(np.prod(shape)), 1 << 16), np.float32) * 0.02 + (len(shape) == 1)).view(np.uint32) >> 16
            made[shape] = np.resize(values.astype(np.uint16), int(np.prod(shape))).view(np.uint8)
        tensors[name] = Tensor(name, shape, "bf16", made[shape])
    return Checkpoint(Path("synthetic"), "huggingface", dict(config), tensors, None)


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensor names and shapes."""
    c = family(config["model_type"]).read(flatten(config))
    h, q, kv, ffn = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.intermediate_size
    found = {"model.embed_tokens.weight": (c.vocab_size, h), "model.norm.weight": (h,)}
    if not c.tie_word_embeddings:
        found["lm_head.weight"] = (c.vocab_size, h)
    for i in range(c.num_hidden_layers):
        at = f"model.layers.{i}."
        found |= {f"{at}{n}.weight": (h,) for n in ("input_layernorm", "post_attention_layernorm")}
        found |= {f"{at}self_attn.{n}_proj.weight": shape for n, shape in (("q", (q, h)), ("k", (kv, h)), ("v", (kv, h)), ("o", (h, q)))}
        moe = config["model_type"] == "llama4_text" and i in c.moe_layers
        inside = "mlp" if config["model_type"] == "llama" else "feed_forward.shared_expert" if moe else "feed_forward"
        width = ffn if moe or config["model_type"] == "llama" else c.intermediate_size_mlp
        found |= {f"{at}{inside}.{n}_proj.weight": shape for n, shape in (("gate", (width, h)), ("up", (width, h)), ("down", (h, width)))}
        if moe:
            e = c.num_local_experts
            found |= {f"{at}feed_forward.router.weight": (e, h), f"{at}feed_forward.experts.gate_up_proj": (e, h, 2 * ffn),
                      f"{at}feed_forward.experts.down_proj": (e, ffn, h)}
    return found
