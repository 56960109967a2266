"""Where a model's time goes: every dispatch of a program against what the device could do, and the host beside the GPU over time."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..api import KERNELS, compile_for, is_package, open_checkpoint, open_package, record_of
from ..compiler.device import Device
from ..compiler.ir import Op
from ..compiler.kernel import Site
from ..compiler.layouts import plane_bytes
from ..compiler.package import Package, PackageError
from ..compiler.proof import proved
from ..frontends.quantize import Quantize
from ..frontends.weights.loading import fill
from ..runtime import timing
from ..runtime.generate import Model
from ..runtime.requirements import playable
from ..runtime.tracing import Recording, Span, TracedGpu, TracedPlayer

WARM = 8        # tokens before those that are recorded
REPEAT = 5      # runs through the dispatches of a program
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Timed:
    """One dispatch: its op's kinds, its kernel, measured and estimated seconds, bytes that it moves, operations, and whether those
    are products of packed 8-bit integers."""

    kinds: tuple[str, ...]
    kernel: str
    seconds: float
    estimate: float
    bytes: float
    operations: float
    packed: bool

    def least(self, device: Device) -> float:
        """Seconds that the device would need at its measured bandwidth and rates."""
        rate = (device.packed_ops or 2 * device.flops) if self.packed else device.flops
        return max(self.bytes / device.bandwidth, self.operations / rate)


@dataclass(frozen=True)
class Decode:
    """The steps of a stream at a context. cpu: seconds of the host's own work a step; step: seconds a step; idle: share of the GPU's time."""

    context: int
    tokens: int
    step: float
    idle: float
    cpu: float
    parts: dict[str, float]     # of the host's work: seconds a step
    recording: Recording


def open_model(path: Path, gpu: TracedGpu, progress: Progress, context: int | None = None, dtype: str | None = None, cache: str | None = None,
               quantize: Quantize = None) -> Model:
    """A checkpoint, compiled for the GPU as it would be played, or a compiled package. Raises PackageError for one that is not compiled."""
    if is_package(path):
        package = open_package(path)
        if not package.manifest["shaders"]:
            raise PackageError(f"{path} is not compiled: compile the model, or give the one that the package was made of")
        package = playable(package, gpu)
    else:
        package = compile_for(open_checkpoint(path), record_of(gpu), context, dtype or "f32", cache, progress, quantize)
    return playing(package, gpu, progress)


def playing(package: Package, gpu: TracedGpu, progress: Progress = lambda what, done, total: None) -> Model:
    """A package, loaded to be traced."""
    filling = partial(fill, package) if package.array else None
    return Model(package, TracedPlayer(package, gpu, lambda done, total: progress("loading weights", done, total), fill=filling,
                                       trusted=partial(proved, package.manifest)), None)


def traced(model: Model) -> TracedPlayer:
    assert isinstance(model.player, TracedPlayer), "only what `playing` gives can be profiled"
    return model.player


def decode(model: Model, context: int, tokens: int) -> Decode:
    """Record the steps of a stream that follows a random prompt, in the very loop that a user's stream runs in."""
    gpu = traced(model).gpu
    prompt = np.random.default_rng(0).integers(0, model.info["vocab_size"], max(1, context)).tolist()
    stream = model.stream(prompt, max_tokens=WARM + tokens + 1)
    for _ in range(WARM):
        next(stream)
    gpu.start()
    taken = sum(1 for _ in zip(range(tokens), stream, strict=False))
    recording = gpu.stop()
    stream.close()
    frames = recording.gpu
    names = ("write inputs", "encode", "submit")
    parts = {name: recording.seconds(name) for name in names}
    wall = recording.host[-1].end - recording.host[0].start
    waiting = sum(s.seconds for s in recording.host if s.name == "wait")
    cpu = (wall - waiting) / len(frames)
    return Decode(context, taken, (frames[-1].end - frames[0].start) / len(frames), recording.idle(), cpu,
                  {**parts, "other": cpu - sum(parts.values())}, recording)


def program_times(model: Model, program: str, keys: int, device: Device, repeat: int = REPEAT) -> list[Timed]:
    """Every dispatch of a program as it was played last. keys: positions that its attention sees."""
    player = traced(model)
    timing.Warmth(player.gpu).keep()
    seconds = timing.each(player.gpu, player.dispatches(program), repeat)
    graph, found = model.package.graph(program), []
    for op, took in zip(graph.ops, seconds.tolist(), strict=True):
        site, choice = Site(graph, op, device), op.choice
        assert choice
        products, packed = operations(site, keys)
        estimate = KERNELS[choice.kernel].cost(site, dict(choice.schedule))
        found.append(Timed(op.kinds, str(choice), took, estimate, traffic(site, keys), products, packed))
    return found


def prefill(model: Model, count: int, device: Device) -> tuple[float, str, list[Timed]]:
    """Seconds that a prompt takes; and the dispatches of the program that took the most of it."""
    ids = np.random.default_rng(1).integers(0, model.info["vocab_size"], count).astype(np.int32)
    player = traced(model)
    for _ in range(2):
        player.gpu.start()
        list(model.prefill_chunks(ids))
        player.read("hidden", 1)
        recording = player.gpu.stop()
    program = max(recording.gpu, key=lambda s: (s.name.startswith("prefill"), s.seconds)).name
    return recording.host[-1].end - recording.host[0].start, program, program_times(model, program, count, device, 2)


def traffic(site: Site, keys: int) -> float:
    """Bytes that an op has to move: of caches, tables and experts only what is looked at."""
    shares: dict[str, float] = {}
    for part in site.op.parts:
        shares |= _shares(site, part, keys)
    return sum(shares.get(n, 1.0) * sum(plane_bytes(v.shape, v.dtype, v.layout)) for n in site.bound for v in [site.values[n]])


def _shares(site: Site, op: Op, keys: int) -> dict[str, float]:
    """The parts of values that an op touches."""
    values = site.values
    if op.kind in ("attention", "attention_split"):
        seen = min(keys, int(op.attr("window", 0)) or keys, values[op.inputs[1]].shape[2])
        return {n: seen / values[n].shape[2] / values[n].shape[0] for n in op.inputs[1:3]}
    if op.kind in ("rope", "position_scale"):
        return {op.inputs[1]: min(1.0, values[op.inputs[2]].size / values[op.inputs[1]].shape[0])}
    if op.kind == "gather":
        return {op.inputs[0]: min(1.0, values[op.outputs[0]].size / values[op.inputs[0]].size)}
    if op.kind in ("cache_write", "store"):
        return {op.outputs[0]: min(1.0, values[op.inputs[1]].size / values[op.outputs[0]].size)}
    if op.kind.startswith("expert_"):
        w, expert = (values[n] for n in (site.operands["w"], site.operands["expert"]))
        return {site.operands["w"]: min(1.0, expert.size / w.shape[0])}
    return dict.fromkeys(op.outputs, 0.0) if op.kind in ("argmax", "sample") else {}


def operations(site: Site, keys: int) -> tuple[float, bool]:
    """Additions and multiplications of an op, and whether they are packed products of 8-bit integers."""
    kind = site.anchor.kind.removesuffix("_q8")
    if kind == "matmul":
        count = 2.0 * site.value("w").size * site.value("x").size / site.shape("x")[-1]
    elif kind in ("expert_matmul", "expert_sum"):
        count = 2.0 * site.value("w").size / site.shape("w")[0] * site.value("expert").size
    elif kind in ("attention", "attention_split"):
        rows, heads, dim = site.shape("q")
        seen = min(keys, int(site.anchor.attr("window", 0)) or keys)
        count = 4.0 * heads * dim * rows * (seen if rows == 1 else seen / 2)
    else:
        count = float(site.out.size)
    return count, site.anchor.kind.endswith("_q8")


COLUMNS = ("kernel", "op", "count", "us", "each us", "share", "MB", "GB/s", "of ceiling", "model says us")


def rows(times: Sequence[Timed], device: Device) -> list[dict[str, Any]]:
    """Dispatches with one kernel and op together, slowest first."""
    groups: dict[tuple[str, tuple[str, ...]], list[Timed]] = defaultdict(list)
    for t in times:
        groups[t.kernel, t.kinds].append(t)
    total, found = sum(t.seconds for t in times), []
    for (kernel, kinds), same in groups.items():
        seconds, moved = sum(t.seconds for t in same), sum(t.bytes for t in same)
        found.append({"kernel": kernel, "op": "+".join(kinds), "count": len(same), "us": seconds * 1e6, "each_us": seconds / len(same) * 1e6,
                      "share": seconds / total, "bytes": moved, "gb_s": moved / seconds / 1e9, "operations": sum(t.operations for t in same),
                      "packed": same[0].packed, "ceiling": sum(t.least(device) for t in same) / seconds,
                      "estimate_us": sum(t.estimate for t in same) * 1e6})
    return sorted(found, key=lambda r: -r["us"])


def table(found: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(r["kernel"].split("(")[0], r["op"] if len(r["op"]) < 50 else f"{r['op'][:47]}...", r["count"], f"{r['us']:.1f}", f"{r['each_us']:.1f}",
             f"{r['share']:.1%}", f"{r['bytes'] / 1e6:.2f}", f"{r['gb_s']:.1f}", f"{r['ceiling']:.0%}", f"{r['estimate_us']:.1f}") for r in found]


def chrome_trace(recording: Recording, step: Sequence[Timed] = ()) -> dict[str, Any]:
    """A trace that Perfetto and chrome://tracing open: the host, the GPU, and one step dispatch by dispatch, in microseconds from the start."""
    names = {(1, 1): "host", (1, 2): "GPU", (2, 1): "a decode step, dispatch by dispatch"}
    first = min(s.start for s in (*recording.host, *recording.gpu))
    spans: list[tuple[int, int, Span]] = [*((1, 1, s) for s in recording.host), *((1, 2, s) for s in recording.gpu)]
    at = recording.gpu[0].start
    for t in step:
        spans.append((2, 1, Span(f"{t.kernel.split('(')[0]}: {'+'.join(t.kinds)}", at, at := at + t.seconds)))
    events = [{"name": s.name, "ph": "X", "pid": process, "tid": track, "ts": (s.start - first) * 1e6, "dur": s.seconds * 1e6}
              for process, track, s in sorted(spans, key=lambda x: x[2].start)]
    heads = [{"name": "thread_name", "ph": "M", "pid": p, "tid": t, "args": {"name": name}} for (p, t), name in names.items()]
    processes = [{"name": "process_name", "ph": "M", "pid": p, "args": {"name": name}} for p, name in ((1, "decode"), (2, "one step"))]
    return {"displayTimeUnit": "ms", "traceEvents": [*processes, *heads, *events], "otherData": {"clock slack us": recording.slack * 1e6}}
