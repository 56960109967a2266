"""Ops of attention: RoPE, scales by position, caches, and attention itself, whole or split over the keys."""
from __future__ import annotations

import numpy as np

from .ir import Value
from .layouts import LAYOUTS
from .ops import define, need


def _rope(x: Value, table: Value, position: Value, *, interleaved: bool) -> Value:
    need(len(table.shape) == 3 and table.shape[2] == 2, f"the table must be [positions, rotary / 2, cos and sin], not {table}")
    need(2 * table.shape[1] <= x.shape[-1], f"the table rotates {2 * table.shape[1]} elements but a head has {x.shape[-1]}")
    return Value(x.shape, x.dtype)


def _rope_reference(x, table, position, *, interleaved):
    half = table.shape[1]
    cos, sin = np.moveaxis(table[position.clip(0)][:, None], -1, 0)
    rotated = x.copy()
    a, b = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    rotated[..., a] = x[..., a] * cos - x[..., b] * sin
    rotated[..., b] = x[..., a] * sin + x[..., b] * cos
    return rotated


def _position_scale(x: Value, table: Value, position: Value) -> Value:
    need(len(table.shape) == 1, f"the table must have one factor a position, not {table}")
    return Value(x.shape, x.dtype)


def _cache_write(cache: Value, x: Value, position: Value, slot: Value, *, rounding: str = "row") -> Value:
    need(rounding == cache.layout, f"what goes into a cache stored as {cache.layout} is rounded so, not as {rounding}")
    need(len(cache.shape) == 4, f"a cache is [slots, heads, rows, head_dim], not {cache}")
    need((cache.shape[1], cache.shape[3]) == x.shape[1:], f"x {x} does not fit the cache {cache}")
    return Value(cache.shape, cache.dtype, layout=cache.layout)


def _cache_write_reference(cache, x, position, slot, *, rounding="row"):
    """rounding: the layout of the cache, which may hold x only roughly."""
    x = LAYOUTS[rounding].unpack(LAYOUTS[rounding].pack(x), x.shape)
    cache, live = cache.copy(), position >= 0
    cache[slot[live], :, position[live] % cache.shape[2]] = x[live]
    return cache


def _attention(q: Value, k: Value, v: Value, position: Value, slot: Value, sinks: Value | None = None, *, scale: float,
               mask: str = "full", window: int = 0, cap: float = 0.0, sequence: bool = False, splits: int = 0, least: int = 1) -> Value:
    need(k.shape == v.shape, f"keys {k} and values {v} differ")
    need(len(q.shape) == 3 and q.shape[2] == k.shape[3], f"queries {q} do not fit keys {k}")
    need(q.shape[1] % k.shape[1] == 0, f"{q.shape[1]} query heads do not divide over {k.shape[1]} key heads")
    need(mask in ("full", "chunked", "sliding"), f"unknown mask {mask}; known: full, chunked, sliding")
    need(mask == "full" or window > 0, f"a {mask} mask needs its window")
    if splits:
        return Value((q.shape[0], q.shape[1], splits, q.shape[2] + 4), "f32")
    return Value((q.shape[0], q.shape[1] * q.shape[2]), q.dtype)


def first_key(position: int, mask: str, window: int) -> int:
    """The first position that a query at `position` sees: 0, the start of its chunk, or the start of its window."""
    return {"full": 0, "chunked": position // window * window if window else 0, "sliding": max(0, position - window + 1)}[mask]


def _scores(q, k, v, position, slot, t, scale, mask, window, cap):
    """Scores [heads, keys] and values [heads, keys, head_dim] that row t sees."""
    at = np.arange(first_key(int(position[t]), mask, window), position[t] + 1) % k.shape[2]
    group = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(c[slot[t]][:, at], group, axis=0) for c in (k, v))
    scores = np.einsum("hd,hjd->hj", q[t], keys) * np.float32(scale)
    return (np.float32(cap) * np.tanh(scores / np.float32(cap)) if cap else scores), values


def _attention_reference(q, k, v, position, slot, sinks=None, *, scale, mask="full", window=0, cap=0.0, sequence=False):
    out = np.zeros((q.shape[0], q.shape[1] * q.shape[2]), np.float32)
    for t in np.flatnonzero(position >= 0):
        scores, values = _scores(q, k, v, position, slot, t, scale, mask, window, cap)
        top = scores.max(-1, keepdims=True)
        if sinks is not None:
            top = np.maximum(top, sinks[:, None])
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True) + (np.exp(sinks[:, None] - top) if sinks is not None else 0)
        out[t] = np.einsum("hj,hjd->hd", weights / total, values).ravel()
    return out


def _attention_split_reference(q, k, v, position, slot, *, scale, splits, least=1, mask="full", window=0, cap=0.0):
    """Per split of the keys, at least `least` of them: sum of exp(score - top) * value [head_dim], top, sum of exp(score - top), 0, 0."""
    dim = q.shape[2]
    out = np.zeros((q.shape[0], q.shape[1], splits, dim + 4), np.float32)
    out[..., dim] = -1e30
    for t in np.flatnonzero(position >= 0):
        scores, values = _scores(q, k, v, position, slot, t, scale, mask, window, cap)
        per_split = max(least, -(-scores.shape[1] // splits))
        for s in range(-(-scores.shape[1] // per_split)):
            part = slice(s * per_split, (s + 1) * per_split)
            top = scores[:, part].max(-1)
            weights = np.exp(scores[:, part] - top[:, None])
            out[t, :, s, :dim] = np.einsum("hj,hjd->hd", weights, values[:, part])
            out[t, :, s, dim], out[t, :, s, dim + 1] = top, weights.sum(-1)
    return out


def _attention_merge(parts: Value, sinks: Value | None = None, *, dtype: str = "f32") -> Value:
    need(len(parts.shape) == 4, f"parts must be [rows, heads, splits, head_dim + 4], not {parts}")
    return Value((parts.shape[0], parts.shape[1] * (parts.shape[3] - 4)), dtype)


def _attention_merge_reference(parts, sinks=None, *, dtype="f32"):
    tops, sums = parts[..., -4], parts[..., -3]
    top = tops.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None])
    factor = np.exp(tops - top)
    total = (sums * factor).sum(-1) + (np.exp(sinks[:, None] - top)[..., 0] if sinks is not None else 0)
    merged = (parts[..., :-4] * factor[..., None]).sum(-2) / np.maximum(total, 1e-30)[..., None]
    return merged.reshape(parts.shape[0], -1)


define("rope", "x table position", _rope, _rope_reference)
define("position_scale", "x table position", _position_scale,
        lambda x, table, position: x * table[position.clip(0)].reshape(-1, *[1] * (x.ndim - 1)))
define("cache_write", "cache x position slot", _cache_write, _cache_write_reference, inplace={0: 0})
define("attention", "q k v position slot sinks?", _attention, _attention_reference, anchor=True)
define("attention_split", "q k v position slot", _attention, _attention_split_reference, anchor=True)
define("attention_merge", "parts sinks?", _attention_merge, _attention_merge_reference, anchor=True)
