"""Many sequences at once: each has a slot of the caches; every step decodes all that are under way, in the smallest program that holds them."""
from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .sampling import idle_params, pack_params
from .text import Text

if TYPE_CHECKING:
    from .generate import Model


class Run:
    """One prompt under way: its place among the prompts, its slot, its next position, its text."""

    def __init__(self, index: int, slot: int, ids: np.ndarray, count: int, limit: str, sampler: dict[str, Any], text: Text):
        self.index, self.slot, self.start, self.count, self.limit, self.sampler, self.text = index, slot, len(ids), count, limit, sampler, text
        self.submitted = self.taken = 0
        self.over = False

    def params(self) -> np.ndarray:
        return pack_params(**self.sampler, step=self.submitted, slot=self.slot)


def stream_many(model: Model, prompts: Iterable[str | Sequence[int]], stop: Sequence[str], max_tokens: int,
                sampler: dict[str, Any]) -> Generator[tuple[int, int, str]]:
    """See Model.stream_many."""
    waiting = deque(enumerate(prompts))
    free, active = list(range(model.info["slots"]))[::-1], list[Run]()
    pending: deque[tuple[int, list[Run]]] = deque()       # frames whose tokens are still to be read, with the rows' sequences
    frame = 0
    while waiting or active or pending:
        while waiting and free and len(pending) < 2:
            started = _begin(model, *waiting.popleft(), free.pop(), stop, max_tokens, sampler, frame)
            if started.count:
                active.append(started)
                pending.append((frame, [started]))
                frame += 1
            else:
                free.append(started.slot)
                model.finish_reasons[started.index] = started.limit
        rows = [s for s in active if not s.over and s.submitted < s.count]
        if rows and len(pending) < 2:
            _step(model, rows, frame)
            pending.append((frame, rows))
            frame += 1
        if pending and (len(pending) == 2 or not rows):
            yield from _take(model, *pending.popleft(), active, free)


def _begin(model: Model, index: int, prompt: str | Sequence[int], slot: int, stop, max_tokens: int, sampler: dict[str, Any], frame: int) -> Run:
    """Prefill a prompt into its slot and sample its first token."""
    ids = model.checked(model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    room = model.context - len(ids)
    limit = "context" if room <= max_tokens else "length"
    sequence = Run(index, slot, ids, min(max_tokens, room), limit, sampler, Text(model.tokenizer_or_none, stop))
    if sequence.count:
        model.remember(ids, slot, sampler)
        row = model.prefill(ids, slot)
        model.player.play_frame(frame, [[("head_1", {"row": np.array([row], np.int32)}), (_sampler(sampler, 1), {"params": sequence.params()})]])
        sequence.submitted = 1
    return sequence


def _step(model: Model, rows: list[Run], frame: int) -> None:
    """One more token for every row."""
    size = next(n for n in sorted(model.info["decode"]) if n >= len(rows))
    position, slot = np.full(size, -1, np.int32), np.zeros(size, np.int32)
    position[:len(rows)] = [s.start + s.submitted - 1 for s in rows]
    slot[:len(rows)] = [s.slot for s in rows]
    params = np.stack([s.params() for s in rows] + [idle_params()] * (size - len(rows)))
    step = {"token": np.full(size, -1, np.int32), "position": position, "slot": slot}
    model.player.play_frame(frame, [[(f"decode_{size}", step), (_sampler(rows[0].sampler, size), {"params": params})]])
    for s in rows:
        s.submitted += 1


def _take(model: Model, frame: int, rows: list[Run], active: list[Run], free: list[int]) -> Generator[tuple[int, int, str]]:
    """The tokens of a frame; sequences that are over leave their slots."""
    for s, token in zip(rows, model.player.tokens(frame)[0].tolist()):
        if s.over:
            continue        # it ended while this step was under way already
        s.taken += 1
        piece = s.text.push(token)
        last = s.taken == s.count
        s.over = s.text.stopped or last
        if s.over:
            model.finish_reasons[s.index] = "stop" if s.text.stopped else s.limit
            active.remove(s)
            free.append(s.slot)
        if not s.text.stopped or piece or not s.text.ends(token):
            yield s.index, token, piece + (s.text.flush() if last and not s.text.stopped else "")


def _sampler(sampler: dict[str, Any], rows: int) -> str:
    return f"{'sample' if sampler['temperature'] > 0 else 'greedy'}_{rows}"
