"""Qwen 2 and 2.5: Llama with biases of queries, keys and values; from some layer on it may attend to a sliding window."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..gguf_config import Metadata
from ..layers import sliding_windows
from . import llama
from .llama import Config, decoder, embedding, head, tensors


def read(raw: Mapping[str, Any], **found: Any) -> Config:
    first = raw["max_window_layers"] if raw.get("max_window_layers") is not None else 28
    windows = sliding_windows(raw, lambda i: i >= first, usual=4096)
    return llama.read({"num_key_value_heads": 32, **raw}, **{"biases": ("q", "k", "v"), "windows": windows, **found})


def gguf(meta: Metadata) -> dict[str, Any]:
    return {}


__all__ = ["Config", "decoder", "embedding", "gguf", "head", "read", "tensors"]
