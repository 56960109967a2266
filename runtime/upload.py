"""Bytes on their way to the GPU: copied by several threads into mapped memory, from where the GPU takes them while the next are copied."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from .gpu import Gpu
from .submission import Buffer, Copy, Dispatch, Staging

SLOT = 16 << 20  # bytes that travel together
SLOTS = 4  # two are filled, one is taken by the GPU, one waits
SHARE = 4 << 20  # bytes that a thread copies at a time
THREADS = min(8, os.cpu_count() or 1)  # beyond, memory is what binds
ALIGN = 256  # where a binding may begin


class Slot:
    """Staging memory that is being filled, and what is to be done once it is."""

    def __init__(self, staging: Staging, index: int) -> None:
        self.staging, self.memory, self.used = staging, staging.map(index), 0
        self.copies: list[tuple[int, Buffer, int, int]] = []
        self.dispatches: list[Dispatch] = []
        self.filling: list[Future[None]] = []

    def fill(self, at: int, octets: np.ndarray) -> None:
        self.memory[at : at + octets.size] = octets  # numpy releases the interpreter lock


class Upload:
    """Collects bytes and what is done with them; everything is submitted in order, and done when the block ends.

    with Upload(gpu) as upload:
        upload.write(buffer, 0, array)
        upload.work(array, lambda source, at: [dispatch that binds `source` from byte `at` on])
    """

    def __init__(self, gpu: Gpu, slot: int = SLOT) -> None:
        self.gpu, self.slot = gpu, slot
        self._pool = ThreadPoolExecutor(THREADS)
        self._ring: deque[tuple[Staging, int]] = deque()  # staging memory on its way, and the submission that uses it
        self._slots: deque[Slot] = deque()  # those being filled; bytes are collected in the last
        self._source: Buffer | None = None

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._pool.shutdown()  # nothing is written to memory that is gone
            memory = [slot.staging for slot in self._slots] + [staging for staging, _ in self._ring]
            for buffer in (*memory, *([self._source] if self._source else [])):
                buffer.destroy()

    def write(self, buffer: Buffer, offset: int, array: np.ndarray) -> None:
        """Bytes of an array to a place in a buffer, a multiple of four; the last word is filled up with zeros."""
        octets = _bytes(array)
        done = 0
        while done < octets.size:
            slot = self._room(min(octets.size - done, ALIGN))
            part = octets[done : done + self.slot - slot.used]
            at, size = self._put(slot, part), -(-part.size // 4) * 4
            slot.copies.append((at, buffer, offset + done, size))
            done += part.size

    def work(self, arrays: list[np.ndarray], dispatches: Callable[[Buffer, int, int], list[Dispatch]]) -> None:
        """Bytes of arrays, one behind the other, and what reads them: dispatches(buffer, offset, size). They take at most a slot in all."""
        size = sum(array.nbytes for array in arrays)
        slot = self._room(size)
        at = self._put(slot, *map(_bytes, arrays))
        if self._source is None:
            self._source = self.gpu.buffer(self.slot, "bytes to work on")
        slot.dispatches += dispatches(self._source, at, size)

    def flush(self) -> None:
        """Submit all that was collected so far, and wait until it is done."""
        while self._slots:
            self._submit(self._slots.popleft())
        self.gpu.poll(max((index for _, index in self._ring), default=0))

    def _room(self, least: int) -> Slot:
        """A slot with room for so many bytes. While it is filled, the one before is submitted."""
        if least > self.slot:
            raise ValueError(f"{least:,} bytes do not fit into a slot of {self.slot:,}")
        if not self._slots or self._slots[-1].used + least > self.slot:
            if len(self._slots) > 1:
                self._submit(self._slots.popleft())
            fresh = len(self._ring) + len(self._slots) < SLOTS
            self._slots.append(Slot(self.gpu.staging(self.slot, "staging"), 0) if fresh else Slot(*self._ring.popleft()))
        return self._slots[-1]

    def _put(self, slot: Slot, *parts: np.ndarray) -> int:
        """Have the bytes copied into the slot; where they begin there."""
        at = start = slot.used
        for part in (*parts, np.zeros(-sum(part.size for part in parts) % 4, np.uint8)):
            for share in range(0, part.size, SHARE):
                slot.filling.append(self._pool.submit(slot.fill, at + share, part[share : share + SHARE]))
            at += part.size
        slot.used = -(-at // ALIGN) * ALIGN
        return start

    def _submit(self, slot: Slot) -> None:
        for filled in slot.filling:
            filled.result()
        slot.staging.unmap()
        steps: list[Any] = []
        if slot.dispatches and self._source:
            steps.append(Copy(slot.staging, 0, self._source, 0, min(slot.used, self.slot)))
        steps += [Copy(slot.staging, at, buffer, offset, size) for at, buffer, offset, size in slot.copies]
        if slot.dispatches:
            steps.append(self.gpu.replay(slot.dispatches))
        index = self.gpu.submit(steps)
        slot.staging.request()  # mapped again as soon as the GPU is done with it
        self._ring.append((slot.staging, index))


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
