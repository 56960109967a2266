"""GPU time: timestamps around compute passes, and between the dispatches of one pass."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import wgpu

from .adapter import DeviceError
from .native import guarded, lib
from .submission import Dispatch, Replay

if TYPE_CHECKING:
    from .gpu import Gpu

STAMPS = 4096  # WebGPU allows so many in a query set
INSIDE = "timestamp-query-inside-passes"
COLD = 0.02  # s without work after which clocks may have fallen
AGAIN = 0.1  # s of work that bring them up again

BUSY = """
@group(0) @binding(0) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    var x = f32(id.x);
    for (var i = 0u; i < 4096u; i++) { x = fma(x, 0.999, 0.5); }
    if (x == -1.0) { out[0] = x; }
}
"""


def passes(gpu: Gpu, groups: Sequence[Sequence[Dispatch]]) -> np.ndarray:
    """Seconds at which the compute pass of every group of dispatches began and ended, float64 [groups, 2], counted from the first.

    What a pass of dependent dispatches takes holds their barriers and the ramps between them."""
    ticks = np.concatenate([_passes(gpu, groups[i : i + STAMPS // 2]) for i in range(0, len(groups), STAMPS // 2)])
    return seconds_of(gpu, ticks)


def each(gpu: Gpu, dispatches: Sequence[Dispatch], repeat: int = 1) -> np.ndarray:
    """Seconds of every dispatch in its place, from the end of the one before to its own, barriers included; the median of `repeat` runs.

    Without timestamps inside passes every dispatch gets a pass of its own, and what lies between passes is not counted."""
    if INSIDE not in gpu.features:
        spans = passes(gpu, [[d] for d in [*dispatches] * repeat])
        return np.median((spans[:, 1] - spans[:, 0]).reshape(repeat, -1), axis=0)
    runs = [np.concatenate([np.diff(seconds_of(gpu, _inside(gpu, dispatches[i : i + STAMPS - 1])))
                            for i in range(0, len(dispatches), STAMPS - 1)]) for _ in range(repeat)]
    return np.median(runs, axis=0)


class Warmth:
    """Keeps the clocks of a GPU up: `keep` does nothing shortly after the last timing, else gives the GPU busy work."""

    def __init__(self, gpu: Gpu, first: float = 0.5) -> None:
        self._gpu, self._first, self._last = gpu, first, -np.inf
        sink, pipeline = gpu.buffer(4, "warmth"), gpu.pipeline(BUSY, ("write",), "warmth")
        self._work = [(pipeline, gpu.bind(pipeline, [(sink, 0, 4)]), (64, 1, 1))]

    def keep(self) -> None:
        start = time.perf_counter()
        seconds = self._first if self._last < 0 else AGAIN if start - self._last > COLD else 0.0
        groups, replay = 64, self._gpu.replay(self._work)
        while (now := time.perf_counter()) - start < seconds:
            self._gpu.poll(self._gpu.submit([replay]))
            if time.perf_counter() - now < 0.005:  # submissions that are too short leave the GPU idle in between
                groups *= 2
                grid = min(groups, 16384)
                replay = self._gpu.replay([(*self._work[0][:2], (grid, 1, 1))] * (groups // grid))
        self._last = time.perf_counter()


def _passes(gpu: Gpu, groups: Sequence[Sequence[Dispatch]]) -> np.ndarray:
    queries = query_set(gpu, 2 * len(groups))
    with guarded(f"timing {len(groups)} passes"):
        encoder = gpu._device.create_command_encoder()
        for i, group in enumerate(groups):
            stamps = {"query_set": queries, "beginning_of_pass_write_index": 2 * i, "end_of_pass_write_index": 2 * i + 1}
            compute_pass = encoder.begin_compute_pass(timestamp_writes=stamps)
            Replay(group).encode(compute_pass._internal)
            compute_pass.end()
        return resolve(gpu, encoder, queries, 2 * len(groups)).reshape(-1, 2)


def _inside(gpu: Gpu, dispatches: Sequence[Dispatch]) -> np.ndarray:
    queries = query_set(gpu, len(dispatches) + 1)
    with guarded(f"timing {len(dispatches)} dispatches"):
        encoder = gpu._device.create_command_encoder()
        compute_pass = encoder.begin_compute_pass()
        lib.wgpuComputePassEncoderWriteTimestamp(compute_pass._internal, queries._internal, 0)
        for i, dispatch in enumerate(dispatches):
            Replay([dispatch]).encode(compute_pass._internal)
            lib.wgpuComputePassEncoderWriteTimestamp(compute_pass._internal, queries._internal, i + 1)
        compute_pass.end()
        return resolve(gpu, encoder, queries, len(dispatches) + 1)


def query_set(gpu: Gpu, count: int) -> Any:
    """For so many timestamps. Raises DeviceError where there are none."""
    if "timestamp-query" not in gpu.features:
        raise DeviceError(f"{gpu.info.name} has no timestamp queries, so nothing on it can be timed")
    return gpu._device.create_query_set(type="timestamp", count=count)


def resolve(gpu: Gpu, encoder: Any, queries: Any, count: int) -> np.ndarray:
    """Submits what was encoded and waits for its timestamps, uint64 ticks."""
    ticks = gpu._device.create_buffer(size=8 * count, usage=wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC)
    encoder.resolve_query_set(queries, 0, count, ticks, 0)
    gpu._device.queue.submit([encoder.finish()])
    return np.frombuffer(gpu._device.queue.read_buffer(ticks), np.uint64)


def seconds_of(gpu: Gpu, ticks: np.ndarray) -> np.ndarray:
    """Of ticks, counted from the first."""
    period = lib.wgpuQueueGetTimestampPeriod(gpu._queue)  # ns
    return (ticks - ticks.reshape(-1)[0]).astype(np.int64) * 1e-9 * period
