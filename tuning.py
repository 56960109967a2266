"""Time the candidate schedules of every distinct op of a model on the GPU, and keep the fastest for the device's record."""
from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from .compiler.codegen import module_text, render, step_offsets
from .compiler.device import Device, shipped_devices
from .compiler.ir import Choice, Graph
from .compiler.kernel import Kernel, Site
from .compiler.layouts import plane_bytes
from .compiler.package import PackageError, open_package
from .compiler.passes.tiling import candidates
from .compiler.pipeline import run_stages
from .frontends.checkpoint import open_checkpoint
from .frontends.lower import lower
from .frontends.quantize import Quantize
from .runtime.adapter import DeviceError
from .runtime.gpu import Buffer, Dispatch, Gpu, Shader
from .runtime.timing import Warmth, passes

ROTATED = 256 << 20     # bytes of weights that runs go around in, so that caches do not hold what a model would read from memory
CHAIN = 48              # dispatches of a pass at most
PASS = 1e-3             # s that a pass shall take, for timestamps count in microseconds on some devices
HOPELESS, BEHIND, CLOSE = 3.0, 1.15, 1.05       # times the fastest: not timed again after the first look, after some rounds, after more
ROUNDS = 3, 4, 9        # passes that all get, that those not behind get besides, and those that are close
GAIN = 0.98             # of the default's time that another choice must keep below: less may be noise
STEPS = {"prefill": 1, "head": 1}               # runs of a program in a typical session, by its name; the others run for every token
TOKENS = 256


@dataclass
class Work:
    """An op and how often each program runs it."""

    site: Site
    uses: Counter[str] = field(default_factory=Counter)

    @property
    def runs(self) -> int:
        """In a typical session."""
        return sum(n * STEPS.get(program.split("_")[0], TOKENS) for program, n in self.uses.items())


@dataclass(frozen=True)
class Timing:
    """A choice, with measured and estimated seconds of a dispatch that depends on the one before."""

    choice: Choice
    seconds: float
    estimate: float


@dataclass(frozen=True)
class Tuned:
    """What was found for an op. default: what the cost model takes; portable: what it would take for a device without any optional
    feature and with WebGPU's least limits, where that exists; best: the default unless another is clearly faster."""

    signature: str
    kinds: tuple[str, ...]
    uses: Mapping[str, int]
    default: Timing
    best: Timing
    portable: Timing | None
    timed: int              # choices


def graphs_of(path: Path, device: Device, context: int | None = None, dtype: str | None = None, cache: str | None = None,
              quantize: Quantize = None, batch: int = 1) -> dict[str, Graph]:
    """The programs of a model as they are before the passes. Raises PackageError for what is compiled already."""
    from .api import is_package, plan_for
    if not is_package(path):
        checkpoint = open_checkpoint(path)
        return lower(checkpoint, plan_for(checkpoint, device, context, dtype or "f32", cache or dtype or "f32", batch), quantize).graphs
    package = open_package(path)
    if package.manifest["shaders"]:
        raise PackageError(f"{path} is compiled already: tune the model that it was made of, then compile that again")
    return {name: package.graph(name) for name in package.manifest["programs"]}


def work_of(graphs: Mapping[str, Graph], device: Device, kernels: Mapping[str, Kernel]) -> dict[str, Work]:
    """The distinct ops of programs, by signature, as they are when tiling chooses for them."""
    found: dict[str, Work] = {}
    for program, graph in {name: now for name, now, _ in run_stages(graphs, device, kernels)}["cut weights"].items():
        for op in graph.ops:
            site = Site(graph, replace(op, choice=None), device)
            found.setdefault(site.signature, Work(site)).uses[program] += 1
    return found


def tune(gpu: Gpu, work: Mapping[str, Work], kernels: Mapping[str, Kernel], most: int = 24, seconds: float = 60.0,
         progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> Iterator[Tuned]:
    """Time up to `most` choices an op, the likeliest by the cost model first, within a budget of seconds.

    The ops that take most of a session by the model's estimate come first. A choice that the driver refuses is left out."""
    start = time.perf_counter()
    options = {key: candidates(w.site, kernels) for key, w in work.items()}
    ordered = sorted((k for k in work if len(options[k]) > 1), key=lambda k: -options[k][0][0] * work[k].runs)
    pool, warmth = Pool(gpu, [w.site for w in work.values()]), Warmth(gpu)
    try:
        for done, key in enumerate(ordered):
            progress(f"tuning {'+'.join(work[key].site.op.kinds)}", done, len(ordered))
            left = start + seconds - time.perf_counter()
            if left <= 0:
                return
            if result := _tuned(gpu, key, work[key], kernels, options[key][:most], pool, warmth, max(1.0, left / 4)):
                yield result
    finally:
        pool.buffer.destroy()


def chosen(results: Iterable[Tuned]) -> dict[str, Choice]:
    """By signature, what goes under [tuned] in a device record."""
    return {r.signature: r.best.choice for r in results}


def _tuned(gpu: Gpu, key: str, work: Work, kernels: Mapping[str, Kernel], options: Sequence[tuple[float, Choice]], pool: Pool,
           warmth: Warmth, seconds: float) -> Tuned | None:
    """Nothing where the default cannot be timed."""
    portable = _portable(work.site, kernels)
    estimates = {choice: estimate for estimate, choice in options}
    sites = {options[0][1]: work.site}      # the default and the portable choice first, should time be short
    if portable and portable[1].choice not in estimates:
        sites[portable[1].choice] = portable[0]
    sites |= dict.fromkeys(estimates, work.site)
    with Rig(gpu, work.site, pool) as rig:
        found = rig.contest(sites, kernels, warmth, seconds)
    timings = {c: Timing(c, found[c], estimates.get(c, portable[1].estimate if portable else 0.0)) for c in found}
    if not (default := timings.get(options[0][1])):
        return None
    best = min((t for c, t in timings.items() if c in estimates), key=lambda t: t.seconds)
    best = best if best.seconds < GAIN * default.seconds else default
    return Tuned(key, work.site.op.kinds, dict(work.uses), default, best, timings.get(portable[1].choice) if portable else None, len(timings))


def _portable(site: Site, kernels: Mapping[str, Kernel]) -> tuple[Site, Timing] | None:
    """What the cost model takes for the least of all devices, which only has the bindings and the f16 that the op needs."""
    least = next(d for d in shipped_devices() if d.name == "web-default")
    needs = ("max_storage_buffers_per_shader_stage", "max_storage_buffer_binding_size")
    device = replace(least, features=site.device.features & {"shader-f16"}, limits={**least.limits, **{n: site.device.limit(n) for n in needs}})
    there = Site(Graph(dict(site.values), (site.op,), site.op.outputs), site.op, device)
    found = candidates(there, kernels)
    return (there, Timing(found[0][1], 0.0, found[0][0])) if found else None


class Pool:
    """Random bytes that weights of all ops lie in."""

    def __init__(self, gpu: Gpu, sites: Iterable[Site]):
        largest = max((_padded(site, n) for site in sites for n in site.bound if site.values[n].role == "weight"), default=0)
        self.size = max(1 << 20, min(ROTATED, gpu.limits["max_buffer_size"] >> 20 << 20, -(-largest * CHAIN >> 20) << 20))
        self.buffer = gpu.buffer(self.size, "tuning")
        octets = np.frombuffer(np.random.default_rng(0).bytes(min(self.size, 16 << 20)), np.uint8)
        for at in range(0, self.size, octets.size):
            gpu.write(self.buffer, at, octets[:self.size - at])


def _padded(site: Site, name: str) -> int:
    """Bytes of a value whose planes begin on 256."""
    value = site.values[name]
    return sum(-(-b // 256) * 256 for b in plane_bytes(value.shape, value.dtype, value.layout))


class Rig:
    """Buffers for one op, and chains of its dispatches over changing pieces of a pool of weights.

    All dispatches of a chain write the same buffers, so that each waits for the one before, as in a model."""

    def __init__(self, gpu: Gpu, site: Site, pool: Pool):
        self.gpu, self.site, self.pool, self.own = gpu, site, pool, list[Buffer]()

    def __enter__(self) -> Rig:
        self.ranges = [self._ranges(name) for name in self.site.bound]
        if self.site.steps:
            self.ranges.append([[self._filled(np.concatenate([self._input(name) for name in step_offsets(self.site.values)]))]])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for buffer in self.own:
            buffer.destroy()

    def contest(self, sites: Mapping[Choice, Site], kernels: Mapping[str, Kernel], warmth: Warmth, seconds: float) -> dict[Choice, float]:
        """Median seconds of a dispatch by choice; left out are those that the driver refuses or that time is too short for.

        All take turns in every submission, so that a clock that changes meets them alike, and the closer the more often; the first, which
        is the default, as often as any."""
        until = time.perf_counter() + seconds
        chains = self._chains(sites, kernels)
        warmth.keep()
        first = self._looks(chains, until - seconds / 2)
        if not first:
            return {}
        samples: dict[Choice, list[float]] = {c: [] for c in first}
        length, default = max(1, min(CHAIN, int(PASS / max(min(first.values()), 1e-9)))), next(iter(first))
        alive = {c for c in first if first[c] < HOPELESS * min(first.values()) or c == default}
        for rounds, margin in zip(ROUNDS, (BEHIND, CLOSE, None), strict=True):
            for _ in range(rounds):
                if time.perf_counter() + length * sum(first[c] for c in alive) > until:
                    break
                for choice, took in self._round({c: chains[c] for c in first if c in alive}, length).items():
                    samples[choice].append(took)
            if not samples[default]:
                return {default: first[default]}
            now = {c: statistics.median(samples[c]) for c in alive}
            near = {c for c in alive if margin and now[c] < margin * min(now.values())}
            if len(near) < 2 and default in near:
                break
            alive = near | {default}
        warmth.used()
        return {c: statistics.median(samples[c]) if samples[c] else first[c] for c in first}

    def _looks(self, chains: Mapping[Choice, Sequence[Dispatch]], until: float) -> dict[Choice, float]:
        """Seconds of a dispatch at first sight, of as many as there is time for."""
        found: dict[Choice, float] = {}
        for choice, chain in chains.items():
            if found and time.perf_counter() > until:
                break
            self._round({choice: chain}, 1)     # drivers finish compiling at the first dispatch
            found |= self._round({choice: chain}, 2)
        return found

    def _round(self, chains: Mapping[Choice, Sequence[Dispatch]], length: int) -> dict[Choice, float]:
        spans = passes(self.gpu, [chain[:length] for chain in chains.values()]) if chains else np.zeros((0, 2))
        return {c: float(end - begin) / min(length, CHAIN) for c, (begin, end) in zip(chains, spans, strict=True)}

    def _chains(self, sites: Mapping[Choice, Site], kernels: Mapping[str, Kernel]) -> dict[Choice, list[Dispatch]]:
        found: dict[Choice, list[Dispatch]] = {}
        shaders = {c: render(site, kernels[c.kernel], c) for c, site in sites.items()}
        asked = {c: Shader(module_text(s, "naga"), s.bindings, str(c)) for c, s in shaders.items()}
        with suppress(DeviceError):     # in parallel; one that is refused refuses all
            self.gpu.pipelines(list(asked.values()))
        for choice, site in sites.items():
            try:
                pipeline = self.gpu.pipelines([asked[choice]])[0]
            except DeviceError:
                continue
            grid = kernels[choice.kernel].grid(site, dict(choice.schedule))
            found[choice] = [(pipeline, group, grid) for group in self._groups(pipeline)]
        return found

    def _groups(self, pipeline) -> list:
        made: dict[tuple[int, ...], object] = {}
        for run in range(CHAIN):
            key = tuple(run % len(spans) for spans in self.ranges)
            if key not in made:
                made[key] = self.gpu.bind(pipeline, [r for i, spans in zip(key, self.ranges, strict=True) for r in spans[i]])
        return [made[tuple(run % len(spans) for spans in self.ranges)] for run in range(CHAIN)]

    def _input(self, name: str) -> np.ndarray:
        """A middle position everywhere, row 0 of everything else."""
        value = self.site.values[name]
        rows = next((v.shape[2] for v in self.site.values.values() if len(v.shape) == 4 and v.role == "state"), 2)
        start = rows // 2 if name == "position" else 0
        return np.full(value.size, start, np.int32) + (np.arange(value.size, dtype=np.int32) % (rows // 2) if name == "position" else 0)

    def _filled(self, array: np.ndarray) -> tuple[Buffer, int, int]:
        self.own.append(self.gpu.buffer(array.nbytes))
        self.gpu.write(self.own[-1], 0, array)
        return self.own[-1], 0, max(4, array.nbytes)

    def _ranges(self, name: str) -> list[list[tuple[Buffer, int, int]]]:
        """A list of ranges a run, each with a range a plane."""
        value, site = self.site.values[name], self.site
        if name == site.operands.get("expert"):     # others every time, for what one of them reads stays in caches
            return [[self._filled((np.arange(value.size, dtype=np.int32) + run * value.size) % site.shape("w")[0])] for run in range(CHAIN)]
        sizes = [max(4, -(-b // 4) * 4) for b in plane_bytes(value.shape, value.dtype, value.layout)]
        padded = [-(-s // 256) * 256 for s in sizes]
        if value.role != "weight" or 2 * sum(padded) > self.pool.size:
            made = [self.gpu.buffer(size) for size in sizes]
            self.own += made
            return [[(b, 0, s) for b, s in zip(made, sizes, strict=True)]]
        return [[(self.pool.buffer, at + sum(padded[:i]), s) for i, s in enumerate(sizes)]
                for at in range(0, self.pool.size - sum(padded) + 1, sum(padded))][:CHAIN]
