"""Rotary tables: inverse frequencies with their scalings, and cosines and sines in float64, since WGSL's own are loose."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .checkpoint import CheckpointError

Parameters = Mapping[str, Any]


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of a config.json in its new form, from the new (rope_parameters) or the old (rope_theta, rope_scaling) one."""
    found = {"rope_type": "default", "rope_theta": 10000.0}
    found |= {k: config[k] for k in ("rope_theta", "partial_rotary_factor", "max_position_embeddings") if config.get(k) is not None}
    scaling = dict(config.get("rope_scaling") or {})
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    return found | scaling | dict(config.get("rope_parameters") or {})


def _default(p: Parameters, dim: int) -> np.ndarray:
    return float(p["rope_theta"]) ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)


def _linear(p: Parameters, dim: int) -> np.ndarray:
    return _default(p, dim) / p["factor"]


def _llama3(p: Parameters, dim: int) -> np.ndarray:
    """Llama 3.1's scaling: long wavelengths divided by the factor, a smooth band between (empty where low equals high)."""
    inverse, old = _default(p, dim), p["original_max_position_embeddings"]
    low, high, factor = p["low_freq_factor"], p["high_freq_factor"], p["factor"]
    wavelength = 2 * math.pi / inverse
    smooth = (old / wavelength - low) / (high - low) if high != low else np.zeros_like(inverse)
    between = (1 - smooth) * inverse / factor + smooth * inverse
    return np.where(wavelength < old / high, inverse, np.where(wavelength > old / low, inverse / factor, between))


SCALINGS: dict[str, Callable[[Parameters, int], np.ndarray]] = {"default": _default, "linear": _linear, "llama3": _llama3}


def rope_table(parameters: Parameters, dim: int, positions: int) -> np.ndarray:
    """Cosines and sines, float32 [positions, dim / 2, 2]. Raises CheckpointError for an unknown scaling.

    `inv_freq_dtype: bfloat16` among the parameters says that the model ran with frequencies rounded to that (a whole torch module cast
    to bfloat16 has rounded them, although loading a bfloat16 checkpoint does not); without the key they are exact. `divisors`, one a
    frequency, are how a GGUF file scales them."""
    kind = parameters["rope_type"]
    if kind not in SCALINGS:
        raise CheckpointError(f"unknown rope_type '{kind}'; known: {', '.join(SCALINGS)}")
    frequencies = SCALINGS[kind](parameters, dim) / np.asarray(parameters.get("divisors", 1.0))
    if parameters.get("inv_freq_dtype") == "bfloat16":
        frequencies = frequencies.astype(ml_dtypes.bfloat16).astype(np.float64)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    return np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
