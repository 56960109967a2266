"""Sampling parameters of one sequence as the record of words that the sampling kernels read."""
import math

import numpy as np

RECORD = 12
IDLE = -1  # the slot of a row that samples nothing

_OCTAVE = 65536  # keys have 16 bits of fraction
_LOG2E = 1.4426950408889634


def pack_params(temperature: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float, seed: int, step: int,
                stamp: int, slot: int = 0) -> np.ndarray:
    """i32[12]; its words are explained in compiler/sampling.py. `stamp` marks the tokens of this sequence in the history of its slot."""
    _check(temperature, top_k, top_p, min_p, repeat_penalty, step, stamp, slot)
    record = np.zeros(RECORD, np.int32)
    words = record.view(np.uint32)
    scale = _OCTAVE * _LOG2E / temperature if temperature > 0 else 1.0
    # Factors are bounded so that their products with logits, bounded too, are ordinary floats.
    factors = [min(max(s, 2.0**-20), 2.0**60) for s in (scale, scale / repeat_penalty, scale * repeat_penalty)]
    record[:3] = np.array(factors, np.float32).view(np.int32)
    record[3] = temperature > 0
    record[4] = top_k
    words[5] = 0 if top_p == 1 else max(1, math.ceil(top_p * 2**32) - 1)  # one less: a prefix of exactly this share is enough
    record[6] = math.floor(-math.log2(min_p) * _OCTAVE) if min_p >= 2**-30 else -1
    words[7] = random_bits(seed, step)
    words[8] = stamp
    record[9] = slot
    return record


def idle_params() -> np.ndarray:
    """The record of a row that samples nothing."""
    record = np.zeros(RECORD, np.int32)
    record[9] = IDLE
    return record


def random_bits(seed: int, step: int) -> int:
    """32 random bits for one step of a seed, from products of 32 bits only, so that JavaScript computes the same with Math.imul."""
    x = 0
    for word in (seed, seed >> 32, step):
        x = (x ^ word) + 0x9E3779B9 & 0xFFFFFFFF
        x = (x ^ x >> 16) * 0x21F0AAAD & 0xFFFFFFFF
        x = (x ^ x >> 15) * 0x735A2D97 & 0xFFFFFFFF
        x ^= x >> 15
    return x


def _check(temperature: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float, step: int, stamp: int, slot: int) -> None:
    rules = (
        (0 <= temperature < math.inf, f"temperature is {temperature}, but must be 0 (greedy) or a positive number"),
        (0 <= top_k < 2**31, f"top_k is {top_k}, but must be 0 (off) or a positive whole number"),
        (0 < top_p <= 1, f"top_p is {top_p}, but must be above 0 and at most 1 (off)"),
        (0 <= min_p <= 1, f"min_p is {min_p}, but must be between 0 (off) and 1"),
        (0 < repeat_penalty < math.inf, f"repeat_penalty is {repeat_penalty}, but must be a positive number (1 is off)"),
        (0 <= step < 2**32, f"step is {step}, but must be between 0 and 2**32 - 1"),
        (0 < stamp < 2**32, f"stamp is {stamp}, but must be between 1 and 2**32 - 1: 0 means a token that no sequence has had"),
        (0 <= slot < 2**31, f"slot is {slot}, but must be 0 or a positive whole number"),
    )
    for holds, sentence in rules:
        if not holds:
            raise ValueError(sentence)
