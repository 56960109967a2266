"""Qwen 3: Llama with norms of every head's query and key."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import qwen2
from .llama import Config, decoder, embedding, head, tensors
from .qwen2 import gguf


def read(raw: Mapping[str, Any]) -> Config:
    return qwen2.read({"head_dim": 128, **raw}, qk_norm="head", biases=("q", "k", "v", "o") if raw.get("attention_bias") else ())


__all__ = ["Config", "decoder", "embedding", "gguf", "head", "read", "tensors"]
