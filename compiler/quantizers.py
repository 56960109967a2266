"""How float32 blocks [n, elements] become codes and scales: GGUF's own rounding to the bit, and least squares where GGUF prescribes none."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

Fields = dict[str, np.ndarray]
Quantizer = Callable[[np.ndarray], Fields]

HALF_MAX = 65504.0
SHRINK = range(-4, 5)       # by how many quarters of a level a tried scale's range differs from the numbers' own
STEPS, TINY = 1 << 14, np.float32(2.0**-100)


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 for 0."""
    return np.where(d == 0, np.float32(0), 1 / d).astype(np.float32)


def _farthest(x: np.ndarray) -> np.ndarray:
    """The number of the largest magnitude in every row, the first of equals, with its sign."""
    high, low = x.max(1), x.min(1)
    peak = np.where(high > -low, high, low)
    if len(even := np.flatnonzero(high == -low)):
        peak[even] = x[even, np.abs(x[even]).argmax(1)]
    return peak


def _half(d: np.ndarray) -> np.ndarray:
    """To f16, which large scales would leave."""
    return np.clip(d, -HALF_MAX, HALF_MAX).astype(np.float16)


def rounded(x: np.ndarray) -> Fields:
    """q8_0: halves away from zero."""
    d = np.abs(np.maximum(x.max(1), -x.min(1))) / np.float32(127)      # of zeros too the positive one
    scaled = x * _inverse(d)[:, None]
    size = np.abs(scaled)
    whole = np.floor(size)
    whole += np.floor(2 * (size - whole))
    return {"q": np.copysign(whole, scaled).astype(np.int8).view(np.uint8), "d": d.astype(np.float16)}


def signed(half: int) -> Quantizer:
    """q4_0 and q5_0: the number of the largest magnitude gets the lowest code."""
    def quantize(x: np.ndarray) -> Fields:
        d = _farthest(x) / np.float32(-half)
        q = (x * _inverse(d)[:, None] + np.float32(half + 0.5)).astype(np.uint8)
        return {"q": np.minimum(q, np.uint8(2 * half - 1)), "d": d.astype(np.float16)}
    return quantize


def ranged(top: int) -> Quantizer:
    """q4_1 and q5_1: codes from the least number to the largest."""
    def quantize(x: np.ndarray) -> Fields:
        high, low = x.max(1), x.min(1)
        d = (high - low) / np.float32(top)
        q = ((x - low[:, None]) * _inverse(d)[:, None] + np.float32(0.5)).astype(np.uint8)
        return {"q": np.minimum(q, np.uint8(top)), "d": d.astype(np.float16), "m": low.astype(np.float16)}
    return quantize


def minifloat(x: np.ndarray) -> Fields:
    """mxfp4: the power of two by the largest magnitude, then the nearest level, the smaller of two."""
    peak = np.maximum(x.max(1), -x.min(1))
    e = np.where(peak > 0, np.floor(np.log2(peak)) - 2 + 127, 0).astype(np.uint8)
    wide = e.astype(np.uint32)
    d = np.where(wide < 2, np.uint32(0x00200000) << wide, (wide - np.uint32(1)) << np.uint32(23)).astype(np.uint32).view(np.float32)
    size = np.abs(x)
    q = np.zeros(x.shape, np.uint8)
    for middle in (0.5, 1.5, 2.5, 3.5, 5, 7, 10):
        q += size > (d * np.float32(middle))[:, None]
    return {"q": q | (((x < 0) & (q > 0)).view(np.uint8) << np.uint8(3)), "e": e}


def symmetric(bits: int) -> Quantizer:
    """Codes of both signs around zero; those of 4 bits are kept plus 8."""
    most = 2 ** (bits - 1) - 1

    def quantize(x: np.ndarray) -> Fields:
        d = _half(np.abs(np.maximum(x.max(1), -x.min(1))) / np.float32(most))
        q = np.clip(np.rint(x * _inverse(d.astype(np.float32))[:, None]), -most, most).astype(np.int8)
        return {"q": (q + np.int8(8) if bits == 4 else q).view(np.uint8), "d": d}
    return quantize


def zero_pointed(bits: int) -> Quantizer:
    """Codes from the least number to the largest, with a code for zero; codes and zero points of 8 bits are kept minus 128."""
    top, less = 2**bits - 1, 128 if bits == 8 else 0

    def quantize(x: np.ndarray) -> Fields:
        low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
        d = _half(high / np.float32(top) - low / np.float32(top))
        inverse = _inverse(d.astype(np.float32))
        z = np.clip(np.rint(-low * inverse), 0, top)
        q = np.clip(np.rint(x * inverse[:, None]) + z[:, None], 0, top)
        return {"q": (q - less).astype(np.int8).view(np.uint8), "d": d, "z": (z - less).astype(np.int8)}
    return quantize


def _in_steps(x: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sub-blocks of so many elements as columns, which numpy sums fast, in integer steps of the 16384th part of their largest magnitudes;
    and that step. What follows is then exact, in whatever order it is summed; f16 scales hold nothing of what is below 2^-100."""
    t = np.ascontiguousarray(x.reshape(-1, size).T)
    peak = np.maximum(t.max(0), -t.min(0))
    peak = np.where(peak < TINY, np.float32(0), peak)
    return np.rint(t * (np.float32(STEPS) * _inverse(peak))).astype(np.int32), peak * np.float32(1 / STEPS)


def _sum(q: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Of products down the columns, exact: at most 32 * 31 * 2^14."""
    return np.einsum("ij,ij->j", q, t)


def _ranges(t: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale, and minimum of at most 0, of every column, that least squares prefer: the best of nine roundings, by what they take from the
    sum of squares."""
    count, total = len(t), t.sum(0, dtype=np.int32)
    low = np.minimum(t.min(0), 0)
    height, extent = t - low, np.maximum(np.maximum(t.max(0), 0) - low, 1)
    scale, least, best = (np.zeros(t.shape[1], np.float32) for _ in range(3))
    for more in SHRINK:
        q = np.minimum((height * ((4 * top + more << 22) // extent) + (1 << 23)) >> 24, top)
        sums, squares, products = q.sum(0, dtype=np.int32), _sum(q, q), _sum(q, t)
        d = (count * products - sums * total).astype(np.float32) * _inverse((count * squares - sums * sums).astype(np.float32))
        m = (total.astype(np.float32) - d * sums.astype(np.float32)) * np.float32(1 / count)
        d, m = np.where(m > 0, products.astype(np.float32) * _inverse(squares.astype(np.float32)), d), np.minimum(m, 0)
        gain = d * products.astype(np.float32) + m * total.astype(np.float32)
        better = gain > best
        scale, least, best = np.where(better, d, scale), np.where(better, m, least), np.where(better, gain, best)
    return scale, least


def k_ranged(top: int) -> Quantizer:
    """q4_k and q5_k: a scale and a minimum for 32 elements, both in 6 bits of what eight of them share."""
    def quantize(x: np.ndarray) -> Fields:
        t, step = _in_steps(x, 32)
        wanted = [np.abs(a * step).reshape(-1, 8) for a in _ranges(t, top)]
        shared = [_half(a.max(1) / np.float32(63)) for a in wanted]
        s = np.stack([np.clip(np.rint(a * _inverse(b.astype(np.float32))[:, None]), 0, 63) for a, b in zip(wanted, shared, strict=True)], axis=-1)
        scale, least = (b.astype(np.float32)[:, None] * s[..., k] for k, b in enumerate(shared))
        parts = x.reshape(-1, 8, 32)
        q = np.clip(np.rint((parts + least[..., None]) * _inverse(scale)[..., None]), 0, top).astype(np.uint8)
        return {"q": q.reshape(x.shape), "s": s.astype(np.uint8), "d": shared[0], "m": shared[1]}
    return quantize


def k_centred(x: np.ndarray) -> Fields:
    """q6_k: a scale for 16 elements, in 8 bits of what sixteen of them share."""
    t, step = _in_steps(x, 16)
    sign = np.where(t.max(0) > -t.min(0), -1, 1).astype(np.int32)        # the largest magnitude gets the lowest code
    t = t * sign
    scale, best = (np.zeros(t.shape[1], np.float32) for _ in range(2))
    for more in SHRINK:
        q = np.clip((t * (128 + more) + (1 << 15)) >> 16, -32, 31)
        products, inverse = _sum(q, t).astype(np.float32), _inverse(_sum(q, q).astype(np.float32))
        gain = products * products * inverse
        scale, best = np.where(gain > best, products * inverse, scale), np.maximum(gain, best)
    wanted = (scale * (step * sign.astype(np.float32))).reshape(-1, 16)
    d = _half(_farthest(wanted) / np.float32(-128))
    wide = d.astype(np.float32)[:, None]
    s = np.clip(np.rint(wanted * _inverse(wide)), -128, 127)
    q = np.clip(np.rint(x.reshape(-1, 16, 16) * _inverse(wide * s)[..., None]), -32, 31).astype(np.int8) + np.int8(32)
    return {"q": q.view(np.uint8).reshape(x.shape), "s": s.astype(np.int8), "d": d}
