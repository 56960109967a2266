"""A GPU and a player that remember when the host encoded, submitted and waited, and when the GPU played what it was given."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from . import timing
from .adapter import AdapterInfo, DeviceError
from .gpu import Gpu
from .native import NULL, ffi, lib
from .player import FRAMES, STEPS, Call, GpuPlayer
from .submission import Copy, Replay, encode

MOST = timing.STAMPS // 2  # compute passes of a recording that are traced


class Span(NamedTuple):
    """Seconds of time.perf_counter."""

    name: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass
class Frame:
    """A compute pass: what it plays, its submission, when the host handed that over and knew that it was done (0: never waited for)."""

    name: str
    index: int
    handed: float
    known: float = 0.0


@dataclass(frozen=True)
class Recording:
    """What happened: spans of the host, and the frames that the GPU played, both by the host's clock.

    The GPU's clock is set so that no frame begins before it was handed over, nor ends after the host knew of its end; between, to the middle."""

    host: tuple[Span, ...]
    gpu: tuple[Span, ...]
    slack: float  # s that the GPU's spans may be off against the host's

    def idle(self) -> float:
        """The share of the time from the first frame's beginning to the last one's end in which the GPU had nothing to do."""
        gaps = [max(0.0, after.start - before.end) for before, after in zip(self.gpu, self.gpu[1:], strict=False)]
        return sum(gaps) / (self.gpu[-1].end - self.gpu[0].start)

    def seconds(self, name: str) -> float:
        """Of the host, in spans of a name, a frame."""
        return sum(s.seconds for s in self.host if s.name == name) / len(self.gpu)


class TracedGpu(Gpu):
    """A GPU whose submissions are remembered inside `recording`."""

    def __init__(self, info: AdapterInfo) -> None:
        super().__init__(info)
        self.name = ""  # of what is submitted next
        self._on = False
        self._host: list[Span] = []
        self._frames: list[Frame] = []
        self._queries: Any = None

    def start(self) -> None:
        """Begins a recording. Raises DeviceError without timestamp queries."""
        self._queries = timing.query_set(self, timing.STAMPS)
        self._host, self._frames, self._on = [], [], True

    def stop(self) -> Recording:
        """Ends it. Raises DeviceError when nothing was submitted and waited for."""
        self._on = False
        if not any(f.known for f in self._frames):
            raise DeviceError("nothing was played while it was recorded")
        ticks = timing.resolve(self, self._device.create_command_encoder(), self._queries, 2 * len(self._frames))
        spans = timing.seconds_of(self, ticks).reshape(-1, 2)
        earliest = max(f.handed - begin for f, (begin, _) in zip(self._frames, spans, strict=True))
        latest = min(f.known - end for f, (_, end) in zip(self._frames, spans, strict=True) if f.known)
        shift = (earliest + latest) / 2
        gpu = tuple(Span(f.name, begin + shift, end + shift) for f, (begin, end) in zip(self._frames, spans.tolist(), strict=True))
        return Recording(tuple(sorted(self._host, key=lambda s: s.start)), gpu, abs(latest - earliest) / 2)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Remembers how long the block takes the host."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._on:
                self._host.append(Span(name, start, time.perf_counter()))

    def submit(self, steps: Iterable[Replay | Copy]) -> int:
        before = len(self._frames)
        index = super().submit(steps)
        if new := self._frames[before:]:
            for frame in new:
                frame.index = index
            self._host.append(Span("submit", new[0].handed, time.perf_counter()))
        return index

    def _encode(self, steps: Iterable[Replay | Copy]) -> Any:
        """As without a recording, but timestamps are written around the compute passes."""
        steps, kept = list(steps), list[Any]()     # kept: what descriptors point to
        if not self._on or len(self._frames) > MOST - STEPS or not isinstance(steps[0], Replay):
            return super()._encode(steps)
        before = len(self._frames)

        def stamped() -> Any:
            at = 2 * len(self._frames)
            kept.append(ffi.new("WGPUPassTimestampWrites *", {"querySet": self._queries._internal, "beginningOfPassWriteIndex": at,
                                                              "endOfPassWriteIndex": at + 1}))
            kept.append(ffi.new("WGPUComputePassDescriptor *", {"timestampWrites": kept[-1]}))
            self._frames.append(Frame(self.name, 0, 0.0))
            return kept[-1]

        with self.span("encode"):
            encoder = lib.wgpuDeviceCreateCommandEncoder(self._device._internal, NULL)
            try:
                encode(encoder, steps, stamped)
                commands = lib.wgpuCommandEncoderFinish(encoder, NULL)
            finally:
                lib.wgpuCommandEncoderRelease(encoder)
        for frame in self._frames[before:]:
            frame.handed = time.perf_counter()
        return commands

    def poll(self, index: int) -> None:
        with self.span("wait"):
            super().poll(index)
        if self._on:
            now = time.perf_counter()
            for frame in self._frames[-2 * FRAMES * STEPS:]:
                if 0 < frame.index <= index:
                    frame.known = frame.known or now


class TracedPlayer(GpuPlayer):
    """A player that names what it submits and remembers how long its own work takes."""

    gpu: TracedGpu

    def play(self, calls: Sequence[Call]) -> None:
        with self._played(calls):
            super().play(calls)

    def play_frame(self, frame: int, steps: Sequence[Sequence[Call]]) -> None:
        with self._played(steps[0]):
            super().play_frame(frame, steps)

    @contextmanager
    def _played(self, calls: Sequence[Call]) -> Iterator[None]:
        self.gpu.name = " + ".join(program for program, _ in calls)
        with self.gpu.span("play"):
            yield

    def feed(self, program: str, feeds: Mapping[str, np.ndarray]) -> None:
        with self.gpu.span("write inputs"):
            super().feed(program, feeds)
