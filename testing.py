"""Hold kernels to their ops' numpy meanings: every schedule that a kernel offers, on a GPU, against `evaluate`.

For kernels and models inside and outside this package:

    graph = ...                                       # one op, plain or fused (tilewright.Builder writes graphs)
    tilewright.testing.check(gpu, graph, kernel)      # every schedule that fits the device
    tilewright.testing.check_graph(graph)             # a graph of any ops, compiled as a whole
    tilewright.testing.check_model(gpu, "my-granite", device)       # every op that a model comes to
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from .compiler.codegen import module_text, render, step_offsets
from .compiler.device import Device
from .compiler.ir import Choice, Graph, Op, Value
from .compiler.kernel import Kernel, Schedule, Site
from .compiler.layouts import LAYOUTS
from .compiler.ops import NUMPY, OPS, evaluate
from .compiler.passes.tiling import fits
from .compiler.pipeline import run_stages
from .compiler.sources import assemble
from .compiler.verify import verify
from .frontends.checkpoint import open_checkpoint
from .frontends.lower import Plan, lower
from .runtime.gpu import Gpu
from .sessions import session
from .templates import KERNELS

MARGIN = 4096       # bytes behind every buffer that no kernel may touch: NaN for those who read them, and kept by those who write


def fuse_all(graph: Graph) -> Graph:
    """The whole graph as one fused op whose outputs are the graph's: what a kernel is given after fusion."""
    made = {n for op in graph.ops for n in op.outputs}
    inputs = tuple(dict.fromkeys(n for op in graph.ops for n in op.inputs if n not in made))
    return graph if len(graph.ops) == 1 else graph.with_ops([Op("fused", inputs, graph.outputs, body=graph.ops)])


def schedules(graph: Graph, kernel: Kernel, device: Device) -> Iterator[Schedule]:
    """The schedules of a one-op graph that the device may run; none if the kernel does not take the op."""
    site = Site(graph, graph.ops[0], device)
    if kernel.accepts(site):
        yield from (s for s in kernel.schedules(site) if fits(site, kernel, s))


def random_feeds(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal numbers for every float value that the outside gives, zeros for the others: set those that matter.

    Weights in a packed layout get numbers that the layout can hold, so that both sides compute with the same ones."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for name, v in graph.values.items():
        if v.role != "temp" and not v.source:
            array = (rng.standard_normal(v.shape) if v.dtype in ("f32", "f16") else np.zeros(v.shape)).astype(NUMPY[v.dtype])
            feeds[name] = _held(v, array)
    return feeds


def run(gpu: Gpu, graph: Graph, kernel: Kernel, schedule: Schedule, device: Device, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a one-op graph with one kernel and schedule; outputs by name. Buffers that it must fill start as NaN."""
    choice = Choice(kernel.name, tuple(schedule.items()))
    op = replace(graph.ops[0], choice=choice)
    site = Site(graph, op, device)
    shader = render(site, kernel, choice)
    previous = {made: old for old, made in site.aliases.items()}
    ranges = []
    for name in site.bound:
        value = graph.values[name]
        for plane in _stored(value, feeds.get(previous.get(name, name))):
            buffer = gpu.buffer(plane.nbytes + MARGIN)
            gpu.write(buffer, 0, plane)
            gpu.write(buffer, plane.nbytes, np.full(MARGIN, 255, np.uint8))
            ranges.append((buffer, 0, plane.nbytes + MARGIN))
    if site.steps:
        words = [feeds[n].ravel().view(np.int32) for n in step_offsets(graph.values)]
        step = np.concatenate(words)
        ranges.append((gpu.buffer(step.nbytes), 0, step.nbytes))
        gpu.write(ranges[-1][0], 0, step)
    pipeline = gpu.pipeline(module_text(shader, "naga"), shader.bindings, str(op.choice))
    gpu.submit([gpu.replay([(pipeline, gpu.bind(pipeline, ranges), kernel.grid(site, schedule))])])
    result = {}
    for name in op.outputs:
        value, at = graph.values[name], _binding(site, name)
        read = [gpu.read(buffer, 0, size).view(np.uint8) for buffer, _, size in ranges[at:at + len(LAYOUTS[value.layout].planes)]]
        assert all((raw[-MARGIN:] == 255).all() for raw in read), f"{op.choice} writes behind the end of %{name}: {value}"
        planes = tuple(raw[:-MARGIN] for raw in read)
        dtype = np.dtype(NUMPY[value.dtype])
        result[name] = planes[0][:value.size * dtype.itemsize].view(dtype).reshape(value.shape) if value.layout == "row" \
            else LAYOUTS[value.layout].unpack(planes, value.shape)
    for buffer, _, _ in ranges:
        buffer.destroy()
    return result


def _binding(site: Site, name: str) -> int:
    return sum(len(LAYOUTS[site.values[n].layout].planes) for n in site.bound[:site.bound.index(name)])


def _stored(value: Value, array: np.ndarray | None) -> tuple[np.ndarray, ...]:
    if array is None:
        array = np.full(value.shape, np.nan if value.dtype in ("f32", "f16") else 7, NUMPY[value.dtype])
    packed = LAYOUTS[value.layout].pack(array)
    return tuple(np.ascontiguousarray(np.pad(p.reshape(-1), (0, -p.size * p.itemsize % 4 // p.itemsize))) for p in packed)


def _held(value: Value, array: np.ndarray) -> np.ndarray:
    """The numbers that a buffer holds when it is given these: a layout may round them."""
    layout = LAYOUTS[value.layout]
    return array if value.layout == "row" else layout.unpack(layout.pack(array), value.shape)


def check(gpu: Gpu, graph: Graph, kernel: Kernel, device: Device, feeds: Mapping[str, np.ndarray] | None = None,
          limit: int | None = None) -> int:
    """Run every schedule (at most `limit`, spread evenly) of a graph of one op and compare with numpy. Returns how many ran.

    Raises AssertionError naming the schedule whose result is off."""
    graph = fuse_all(graph)
    verify(graph, "testing")
    site = Site(graph, graph.ops[0], device)
    feeds = dict(random_feeds(graph) if feeds is None else feeds)
    for name, value in graph.values.items():
        if value.source and name not in feeds:
            feeds[name] = assemble(name, graph.values, feeds.__getitem__)
    held = {name: _held(graph.values[name], array) if name in graph.values else array for name, array in feeds.items()}
    want, before = evaluate(graph, held), {made: held[old] for old, made in site.aliases.items() if old in held}
    options = list(schedules(graph, kernel, device))
    options = options[::-(-len(options) // limit)] if limit and options else options
    bytes_of = {p.outputs[0] for p in site.op.parts if p.kind == "quantize"}
    for s in options:
        got = run(gpu, graph, kernel, s, device, feeds)
        relative, absolute = kernel.tolerance(site)
        for name in graph.ops[0].outputs:
            if graph.values[name].dtype in ("i32", "u32"):
                _same_integers(got[name], want[name], name in bytes_of, relative > 1e-3, f"{kernel.name} with {s} on {device.name}: %{name}")
                continue
            scale = max(1.0, float(np.abs(want[name]).max(initial=0)))
            result = got[name] if graph.values[name].layout == "row" else _same_side(got[name], want[name], before[name], relative)
            np.testing.assert_allclose(result.astype(np.float64), want[name].astype(np.float64), rtol=relative, atol=absolute * scale,
                                       err_msg=f"{kernel.name} with {s} on {device.name}: %{name}\n{graph.ops[0].kinds}")
    return len(options)


def check_model(gpu: Gpu, path: str | Path, device: Device, plan: Plan | None = None, limit: int | None = None) -> int:
    """Compile a checkpoint for the device and hold every distinct op that it comes to, fused as it is, to what the op means in numpy: every
    schedule (at most `limit`) of the kernel that runs it, on random operands. Returns how many ops there were.

    The family may be registered or built in. plan: sizes of the programs, by default small ones. Raises AssertionError naming the schedule
    whose result is off, GraphError where no kernel runs an op."""
    graphs = lower(open_checkpoint(path), plan or Plan(64, prefill=(3, 16), decode=(1, 2), head=(1, 4))).graphs
    models = {name: graph for name, graph in graphs.items() if name.startswith(("prefill", "decode", "head"))}
    *_, (_, tiled, _) = run_stages(models, device, KERNELS)
    seen = set()
    for graph in tiled.values():
        for op in graph.ops:
            assert op.choice
            if (key := (Site(graph, op, device).signature, op.choice.kernel)) not in seen:
                seen.add(key)
                alone = _alone(graph, op)
                check(gpu, alone, KERNELS[op.choice.kernel], device, {**random_feeds(alone), **_indices(alone)}, limit)
    return len(seen)


def _alone(graph: Graph, op: Op) -> Graph:
    """A graph of one op of another: what others compute for it comes from outside."""
    inside = {n: graph.values[n] for part in (op, *op.parts) for n in (*part.inputs, *part.outputs)}
    given = {n: replace(v, role="state" if v.role == "temp" else v.role, source=()) if n in op.inputs else v for n, v in inside.items()}
    return Graph(given, (replace(op, choice=None),), op.outputs)


def _indices(graph: Graph) -> dict[str, np.ndarray]:
    """Numbers for integers that mean places: positions one after another, any of the rows or experts that are there, and slot 0."""
    rng, found = np.random.default_rng(0), {}
    for part in graph.ops[0].parts:
        by_operand = dict(zip((o.rstrip("?") for o in OPS[part.kind].operands), part.inputs, strict=False))
        for operand, of in (("index", "table"), ("expert", "w"), ("position", "")):
            if (name := by_operand.get(operand)) and graph.values[name].role != "temp":
                shape = graph.values[name].shape
                most = graph.values[by_operand[of]].shape[0] if of else 0
                found[name] = (rng.integers(0, most, shape) if of else np.arange(shape[0])).astype(np.int32)
    return found


def _same_integers(got: np.ndarray, want: np.ndarray, rounded: bool, halves: bool, where: str) -> None:
    """Equal; or, of numbers rounded to bytes, at most a few that float error took to the neighbouring integer. halves: numpy rounded
    those numbers to f16 before, which moves the largest of 127 by 127 / 2**12 of a step, and as many of them across a boundary."""
    if not rounded:
        np.testing.assert_array_equal(got, want, err_msg=where)
        return
    apart = np.abs(got.view(np.int8).astype(int) - want.view(np.int8))
    most = 2 + (127 / 2**12 if halves else 0.01) * apart.size
    assert apart.max(initial=0) <= 1 and (apart > 0).sum() <= most, f"{where}: {(apart > 0).sum()} of {apart.size} integers differ"


def _same_side(got: np.ndarray, want: np.ndarray, before: np.ndarray, relative: float) -> np.ndarray:
    """What a kernel wrote in a layout that rounds to 127 steps, with `want` where the two took neighbouring integers: a number within
    float error of the middle may go either way. That is forgiven to the share of written numbers that the tolerance puts so near to it."""
    step = np.repeat(np.abs(want.reshape(-1, 32)).max(-1) / 127, 32).reshape(want.shape)
    turned = np.abs(np.abs(got - want) - step) <= min(0.5, 127 * relative) * step
    return np.where(turned, want, got) if turned.sum() <= 2 + 127 * relative * (want != before).sum() else got


def check_graph(graph: Graph, device: str = "auto", feeds: Mapping[str, np.ndarray] | None = None, tolerance: float = 1e-4) -> dict[str, np.ndarray]:
    """Compile a whole graph, run it as `tilewright.session` does, and compare all that it gives with numpy. Returns what it gave.

    feeds: inputs and weights by name, random numbers by default (integers zero); states start as zeros. tolerance: of the largest number
    of an output, or of 1. Raises AssertionError naming the output that is off."""
    feeds = dict(random_feeds(graph) if feeds is None else feeds)
    weights = {n: feeds[n] for n in graph.role("weight")}
    held = {n: _held(v, feeds[n]) if n in feeds and v.role != "state" else np.zeros(v.shape, NUMPY[v.dtype])
            for n, v in graph.values.items() if v.role != "temp" and not v.source}
    want, player = evaluate(graph, held), session(graph, device, weights)
    try:
        got = player.run({n: feeds[n] for n in graph.role("input")})
    finally:
        player.close()
    for name in graph.outputs:
        limit = tolerance * max(1.0, float(np.abs(want[name]).max(initial=0)))
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=limit, err_msg=f"%{name} = {graph.values[name]} on {device}")
    return got


__all__ = ["check", "check_graph", "check_model", "fuse_all", "random_feeds", "run", "schedules"]
