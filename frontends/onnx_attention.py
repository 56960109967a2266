"""ONNX's attention and rotary embeddings on the fused kernels of decoders, where their shapes fit; elsewhere their standard functions run."""
from __future__ import annotations

from typing import Any

import numpy as np

from .onnx_graph import Lowering, Node, Results, operator
from .onnx_tensors import Tensor


@operator("Attention")
def attention(g: Lowering, n: Node) -> Results:
    """Queries of all sequences are rows; keys and values, past ones before, stand where a cache would hold them."""
    q, k, v = n.input(0), n.input(1), n.input(2)
    heads, shared = (n.attr("q_num_heads"), n.attr("kv_num_heads")) if len(q.shape) == 3 else (q.shape[1], k.shape[1])
    if not _fits(n, q, k, v, heads, shared):
        return g.standard(n)
    flat = len(q.shape) == 3
    batch, count, dim = q.shape[0], q.shape[-2], q.shape[2] // heads if flat else q.shape[3]
    rows = g.reshape(q if flat else g.transpose(q, (0, 2, 1, 3)), (batch * count, heads, dim))
    before = n.optional(4)
    start = before.shape[2] if before is not None else 0
    seen = k.shape[-2] + start
    if flat and before is None and not n.wants(1) and not n.wants(2):
        k, v = (_cached(g, x, shared) for x in (k, v))
    else:
        k, v = ((_split(g, x, shared) if flat else x) for x in (k, v))
        k, v = (x if past is None else g.concat([past, x], 2) for x, past in ((k, before), (v, n.optional(5))))
    causal, left = bool(n.attr("is_causal", 0)), int(n.attr("left_window_size", -1))
    places = start + np.arange(count) if causal else np.full(count, seen - 1)
    sliding: dict[str, Any] = {"mask": "sliding", "window": left + 1} if left >= 0 else {}
    y = g.make("attention", rows, k, v, *_places(g, places, batch), scale=float(n.attr("scale") or dim**-0.5),
               cap=float(n.attr("softcap", 0.0)), sequence=batch == 1 and (causal or count == 1), **sliding)
    y = g.reshape(y, (batch, count, heads * dim))
    return [y if flat else g.transpose(g.reshape(y, (batch, count, heads, dim)), (0, 2, 1, 3)), k, v]


def _cached(g: Lowering, x: Tensor, heads: int) -> Tensor:
    """Keys or values [batch, rows, heads * dim], written to a cache as a decoder's are, straight from its projection."""
    batch, rows, width = x.shape
    shape = (batch, heads, rows, width // heads)
    state = Tensor(shape, x.dtype, g.state(f"cache.{g.count('cache')}", shape))
    return g.make("cache_write", state, g.reshape(x, (batch * rows, heads, width // heads)), *_places(g, np.arange(rows), batch))


def _places(g: Lowering, places: np.ndarray, batch: int) -> tuple[Tensor, Tensor]:
    """The position of each row, the same in every sequence, and its sequence."""
    slots = np.repeat(np.arange(batch), len(places))
    return _weight(g, "position", np.tile(places, batch).astype(np.int32)), _weight(g, "slot", slots.astype(np.int32))


def _weight(g: Lowering, what: str, numbers: np.ndarray) -> Tensor:
    """Numbers as a weight, one for all that are alike and mean the same."""
    def make() -> Tensor:
        name = f"w.{len(g.leaves)}"
        g.leaves[name] = numbers
        return Tensor(numbers.shape, numbers.dtype.name, g.weight(name, numbers.shape, "i32" if numbers.dtype == np.int32 else "f32"))
    return g.shared((what, numbers.shape, numbers.dtype.str, numbers.tobytes()), make)


def _fits(n: Node, q: Tensor, k: Tensor, v: Tensor, heads: int, shared: int) -> bool:
    """Whether the attention of decoders computes this: no mask but a causal one (with a window), and heads of whole quads."""
    plain = all(n.optional(i) is None for i in (3, 6)) and not n.wants(3) and (n.optional(4) is None) == (n.optional(5) is None)
    if not plain or not all(x.floating and x.size and not x.known for x in (q, k, v)) or not heads or not shared or heads % shared:
        return False
    past = n.optional(4)
    before, rows = past.shape[2] if past is not None else 0, q.shape[-2]
    dims = [x.shape[-1] // c if len(x.shape) == 3 else x.shape[-1] for x, c in ((q, heads), (k, shared), (v, shared))]
    causal, left = bool(n.attr("is_causal", 0)), int(n.attr("left_window_size", -1))
    seen = k.shape[-2] + before
    windows = int(n.attr("right_window_size", -1)) < 0 and (left < 0 or causal)
    return dims[0] == dims[1] == dims[2] and dims[0] % 4 == 0 and windows and (not causal or before + rows <= seen)


def _split(g: Lowering, x: Tensor, heads: int) -> Tensor:
    """[batch, rows, heads * dim] to [batch, heads, rows, dim]."""
    batch, rows, width = x.shape
    return g.transpose(g.reshape(x, (batch, rows, heads, width // heads)), (0, 2, 1, 3))


@operator("RotaryEmbedding")
def rotary(g: Lowering, n: Node) -> Results:
    """Cosines and sines that are known become a decoder's table: a row a position."""
    x, cos, sin, ids = n.input(0), n.input(1), n.input(2), n.optional(3)
    half = cos.shape[-1]
    if cos.array is None or sin.array is None or x.known or (ids is None) != (len(cos.shape) == 3):
        return g.standard(n)
    table = np.stack([cos.array, sin.array], -1).reshape(-1, half, 2)
    flat = len(x.shape) == 3
    heads = n.attr("num_heads") if flat else x.shape[1]
    if flat:
        batch, count, width = x.shape
        rows = g.reshape(x, (batch * count, heads, width // heads))
    else:
        batch, _, count, dim = x.shape
        rows = g.reshape(g.transpose(x, (0, 2, 1, 3)), (batch * count, heads, dim))
    if ids is None:
        position = _weight(g, "position", np.broadcast_to(np.arange(len(table)).reshape(-1, count), (batch, count)).reshape(-1).astype(np.int32))
    elif ids.array is not None:
        position = _weight(g, "position", np.broadcast_to(ids.array, (batch, count)).reshape(-1).astype(np.int32))
    else:
        position = g.reshape(g.expand(ids, (batch, count)), (batch * count,))
    y = g.make("rope", rows, _weight(g, "table", table.astype(np.float32)), position, interleaved=bool(n.attr("interleaved", 0)))
    if flat:
        return g.reshape(y, x.shape)
    return g.transpose(g.reshape(y, (batch, count, heads, x.shape[3])), (0, 2, 1, 3))


__all__ = ["attention", "rotary"]
