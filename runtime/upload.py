"""Bytes on their way to the GPU: copied by several threads into mapped memory, from where the GPU takes them while the next are copied."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .gpu import Gpu
from .submission import Buffer, Copy, Dispatch, Staging

SLOT = 16 << 20  # bytes that travel together
SLOTS = 4  # one is filled, one is taken by the GPU, two wait
SHARE = 1 << 20  # bytes that a thread copies at a time
THREADS = min(8, os.cpu_count() or 1)  # beyond, memory is what binds
ALIGN = 256  # where a binding may begin


class Upload:
    """Collects bytes and what is done with them; everything is submitted in order, and done when the block ends.

    with Upload(gpu) as upload:
        upload.write(buffer, 0, array)
        upload.work(array, lambda source, at: [dispatch that binds `source` from byte `at` on])
    """

    def __init__(self, gpu: Gpu, slot: int = SLOT) -> None:
        self.gpu, self.slot = gpu, slot
        self._pool = ThreadPoolExecutor(THREADS)
        self._ring: list[tuple[Staging, int]] = []  # and the submission that uses it
        self._source: Buffer | None = None
        self._clear()

    def _clear(self) -> None:
        self._used = 0
        self._parts: list[tuple[int, np.ndarray]] = []
        self._copies: list[tuple[int, Buffer, int, int]] = []
        self._dispatches: list[Dispatch] = []

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        try:
            if kind is None:
                self.flush()
                self.gpu.poll(max((index for _, index in self._ring), default=0))
        finally:
            self._pool.shutdown()
            for buffer in (*(staging for staging, _ in self._ring), *([self._source] if self._source else [])):
                buffer.destroy()

    def write(self, buffer: Buffer, offset: int, array: np.ndarray) -> None:
        """Bytes of an array to a place in a buffer, a multiple of four; the last word is filled up with zeros."""
        octets = _bytes(array)
        done = 0
        while done < octets.size:
            room = self._room(min(octets.size - done, ALIGN))
            part = octets[done : done + room]
            at, size = self._put(part), -(-part.size // 4) * 4
            self._copies.append((at, buffer, offset + done, size))
            done += part.size

    def work(self, arrays: list[np.ndarray], dispatches: Callable[[Buffer, int, int], list[Dispatch]]) -> None:
        """Bytes of arrays, one behind the other, and what reads them: dispatches(buffer, offset, size). They take at most a slot in all."""
        size = sum(array.nbytes for array in arrays)
        self._room(size)
        at = self._put(*map(_bytes, arrays))
        if self._source is None:
            self._source = self.gpu.buffer(self.slot, "bytes to work on")
        self._dispatches += dispatches(self._source, at, size)

    def _room(self, least: int) -> int:
        """Bytes that the slot has left, which are at least so many: else the next one begins."""
        if least > self.slot:
            raise ValueError(f"{least:,} bytes do not fit into a slot of {self.slot:,}")
        if self._used + least > self.slot:
            self.flush()
        return self.slot - self._used

    def _put(self, *parts: np.ndarray) -> int:
        at = start = self._used
        for part in parts:
            self._parts.append((at, part))
            at += part.size
        if at % 4:
            self._parts.append((at, np.zeros(-at % 4, np.uint8)))
        self._used = -(-at // ALIGN) * ALIGN
        return start

    def flush(self) -> None:
        """Submit what was collected so far."""
        if not self._parts:
            return
        staging = self._filled()
        steps: list[Any] = [Copy(staging, 0, self._source, 0, min(-(-self._used // 4) * 4, self.slot))] if self._dispatches and self._source else []
        steps += [Copy(staging, at, buffer, offset, size) for at, buffer, offset, size in self._copies]
        if self._dispatches:
            steps.append(self.gpu.replay(self._dispatches))
        index = self.gpu.submit(steps)
        staging.request()  # mapped again as soon as the GPU is done with it
        self._ring.append((staging, index))
        self._clear()

    def _filled(self) -> Staging:
        """Staging memory with the collected bytes, unmapped."""
        if len(self._ring) < SLOTS:
            staging, index = self.gpu.staging(self.slot, "staging"), 0
        else:
            staging, index = self._ring.pop(0)
        memory = staging.map(index)
        shares = [(at + start, part[start : start + SHARE]) for at, part in self._parts for start in range(0, part.size, SHARE)]

        def copy(share: tuple[int, np.ndarray]) -> None:
            at, octets = share
            memory[at : at + octets.size] = octets  # numpy releases the interpreter lock

        list(self._pool.map(copy, shares))
        staging.unmap()
        return staging


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
