"""Time the candidate schedules of every distinct op of a model on the GPU, and keep the fastest for the device's record."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from .compiler.codegen import module_text, render, step_offsets
from .compiler.device import Device
from .compiler.ir import Choice, Graph
from .compiler.kernel import Kernel, Site
from .compiler.layouts import plane_bytes
from .compiler.passes.tiling import candidates
from .runtime.adapter import DeviceError
from .runtime.gpu import Buffer, Dispatch, Gpu

ROTATED = 256 << 20     # bytes of weights that runs go around in, so that caches do not hold what a model would read from memory
RUNS = 9


@dataclass(frozen=True)
class Timing:
    """One choice for one op: measured and estimated seconds of a dispatch."""

    signature: str
    kinds: tuple[str, ...]
    choice: Choice
    seconds: float
    estimate: float


def distinct_sites(graphs: Iterable[Graph], device: Device) -> dict[str, Site]:
    """One site a signature, over all graphs (as they are before tiling)."""
    found: dict[str, Site] = {}
    for graph in graphs:
        for op in graph.ops:
            site = Site(graph, replace(op, choice=None), device)
            found.setdefault(site.signature, site)
    return found


def tune(gpu: Gpu, sites: Mapping[str, Site], kernels: Mapping[str, Kernel], most: int = 16, seconds: float = 60.0,
         progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> Iterator[Timing]:
    """Time up to `most` candidates an op, the likeliest by the cost model first, within a budget of seconds.

    Sites that matter most by the model's estimate come first. A candidate that the driver refuses is left out."""
    start = time.perf_counter()
    options = {key: candidates(site, kernels) for key, site in sites.items()}
    ordered = sorted((k for k in sites if len(options[k]) > 1), key=lambda k: -options[k][0][0])
    pool = gpu.buffer(ROTATED, "tuning")
    gpu.write(pool, 0, np.random.default_rng(0).integers(0, 255, ROTATED, np.uint8))
    try:
        for done, key in enumerate(ordered):
            progress(f"tuning {'+'.join(sites[key].op.kinds)}", done, len(ordered))
            with Rig(gpu, sites[key], pool) as rig:
                for estimate, choice in options[key][:most]:
                    if time.perf_counter() - start > seconds:
                        return
                    try:
                        yield Timing(key, sites[key].op.kinds, choice, rig.time(kernels[choice.kernel], choice), estimate)
                    except DeviceError:
                        continue
    finally:
        pool.destroy()


def fastest(timings: Iterable[Timing]) -> dict[str, Choice]:
    """The best choice a signature: what goes under [tuned] in a device record."""
    best: dict[str, Timing] = {}
    for t in timings:
        if t.signature not in best or t.seconds < best[t.signature].seconds:
            best[t.signature] = t
    return {key: t.choice for key, t in best.items()}


class Rig:
    """Buffers for one op, and its dispatches over changing pieces of a pool of weights."""

    def __init__(self, gpu: Gpu, site: Site, pool: Buffer):
        self.gpu, self.site, self.pool, self.own = gpu, site, pool, list[Buffer]()

    def __enter__(self) -> Rig:
        self.ranges = [self._ranges(name) for name in self.site.bound]
        if self.site.steps:
            step = np.concatenate([self._input(name) for name in step_offsets(self.site.values)])
            self.own.append(self.gpu.buffer(step.nbytes))
            self.gpu.write(self.own[-1], 0, step)
            self.ranges.append([[(self.own[-1], 0, step.nbytes)]])
        return self

    def __exit__(self, *_) -> None:
        for buffer in self.own:
            buffer.destroy()

    def _input(self, name: str) -> np.ndarray:
        """A middle position everywhere, row 0 of everything else."""
        value = self.site.values[name]
        rows = next((v.shape[2] for v in self.site.values.values() if len(v.shape) == 4 and v.role == "state"), 2)
        start = rows // 2 if name == "position" else 0
        return np.full(value.size, start, np.int32) + (np.arange(value.size, dtype=np.int32) % (rows // 2) if name == "position" else 0)

    def _ranges(self, name: str) -> list[list[tuple[Buffer, int, int]]]:
        """A list of ranges a run, each with a range a plane."""
        value = self.site.values[name]
        sizes = [max(4, -(-b // 4) * 4) for b in plane_bytes(value.shape, value.dtype, value.layout)]
        if value.role != "weight" or sum(sizes) + 256 * len(sizes) > ROTATED // 2:
            made = [self.gpu.buffer(size) for size in sizes]
            self.own += made
            return [[(b, 0, s) for b, s in zip(made, sizes, strict=True)]]
        spans: list[list[tuple[Buffer, int, int]]] = []
        at = 0
        padded = [-(-s // 256) * 256 for s in sizes]
        while at + sum(padded) <= ROTATED and len(spans) < RUNS:
            spans.append([(self.pool, at + sum(padded[:i]), s) for i, s in enumerate(sizes)])
            at += max(sum(padded), ROTATED // RUNS // 256 * 256)
        return spans

    def time(self, kernel: Kernel, choice: Choice) -> float:
        """Median seconds of a dispatch."""
        shader = render(self.site, kernel, choice)
        pipeline = self.gpu.pipeline(module_text(shader, "naga"), shader.bindings, str(choice))
        grid = kernel.grid(self.site, dict(choice.schedule))
        dispatches: list[Dispatch] = []
        for run in range(RUNS):
            ranges = [r for spans in self.ranges for r in spans[run % len(spans)]]
            dispatches.append((pipeline, self.gpu.bind(pipeline, ranges), grid))
        self.gpu.profile(dispatches[:2])
        return statistics.median(self.gpu.profile(dispatches))
