"""Awkward logits for the two dispatches of choosing a token; the second is fed with what the first one means."""
from __future__ import annotations

from functools import partial

import numpy as np
from cases import MAKERS, Feeds
from tilewright.compiler import sampling
from tilewright.compiler.builder import Builder
from tilewright.compiler.ops import OPS
from tilewright.runtime.sampling import idle_params, pack_params


def _sampler(kind: str, vocab: int, idle: bool) -> tuple[Builder, list[str], Feeds, tuple[str, ...]]:
    """The first dispatch over three rows, one of them greedy; an idle row has no defined blocks."""
    rng = np.random.default_rng(vocab)
    rows = [pack_params(0.8, 40, 0.9, 0.02, 1.2, 5, 1, 7, slot=2), pack_params(0, 0, 1.0, 0.0, 1.1, 0, 0, 3, slot=0),
            idle_params() if idle else pack_params(1.5, 0, 1.0, 0.0, 1.0, 9, 4, 1, slot=1)]
    feeds = {"logits": (3 * rng.standard_normal((4, vocab))).astype(np.float32), "params": np.stack(rows),
             "seen": rng.choice(np.array([0, 1, 3, 7], np.uint32), (3, vocab))}
    g = Builder()
    names = [g.state("logits", (4, vocab)), g.state("seen", (3, vocab), "u32"), g.input("params", (3, sampling.RECORD))]
    return g, names, feeds, g.op(f"{kind}_blocks", *names, block=64)


def _first(kind: str, dtype: str):
    for vocab in (257, 64) if dtype == "f32" else ():
        g, _, feeds, made = _sampler(kind, vocab, idle=False)
        yield f"vocabulary {vocab}", g.graph(*made), feeds


def _second(kind: str, dtype: str):
    for vocab in (257, 1000) if dtype == "f32" else ():
        before, (logits, seen, params), feeds, made = _sampler(kind, vocab, idle=True)
        blocks = OPS[f"{kind}_blocks"].reference(feeds[logits], feeds[seen], feeds[params], block=64)
        found = dict(zip(made, blocks if isinstance(blocks, tuple) else (blocks,), strict=True))
        g = Builder()
        names = [g.input(params, (3, sampling.RECORD)), *(g.state(n, a.shape, before.values[n].dtype) for n, a in found.items()),
                 g.state("token", (5,), "i32"), g.state("last", (3,), "i32"), g.state(seen, feeds[seen].shape, "u32")]
        yield f"vocabulary {vocab}", g.graph(*g.op(kind, *names, block=64)), {params: feeds[params], seen: feeds[seen], **found}


for _kind in ("argmax", "sample"):
    MAKERS += [(f"{_kind}_blocks", partial(_first, _kind)), (_kind, partial(_second, _kind))]
