"""Rotary tables: inverse frequencies with their scalings, and cosines and sines in float64, since WGSL's own are loose."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from .checkpoint import CheckpointError

Parameters = Mapping[str, Any]

# keys of config.json beside rope_parameters that count among them
TOP = ("rope_theta", "partial_rotary_factor", "max_position_embeddings", "original_max_position_embeddings", "truncate")


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` of a config.json in its new form, from the new (rope_parameters) or the old (rope_theta, rope_scaling) one."""
    found = {"rope_type": "default", "rope_theta": 10000.0}
    found |= {k: config[k] for k in TOP if config.get(k) is not None}
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


def _yarn(p: Parameters, dim: int) -> np.ndarray:
    """YaRN (https://arxiv.org/abs/2309.00071): frequencies that turn often within the old context stay, those that hardly turn are divided
    by the factor, and between the two lies a ramp over the index of the frequency."""
    inverse, old = _default(p, dim), p["original_max_position_embeddings"]

    def index(turns: float) -> float:
        return dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(p["rope_theta"]))
    low, high = index(p.get("beta_fast") or 32), index(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / ((high - low) or 0.001), 0, 1)
    return inverse * (1 - ramp) + inverse / _stretch(p) * ramp


def _stretch(p: Parameters) -> float:
    """How many times longer the context became."""
    return p.get("factor") or p["max_position_embeddings"] / p["original_max_position_embeddings"]


def _amplitude(p: Parameters) -> float:
    """What YaRN and LongRoPE (https://arxiv.org/abs/2402.13753) multiply cosines and sines by, since longer contexts flatten attention."""
    kind, given = p["rope_type"], p.get("attention_factor")
    if given is not None or kind not in ("yarn", "longrope"):
        return 1.0 if given is None else float(given)
    stretch = math.log(max(_stretch(p), 1.0))
    if kind == "longrope":
        return math.sqrt(1 + stretch / math.log(p["original_max_position_embeddings"]))
    above, below = p.get("mscale"), p.get("mscale_all_dim")
    return (0.1 * above * stretch + 1) / (0.1 * below * stretch + 1) if above and below else 0.1 * stretch + 1


# LongRoPE divides each frequency by a number of its own: `divisors` below
SCALINGS: dict[str, Callable[[Parameters, int], np.ndarray]] = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn,
                                                                "longrope": _default}


def rope_table(parameters: Parameters, dim: int, positions: int) -> np.ndarray:
    """Cosines and sines of heads of `dim` elements, float32 [positions, rotary / 2, 2], where the first rotary elements of a head turn: all,
    or a `partial_rotary_factor` of them. Raises CheckpointError for an unknown scaling, or one that lacks a number.

    `inv_freq_dtype: bfloat16` among the parameters says that the model ran with frequencies rounded to that (a whole torch module cast
    to bfloat16 has rounded them, although loading a bfloat16 checkpoint does not); without the key they are exact. `divisors`, one a
    frequency, are how a GGUF file scales them. LongRoPE has two sets of them: the context that a model is compiled for, `positions`,
    decides, so that keys in a cache never need another rotation."""
    kind = parameters["rope_type"]
    if kind not in SCALINGS:
        raise CheckpointError(f"unknown rope_type '{kind}'; known: {', '.join(SCALINGS)}")
    rotary = int(dim * parameters.get("partial_rotary_factor", 1.0) + 1e-6)     # a third of 48 is no less than 16
    try:
        divisors, amplitude = _divisors(parameters, positions), _amplitude(parameters)
        frequencies = SCALINGS[kind](parameters, rotary)
    except KeyError as error:
        raise CheckpointError(f"rope_type '{kind}' needs {error.args[0]} among the rope_parameters of config.json") from None
    if divisors.shape not in ((), frequencies.shape):
        raise CheckpointError(f"rope_type '{kind}' has {divisors.size} factors where {rotary} rotating elements need {len(frequencies)}")
    frequencies = frequencies / divisors
    if parameters.get("inv_freq_dtype") == "bfloat16":
        frequencies = frequencies.astype(ml_dtypes.bfloat16).astype(np.float64)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    table = np.empty((*angles.shape, 2), np.float32)
    for part, turned in enumerate((np.cos, np.sin)):
        table[..., part] = amplitude * turned(angles)
    return table


def _divisors(p: Parameters, positions: int) -> np.ndarray:
    if p["rope_type"] != "longrope":
        return np.asarray(p.get("divisors", 1.0))
    return np.asarray(p["long_factor" if positions > p["original_max_position_embeddings"] else "short_factor"], np.float64)
