"""Mistral: Llama whose attention may be a sliding window in every layer."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import llama
from .llama import Config, decoder, embedding, head, tensors


def read(raw: Mapping[str, Any]) -> Config:
    window = raw.get("sliding_window", 4096) or 0       # null is none, which is not what a missing key means
    return llama.read({"num_key_value_heads": 8, **raw}, windows=(window,) * (raw.get("num_hidden_layers") or 0))


__all__ = ["Config", "decoder", "embedding", "head", "read", "tensors"]
