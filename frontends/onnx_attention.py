"""ONNX's attention and rotary embeddings on the fused kernels of decoders, where their shapes fit; elsewhere their standard functions run."""
from __future__ import annotations

import numpy as np

from .onnx_graph import Lowering, Node, Results, operator
from .onnx_tensors import Tensor, known


@operator("Attention")
def attention(g: Lowering, n: Node) -> Results:
    """Queries of all sequences are rows; keys and values, past ones before, stand where a cache would hold them."""
    q, k, v = n.input(0), n.input(1), n.input(2)
    heads, shared = (n.attr("q_num_heads"), n.attr("kv_num_heads")) if len(q.shape) == 3 else (q.shape[1], k.shape[1])
    if not _fits(n, q, k, v, heads, shared):
        return g.standard(n)
    flat = len(q.shape) == 3
    q, k, v = (_split(g, x, count) if flat else x for x, count in ((q, heads), (k, shared), (v, shared)))
    batch, _, count, dim = q.shape
    past, values = n.optional(4), n.optional(5)
    before = past.shape[2] if past is not None else 0
    if past is not None and values is not None:
        k, v = g.concat([past, k], 2), g.concat([values, v], 2)
    rows = g.reshape(g.transpose(q, (0, 2, 1, 3)), (batch * count, heads, dim))
    causal, left = bool(n.attr("is_causal", 0)), int(n.attr("left_window_size", -1))
    places = np.tile(np.arange(before, before + count) if causal else np.full(count, k.shape[2] - 1), batch)
    y = g.make("attention", rows, k, v, known(places.astype(np.int32)), known(np.repeat(np.arange(batch), count).astype(np.int32)),
               scale=float(n.attr("scale") or dim**-0.5), cap=float(n.attr("softcap", 0.0)), sequence=batch == 1 and causal,
               mask="sliding" if left >= 0 else "full", window=left + 1 if left >= 0 else 0)
    y = g.reshape(y, (batch, count, heads * dim))
    return [y if flat else g.transpose(g.reshape(y, (batch, count, heads, dim)), (0, 2, 1, 3)), k, v]


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
        position = known(np.broadcast_to(np.arange(len(table)).reshape(-1, count), (batch, count)).reshape(-1).astype(np.int32))
    else:
        position = g.reshape(g.expand(ids, (batch, count)), (batch * count,))
    y = g.make("rope", rows, known(table), position, interleaved=bool(n.attr("interleaved", 0)))
    if flat:
        return g.reshape(y, x.shape)
    return g.transpose(g.reshape(y, (batch, count, heads, x.shape[3])), (0, 2, 1, 3))


__all__ = ["attention", "rotary"]
