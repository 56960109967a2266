"""Ops that sample, in two dispatches: many workgroups look at the logits, and one a row decides and feeds its token forward."""
from __future__ import annotations

import numpy as np

from . import sampling
from .ir import Value
from .ops import define, need


def _sample_blocks(logits: Value, seen: Value, params: Value, *, block: int) -> tuple[Value, Value]:
    summary = _argmax_blocks(logits, seen, params, block=block)
    return Value((params.shape[0], logits.shape[1]), "i32"), Value((*summary.shape[:2], 2 * sampling.OCTAVES + 2), "u32")


def _argmax_blocks(logits: Value, seen: Value, params: Value, *, block: int) -> Value:
    need(logits.shape[1] == seen.shape[1], f"logits {logits} and seen {seen} differ in vocabulary")
    need(logits.shape[1] <= sampling.MAX_VOCAB, f"sampling takes a vocabulary of at most {sampling.MAX_VOCAB} tokens, not {logits.shape[1]}")
    need(params.shape[1:] == (sampling.RECORD,) and params.shape[0] <= logits.shape[0], f"params {params} do not fit {logits}")
    return Value((params.shape[0], -(-logits.shape[1] // block), 2), "u32")


def _sample_blocks_reference(logits, seen, params, *, block):
    keys = sampling.keys_of(logits[:len(params)], seen, params)
    return keys, sampling.summarise(keys, params, block, octaves=True)


def _argmax_blocks_reference(logits, seen, params, *, block):
    keys = sampling.keys_of(logits[:len(params)], seen, params * (np.arange(sampling.RECORD) != sampling.Field.DRAWS))
    return sampling.summarise(keys, params, block, octaves=False)


def _feed(tokens, params, token, last, seen):
    return (np.concatenate([tokens, token[len(tokens):]]), *sampling.feed(tokens, params, last, seen))


def _argmax_reference(params, summary, token, last, seen, *, block):
    keys, at = summary[..., 0].view(np.int32), summary[..., 1]
    best = at[np.arange(len(params)), keys.argmax(-1)].astype(np.int32)
    return _feed(np.where(params[:, sampling.Field.SLOT] < 0, -1, best).astype(np.int32), params, token, last, seen)


define("argmax_blocks", "logits seen params", _argmax_blocks, _argmax_blocks_reference, anchor=True)
define("argmax", "params summary token last seen", lambda params, summary, token, last, seen, block: (token, last, seen), _argmax_reference,
        inplace={0: 2, 1: 3, 2: 4}, anchor=True)
define("sample_blocks", "logits seen params", _sample_blocks, _sample_blocks_reference, anchor=True)
define("sample", "params keys summary token last seen", lambda params, keys, summary, token, last, seen, block: (token, last, seen),
        lambda params, keys, summary, token, last, seen, block: _feed(sampling.choose(keys, params), params, token, last, seen),
        inplace={0: 3, 1: 4, 2: 5}, anchor=True)
