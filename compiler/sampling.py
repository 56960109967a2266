"""What sampling means: from logits to one token a row in fixed point, so that every adapter draws the same token.

A logit times its row's scale gives a key: base-2 fixed point, 16 bits of fraction. Tokens stand in the order (key descending, index
ascending) and weigh 2**key. Top-k, top-p and min-p each keep a prefix of that order, so all that a filter changes is the mass that is
kept; the draw finds the token in whose share of that mass the random number falls. An octave is the keys that agree above the fraction:
weights in one octave share a power of two, which makes every sum exact in integers and independent of the order of summation.
"""
from enum import IntEnum

import numpy as np

MAX_VOCAB = 2**19  # the weights of one octave, 13 bits each, then always fit in 32 bits together
OCTAVES = 32        # tokens further than this below the best weigh nothing
RECORD = 12         # words in a row of parameters


class Field(IntEnum):
    """Words of a row of parameters; the templates number them alike, in _sampling.wgsl."""

    SCALE = 0           # f32 bits: factor of the logit of a token that the sequence has not had
    SCALE_POSITIVE = 1  # f32 bits: factor of a positive logit of a token that it has had
    SCALE_NEGATIVE = 2  # f32 bits: factor of a negative one
    DRAWS = 3           # 0: take the greatest logit, 1: draw
    TOP_K = 4           # 0: off
    TOP_P = 5           # u32 fraction of 2**32; 0: off
    MIN_P = 6           # greatest distance from the best key; -1: off
    RANDOM = 7          # u32 random bits
    STAMP = 8           # u32: the sequence has had token t where seen[slot, t] == stamp
    SLOT = 9            # row of `seen` and of `last`; -1: the row is idle


def keys_of(logits: np.ndarray, seen: np.ndarray, params: np.ndarray) -> np.ndarray:
    """The key of every token, i32 [rows, vocab]: fixed point for rows that draw, the order of the floats for greedy ones, 0 for idle ones."""
    if logits.shape[1] > MAX_VOCAB:
        raise ValueError(f"sampling takes a vocabulary of at most {MAX_VOCAB} tokens, not {logits.shape[1]}")
    keys = np.zeros((len(params), logits.shape[1]), np.int32)
    for i, row in enumerate(params):
        if (slot := row[Field.SLOT]) >= 0:
            x = _scaled(logits[i], seen[slot], row)
            keys[i] = np.floor(np.clip(x, -(2.0**30), 2.0**30)) if row[Field.DRAWS] else _ordered(x)
    return keys


def choose(keys: np.ndarray, params: np.ndarray) -> np.ndarray:
    """One token a row, i32 [rows], drawn or greedy as its parameters say; -1 for an idle row."""
    return np.array([-1 if row[Field.SLOT] < 0 else _draw(k, row) if row[Field.DRAWS] else int(np.argmax(k))
                     for k, row in zip(keys, params, strict=True)], np.int32)


def sample(logits: np.ndarray, seen: np.ndarray, params: np.ndarray) -> np.ndarray:
    """One token a row of logits, as keys_of and choose say."""
    return choose(keys_of(logits, seen, params), params)


def argmax(logits: np.ndarray, seen: np.ndarray, params: np.ndarray) -> np.ndarray:
    """The token of the greatest penalised logit in every row, the lowest index among equals; -1 for an idle row."""
    greedy = params.copy()
    greedy[:, Field.DRAWS] = 0
    return sample(logits, seen, greedy)


def summarise(keys: np.ndarray, params: np.ndarray, block: int, octaves: bool) -> np.ndarray:
    """What the second stage needs of each block of tokens, u32 [rows, blocks, 2 or 66]: with `octaves` the counts and the masses of the
    octaves from the best key's down; then the best key and its index."""
    rows, vocab = keys.shape
    out = np.zeros((rows, -(-vocab // block), (2 * OCTAVES if octaves else 0) + 2), np.uint32)
    for i in np.flatnonzero(params[:, Field.SLOT] >= 0):
        for b in range(out.shape[1]):
            part = keys[i, b * block:(b + 1) * block]
            best = int(np.argmax(part))
            if octaves:
                octave = (int(part[best]) >> 16) - (part >> 16).astype(np.int64)
                near = octave < OCTAVES
                out[i, b, :OCTAVES] = np.bincount(octave[near], minlength=OCTAVES)
                out[i, b, OCTAVES:-2] = np.bincount(octave[near], weights=weight(part[near]), minlength=OCTAVES).astype(np.uint64)
            out[i, b, -2:] = np.int32(part[best]).view(np.uint32), b * block + best
    return out


def feed(tokens: np.ndarray, params: np.ndarray, last: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`last` and `seen` after the tokens of all rows that are not idle."""
    last, seen = last.copy(), seen.copy()
    for token, row in zip(tokens, params, strict=True):
        if (slot := row[Field.SLOT]) >= 0:
            last[slot] = token
            seen[slot, token] = row.view(np.uint32)[Field.STAMP]
    return last, seen


def weight(key: np.ndarray) -> np.ndarray:
    """4096 * 2**f for a key's fraction f by a cubic in integers, within 0.02 %: an integer is the same everywhere, exp2 is not."""
    x = (key & 0xFFFF).astype(np.uint32)
    inner = np.uint32(22777) + ((x * (np.uint32(7460) + ((x * np.uint32(2525)) >> np.uint32(16)))) >> np.uint32(16))
    return np.uint32(4096) + ((x * inner + np.uint32(1 << 18)) >> np.uint32(19))


def _scaled(logits: np.ndarray, seen: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The logits times their factors: one f32 multiplication, which rounds alike on every adapter."""
    plain, positive, negative = row[:Field.DRAWS].view(np.float32)
    logits = _bounded(logits)
    had = seen == row.view(np.uint32)[Field.STAMP]
    return logits * np.where(had, np.where(logits > 0, positive, negative), plain)


def _bounded(x: np.ndarray) -> np.ndarray:
    """Zero below 2**-100, at most 2**60 in magnitude, NaN lowest: no product with a scale then is subnormal, infinite or NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    sign = np.where(magnitude > 0x7F800000, np.uint32(0x80000000), bits & np.uint32(0x80000000))
    return np.where(magnitude < 0x0D800000, np.uint32(0), sign | np.minimum(magnitude, np.uint32(0x5D800000))).view(np.float32)


def _ordered(x: np.ndarray) -> np.ndarray:
    """Integers in the order of the floats."""
    bits = x.view(np.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _draw(keys: np.ndarray, row: np.ndarray) -> int:
    top_k, top_p, min_p, random = (int(row[Field.TOP_K]), int(row.view(np.uint32)[Field.TOP_P]), int(row[Field.MIN_P]),
                                   int(row.view(np.uint32)[Field.RANDOM]))
    order = np.argsort(-keys, kind="stable")
    keys = keys[order]
    octave = (keys[0] >> 16) - (keys >> 16)
    weights = np.where(octave < OCTAVES, weight(keys).astype(np.uint64) << np.maximum(OCTAVES - 1 - octave, 0).astype(np.uint64), 0)
    through = np.cumsum(weights, dtype=np.uint64)  # the mass up to and with each token
    mass = int(through[-1])
    if top_k:
        mass = int(through[min(top_k, len(through)) - 1])
    if top_p:
        mass = int(through[_exceeds(through, mass * top_p >> 32)])
    if min_p >= 0:
        mass = min(mass, int(weights[keys >= keys[0] - min_p].sum()))
    return int(order[_exceeds(through, mass * random >> 32)])


def _exceeds(through: np.ndarray, bound: int) -> int:
    return int(np.searchsorted(through, np.uint64(bound), side="right"))
