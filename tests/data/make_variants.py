"""Write tests/data/variants and tests/data/plugins, tiny random models with the logits that transformers computes: of the former the
config.json takes less usual ways, the latter are of families that are not built in.

Needs torch and transformers (5.23 made the files): python tests/data/make_variants.py
"""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

DATA = Path(__file__).parent
TOKENS = 24
BASE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
MODELS = {
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "mistral-wide-heads": ("mistral", {"head_dim": 16, "sliding_window": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "mixtral-sliding": ("mixtral", {"sliding_window": 6, "num_local_experts": 3, "tie_word_embeddings": True}),
    "qwen2-sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "tie_word_embeddings": True}),
    "qwen3-layer-types": ("qwen3", {"head_dim": 16, "attention_bias": True, "use_sliding_window": True, "sliding_window": 5,
                                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "qwen3_moe-sparse": ("qwen3_moe", {"head_dim": 8, "attention_bias": True, "decoder_sparse_step": 2, "moe_intermediate_size": 16, "num_experts": 5,
                                       "num_experts_per_tok": 3, "norm_topk_prob": False, "use_sliding_window": True, "sliding_window": 7}),
    "smollm3-sliding": ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6, "attention_bias": True,
                                    "mlp_bias": True}),
    "olmo2-bias": ("olmo2", {"attention_bias": True, "num_key_value_heads": 1}),
    "granite": ("granite", {"embedding_multiplier": 6.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7, "logits_scaling": 3.0}),
}


def main() -> None:
    for seed, (name, (kind, changes)) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**BASE, **changes}), dtype=torch.float32)
        for tensor in model.parameters():       # by the model's own usual numbers, biases would be 0 and norms 1
            spread = tensor.shape[-1]**-0.5 if tensor.ndim > 1 else 0.3
            tensor.data = (spread * torch.randn(tensor.shape) + 0.5 * (tensor.ndim == 1)).bfloat16().float()
        folder = DATA / ("plugins" if name == "granite" else "variants") / name
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        ids = torch.randint(0, BASE["vocab_size"], (1, TOKENS))
        again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = again(ids).logits[0].numpy()
        np.savez_compressed(folder / "truth.npz", token_ids=ids[0].numpy().astype(np.int32), logits=logits)
        config = json.loads((folder / "config.json").read_text())
        print(f"{name}: {sorted(set(config) & set(changes))}, |logit| to {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    main()
