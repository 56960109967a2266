"""What every op means: the type it gives, the value it computes, and its WGSL where it works element by element.

Row `t` of an op's input is one token. `position[t]` is its place in its sequence (-1 marks a padding row, which writes nothing)
and `slot[t]` names the sequence's part of the caches. All references compute in float32.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import sampling
from .ir import Graph, Op, Value
from .layouts import LAYOUTS
from .sources import assemble

NUMPY = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "u32": np.uint32}


@dataclass(frozen=True)
class OpDef:
    """One kind of op.

    operands: names by position, optional ones at the end with a `?`. infer: values and attributes to output values, raising
    ValueError with the reason when they do not fit. reference: arrays and attributes to an array, or a tuple of them.
    wgsl: an expression over {0}, {1}, … of f32 operands and {attribute}: only for element-wise ops, which broadcast as numpy does.
    inplace: output index to the input index whose buffer it continues. anchor: a body has at most one such op.
    chosen: {1} is not the second operand but what `chosen_rows` makes of the operands from the second on.
    """

    operands: tuple[str, ...]
    infer: Callable[..., Value | tuple[Value, ...]]
    reference: Callable[..., Any]
    wgsl: str | None = None
    inplace: Mapping[int, int] = field(default_factory=dict)
    anchor: bool = False
    chosen: bool = False

    @property
    def elementwise(self) -> bool:
        return self.wgsl is not None


OPS: dict[str, OpDef] = {}


def need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _define(kind: str, operands: str, infer, reference, **rest) -> None:
    OPS[kind] = OpDef(tuple(operands.split()), infer, reference, **rest)


# Element by element.

def _broadcast(*v: Value, **_) -> Value:
    try:
        shape = np.broadcast_shapes(*(x.shape for x in v))
    except ValueError:
        raise ValueError(f"operands differ in shape: {', '.join(map(str, v))}") from None
    need(shape == v[0].shape, f"the first operand {v[0]} must have the shape of the result {list(shape)}")
    return Value(shape, v[0].dtype)


def _elementwise(kind: str, operands: str, wgsl: str, reference) -> None:
    _define(kind, operands, _broadcast, reference, wgsl=wgsl)


def _sigmoid(a):
    return 1 / (1 + np.exp(-np.clip(a, -80, 80)))


def _gelu_tanh(a):
    return 0.5 * a * (1 + np.tanh(0.7978845608028654 * (a + 0.044715 * a * a * a)))


_elementwise("add", "a b", "({0} + {1})", lambda a, b: a + b)
_elementwise("mul", "a b", "({0} * {1})", lambda a, b: a * b)
_elementwise("scale", "a", "({0} * {by})", lambda a, by: a * np.float32(by))
_elementwise("silu", "a", "({0} / (1.0 + exp(-{0})))", lambda a: a * _sigmoid(a))
_elementwise("sigmoid", "a", "(1.0 / (1.0 + exp(-{0})))", _sigmoid)
# tanh overflows to NaN on some back ends, so its argument is clamped where it is 1 to the last bit anyway
_elementwise("gelu_tanh", "a", "(0.5 * {0} * (1.0 + tanh(clamp(0.7978845608 * ({0} + 0.044715 * {0} * {0} * {0}), -15.0, 15.0))))", _gelu_tanh)
# gpt-oss: SwiGLU of clamped operands, where the gate is bounded above only, and 1 is added to the other
_elementwise("clamped_swiglu", "gate up",
             "(min({0}, {limit}) / (1.0 + exp(-{alpha} * min({0}, {limit}))) * (clamp({1}, -{limit}, {limit}) + 1.0))",
             lambda gate, up, alpha, limit: np.minimum(gate, limit) * _sigmoid(alpha * np.minimum(gate, limit)) * (np.clip(up, -limit, limit) + 1))
_elementwise("softcap", "a", "({cap} * tanh(clamp({0} / {cap}, -15.0, 15.0)))", lambda a, cap: np.float32(cap) * np.tanh(a / np.float32(cap)))


# Rearranging.

def _slice(x: Value, *, axis: int, start: int, stop: int) -> Value:
    need(0 <= axis < len(x.shape) and 0 <= start < stop <= x.shape[axis], f"{start} to {stop} on axis {axis} is not within {x}")
    return Value((*x.shape[:axis], stop - start, *x.shape[axis + 1:]), x.dtype)


def _concat(a: Value, b: Value, *, axis: int) -> Value:
    need(len(a.shape) == len(b.shape) and 0 <= axis < len(a.shape) and a.shape[:axis] + a.shape[axis + 1:] == b.shape[:axis] + b.shape[axis + 1:],
         f"{a} and {b} do not fit together on axis {axis}")
    return Value((*a.shape[:axis], a.shape[axis] + b.shape[axis], *a.shape[axis + 1:]), a.dtype)


_define("slice", "x", _slice, lambda x, axis, start, stop: x.take(range(start, stop), axis))
_define("concat", "a b", _concat, lambda a, b, axis: np.concatenate([a, b], axis))


# Rows: lookup, norms, projections.

def _store(state: Value, x: Value, *, at: int = 0, count: int = 0) -> Value:
    need(state.shape[1:] == x.shape[1:] and x.shape[0] <= state.shape[0], f"{x} does not fit {state}")
    return Value(state.shape, state.dtype)


def _store_reference(state, x, *, at=0, count=0):
    state, columns = state.copy(), slice(at, at + count if count else None)
    state[:len(x), ..., columns] = x[..., columns]
    return state


# writes the first rows of a state, or of the result of another op; with `count` only so many columns from `at` on
_define("store", "state x", _store, _store_reference, wgsl="{1}", inplace={0: 0})


def _gather(table: Value, index: Value, last: Value | None = None, slot: Value | None = None, *, dtype: str = "f32",
            first: int = 0) -> Value:
    need(len(table.shape) == 2, f"the table must have rows and columns, not {table}")
    need(len(index.shape) == 1, f"the index must be a list, not {index}")
    return Value((*index.shape, table.shape[1]), dtype)


def _gather_reference(table, index, last=None, slot=None, *, dtype="f32", first=0):
    """first: the index of the table's first row; other rows' indices give zeros."""
    if last is not None:
        index = np.where(index < 0, last[slot], index)
    found = index - first
    return table[found.clip(0, len(table) - 1)] * ((found >= 0) & (found < len(table)))[:, None]


def _rms_norm(x: Value, weight: Value | None = None, *, eps: float) -> Value:
    need(weight is None or weight.shape == x.shape[-1:], f"the weight {weight} does not fit rows of {x}")
    return Value(x.shape, x.dtype)


def _rms_norm_reference(x, weight=None, *, eps):
    y = x / np.sqrt((x * x).mean(-1, keepdims=True, dtype=np.float32) + np.float32(eps))
    return y if weight is None else y * weight


def columns(width: int, at: int, result: np.ndarray) -> np.ndarray:
    """The result as the columns from `at` on of one that has `width`, zeros elsewhere; itself where width is 0."""
    if not width:
        return result
    whole = np.zeros((*result.shape[:-1], width), np.float32)
    whole[..., at:at + result.shape[-1]] = result
    return whole


def _matmul(x: Value, w: Value, *, dtype: str = "", width: int = 0, at: int = 0) -> Value:
    need(len(w.shape) == 2, f"w must be a matrix [out, in], not {w}")
    need(x.shape[-1] == w.shape[1], f"x has {x.shape[-1]} columns but w takes {w.shape[1]}")
    return Value((*x.shape[:-1], width or w.shape[0]), dtype or x.dtype)


def _matmul_reference(x, w, *, dtype="", width=0, at=0):
    return columns(width, at, x @ w.T)


def _split(x: Value, *, sizes: tuple[int, ...], head_dim: int = 0) -> tuple[Value, ...]:
    need(sum(sizes) == x.shape[-1], f"sizes {list(sizes)} do not add up to the {x.shape[-1]} columns of x")
    need(not head_dim or all(s % head_dim == 0 for s in sizes), f"sizes {list(sizes)} are no multiples of head_dim {head_dim}")
    return tuple(Value((*x.shape[:-1], *((s // head_dim, head_dim) if head_dim else (s,))), x.dtype) for s in sizes)


def _split_reference(x, *, sizes, head_dim=0):
    parts = np.split(x, np.cumsum(sizes)[:-1], axis=-1)
    return tuple(p.reshape(*p.shape[:-1], -1, head_dim) if head_dim else p for p in parts)


def _unzip(x: Value) -> tuple[Value, Value]:
    need(x.shape[-1] % 2 == 0, f"x has an odd number of columns: {x}")
    half = Value((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
    return half, half


_define("gather", "table index last? slot?", _gather, _gather_reference, anchor=True)
_define("rms_norm", "x weight?", _rms_norm, _rms_norm_reference)
_define("matmul", "x w", _matmul, _matmul_reference, anchor=True)
_define("split", "x", _split, _split_reference)
_define("unzip", "x", _unzip, lambda x: (x[..., 0::2], x[..., 1::2]))


# Attention.

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


_define("rope", "x table position", _rope, _rope_reference)
_define("position_scale", "x table position", _position_scale,
        lambda x, table, position: x * table[position.clip(0)].reshape(-1, *[1] * (x.ndim - 1)))
_define("cache_write", "cache x position slot", _cache_write, _cache_write_reference, inplace={0: 0})
_define("attention", "q k v position slot sinks?", _attention, _attention_reference, anchor=True)
_define("attention_split", "q k v position slot", _attention, _attention_split_reference, anchor=True)
_define("attention_merge", "parts sinks?", _attention_merge, _attention_merge_reference, anchor=True)


# Mixture of experts.

def _route(logits: Value, *, top_k: int, score: str, normalize: bool = False) -> tuple[Value, Value]:
    need(1 <= top_k <= logits.shape[-1], f"cannot choose {top_k} of {logits.shape[-1]} experts")
    need(score in ("sigmoid", "softmax", "softmax_chosen"), f"unknown score {score}; known: sigmoid, softmax, softmax_chosen")
    shape = (*logits.shape[:-1], top_k)
    return Value(shape, "i32"), Value((*shape, 1), "f32")       # the scores broadcast over what an expert gives


def _route_reference(logits, *, top_k, score, normalize=False):
    chosen = np.argsort(-logits, axis=-1, kind="stable")[..., :top_k]
    best = np.take_along_axis(logits, chosen, -1)
    if score == "sigmoid":
        scores = _sigmoid(best)
    else:
        over = best if score == "softmax_chosen" else logits
        scores = np.exp(best - best[..., :1]) / np.exp(over - best[..., :1]).sum(-1, keepdims=True)
    if normalize:
        scores = scores / scores.sum(-1, keepdims=True)
    return chosen.astype(np.int32), scores[..., None]


def _expert_matmul(x: Value, w: Value, expert: Value, *, dtype: str = "", width: int = 0, at: int = 0) -> Value:
    need(len(w.shape) == 3, f"w must be [experts, out, in], not {w}")
    need(x.shape[-1] == w.shape[2], f"x has {x.shape[-1]} columns but w takes {w.shape[2]}")
    need(x.shape[:-1] in (expert.shape, expert.shape[:1]), f"x {x} does not fit the choice {expert}")
    return Value((*expert.shape, width or w.shape[1]), dtype or x.dtype)


def _expert_matmul_reference(x, w, expert, *, dtype="", width=0, at=0):
    x = np.broadcast_to(x[:, None] if x.ndim == 2 else x, (*expert.shape, x.shape[-1]))
    out = np.zeros((*expert.shape, w.shape[1]), np.float32)
    for e in np.unique(expert):
        out[expert == e] = x[expert == e] @ w[e].T
    return columns(width, at, out)


def _expert_sum(x: Value, w: Value, expert: Value, score: Value | None = None, *, width: int = 0, at: int = 0) -> Value:
    need(len(w.shape) == 3 and x.shape[-1] == w.shape[2], f"x {x} does not fit w {w}")
    need(x.shape[:-1] == expert.shape, f"x {x} does not fit the choice {expert}")
    return Value((x.shape[0], width or w.shape[1]), x.dtype)


def _expert_sum_reference(x, w, expert, score=None, *, width=0, at=0):
    each = _expert_matmul_reference(x, w, expert, width=width, at=at)
    return (each if score is None else each * score.reshape(*expert.shape, 1)).sum(1)


def _expert_bias(x: Value, bias: Value, expert: Value, score: Value | None = None) -> Value:
    need(len(bias.shape) == 2 and bias.shape[1] == x.shape[-1], f"the bias must be [experts, {x.shape[-1]}], not {bias}")
    need(x.shape[:-1] in (expert.shape, expert.shape[:-1]), f"x {x} does not fit the choice {expert}")
    need(score is None or score.shape == (*expert.shape, 1), f"the score {score} does not fit the choice {expert}")
    return Value(x.shape, x.dtype)


def chosen_rows(bias, expert, score=None, *, summed: bool):
    """The rows of bias that expert [tokens, choices] names, times their scores; with `summed`, their sum over a token's choices."""
    each = bias[expert] if score is None else bias[expert] * score
    return each.sum(-2) if summed else each


_define("expert_bias", "x bias expert score?", _expert_bias,
        lambda x, bias, expert, score=None: x + chosen_rows(bias, expert, score, summed=x.ndim == expert.ndim), wgsl="({0} + {1})", chosen=True)


def _sum_choices(x: Value, score: Value | None = None, *, dtype: str = "") -> Value:
    need(len(x.shape) == 3, f"x must be [rows, choices, columns], not {x}")
    need(score is None or score.size == x.shape[0] * x.shape[1], f"the score {score} does not fit x {x}")
    return Value((x.shape[0], x.shape[2]), dtype or x.dtype)


def _sum_choices_reference(x, score=None, *, dtype=""):
    return (x if score is None else x * score.reshape(*x.shape[:2], 1)).sum(1)


_define("route", "logits", _route, _route_reference, anchor=True)
_define("expert_matmul", "x w expert", _expert_matmul, _expert_matmul_reference, anchor=True)
_define("expert_sum", "x w expert score?", _expert_sum, _expert_sum_reference, anchor=True)
_define("sum_choices", "x score?", _sum_choices, _sum_choices_reference, anchor=True)


# Sampling, in two dispatches: many workgroups look at the logits, one a row decides and feeds its token forward.

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


_define("argmax_blocks", "logits seen params", _argmax_blocks, _argmax_blocks_reference, anchor=True)
_define("argmax", "params summary token last seen", lambda params, summary, token, last, seen, block: (token, last, seen), _argmax_reference,
        inplace={0: 2, 1: 3, 2: 4}, anchor=True)
_define("sample_blocks", "logits seen params", _sample_blocks, _sample_blocks_reference, anchor=True)
_define("sample", "params keys summary token last seen", lambda params, keys, summary, token, last, seen, block: (token, last, seen),
        lambda params, keys, summary, token, last, seen, block: _feed(sampling.choose(keys, params), params, token, last, seen),
        inplace={0: 3, 1: 4, 2: 5}, anchor=True)


# Projections of activations that are rounded to 8-bit integers by blocks of 32, once for all that read them.

def _quantize(x: Value, weight: Value | None = None) -> tuple[Value, Value]:
    need(weight is None or weight.shape == x.shape[-1:], f"the weight {weight} does not fit rows of {x}")
    need(x.shape[-1] % 32 == 0, f"rows of {x} do not divide into blocks of 32")
    return Value((*x.shape[:-1], x.shape[-1] // 4), "u32"), Value((*x.shape[:-1], x.shape[-1] // 32, 4), "f32")


def _quantize_reference(x, weight=None):
    """Of x times weight, four integers a word, lowest byte first; and for each block its scale, the scaled sums of the integers of its
    halves, and the sum of the squares of x, from which a projection has the RMS norm."""
    squares = (x * x).reshape(*x.shape[:-1], -1, 32).sum(-1, keepdims=True)
    x = x if weight is None else x * weight
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    most = np.abs(blocks).max(-1, keepdims=True)
    scale = most / np.float32(127)
    integers = np.rint(blocks * np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0))
    sums = integers.reshape(*blocks.shape[:-1], 2, 16).sum(-1)
    return integers.astype(np.int8).reshape(x.shape).view(np.uint32), np.concatenate([scale, scale * sums, squares], -1)


def _restored(x, scales):
    """The numbers that rounded activations stand for."""
    blocks = np.ascontiguousarray(x).view(np.int8).astype(np.float32).reshape(*scales.shape[:-1], 32)
    return (blocks * scales[..., :1]).reshape(*x.shape[:-1], -1)


def _on_integers(kind: str) -> None:
    """The projection `kind` of rounded activations: operands x (integers) and scales where the plain one has x. With `eps`, the result is
    divided by the root mean square of what was rounded, plus eps."""
    plain = OPS[kind]

    def rule(x: Value, scales: Value, *rest: Value, dtype: str = "f32", eps: float = 0.0, **attrs) -> Value:
        need(scales.shape == (*x.shape[:-1], x.shape[-1] // 8, 4), f"scales {scales} do not fit x {x}")
        made = plain.infer(Value((*x.shape[:-1], 4 * x.shape[-1])), *rest, **attrs)
        assert isinstance(made, Value)
        return Value(made.shape, dtype)

    def reference(x, scales, *rest, dtype="f32", eps=0.0, **attrs):
        result = plain.reference(_restored(x, scales), *rest, **attrs)
        if not eps:
            return result
        root = np.sqrt(scales[..., 3].sum(-1) / np.float32(4 * x.shape[-1]) + np.float32(eps))
        return result / root.reshape(*root.shape, *[1] * (result.ndim - root.ndim))
    _define(f"{kind}_q8", " ".join(("x", "scales", *plain.operands[1:])), rule, reference, anchor=True)


_define("quantize", "x weight?", _quantize, _quantize_reference)
for _kind in ("matmul", "expert_matmul", "expert_sum"):
    _on_integers(_kind)


def infer(op: Op, values: Mapping[str, Value]) -> tuple[Value, ...]:
    """The output values that an op's operands give. Raises ValueError with the reason when they do not fit."""
    definition = OPS[op.kind]
    least = sum(not name.endswith("?") for name in definition.operands)
    need(least <= len(op.inputs) <= len(definition.operands),
         f"{op.kind} takes {', '.join(definition.operands)} but got {len(op.inputs)} operands")
    result = definition.infer(*(values[n] for n in op.inputs), **dict(op.attrs))
    return result if isinstance(result, tuple) else (result,)


def evaluate_op(op: Op, values: Mapping[str, Value], env: dict[str, np.ndarray]) -> None:
    """Run one op, or the body of a fused one, in numpy: reads and writes `env` by name."""
    for part in op.parts:
        args = [a.astype(np.float32) if a.dtype == np.float16 else a for a in (_array(n, values, env) for n in part.inputs)]
        with np.errstate(over="ignore", under="ignore"):
            result = OPS[part.kind].reference(*args, **dict(part.attrs))
        for name, array in zip(part.outputs, result if isinstance(result, tuple) else (result,), strict=True):
            env[name] = np.asarray(array, NUMPY[values[name].dtype])


def _array(name: str, values: Mapping[str, Value], env: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a name stands for, which may be another's array in its own shape."""
    return env[name] if name in env else env[aliased(name, values)].reshape(values[name].shape)


def evaluate(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the graph in numpy: the meaning that every pass must keep.

    feeds: an array for every input, state and source-less weight. Returns the graph's outputs by name.
    """
    env = dict(feeds)
    for name, value in graph.values.items():
        if value.role == "weight" and name not in env and value.source:
            env[name] = assemble(name, graph.values, env.__getitem__)
    for op in graph.ops:
        evaluate_op(op, graph.values, env)
    return {name: env[name] for name in graph.outputs}


def step(graph: Graph, states: dict[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> None:
    """Run the graph in numpy and leave the new contents of its states in `states`. feeds: inputs and weights."""
    env = {**feeds, **{n: states[n] for n in graph.role("state")}}
    for op in graph.ops:
        evaluate_op(op, graph.values, env)
    home = buffers_of(graph)
    for name in (n for op in graph.ops for part in op.parts for n in part.outputs):
        if graph.values[home[name]].role == "state":
            states[home[name]] = env[name]      # the last name of a buffer stays


def buffers_of(graph: Graph) -> dict[str, str]:
    """Every name to the name whose buffer it is: a state that an op renames is one buffer, and so is an alias with what it stands for."""
    home = {n: n for n in graph.values}
    for op in (p for o in graph.ops for p in o.parts):
        for output, source in OPS[op.kind].inplace.items():
            home[op.outputs[output]] = home[op.inputs[source]]
    return home | {n: home[aliased(n, graph.values)] for n in graph.values if aliased(n, graph.values) != n}


def aliased(name: str, values: Mapping[str, Value]) -> str:
    """The name that an alias stands for in the end; any other name itself."""
    while values[name].source[:1] == ("alias",):
        name = str(values[name].source[1])
    return name


