"""The passes in order, over all programs of a model; each leaves graphs that verify."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from .codegen import Shader, render
from .device import Device
from .ir import Choice, Graph
from .kernel import Kernel, Site, form
from .passes.activations import round_activations
from .passes.alias import alias
from .passes.choices import split_sums
from .passes.cut import cut_caches, cut_weights
from .passes.fusion import fuse
from .passes.layout import lay_out
from .passes.memory import Memory, place
from .passes.simplify import simplify
from .passes.split_kv import split_kv
from .passes.tiling import tile
from .text import show
from .verify import verify

Graphs = dict[str, Graph]
Stage = tuple[str, Callable[[Graphs], Graphs]]


@dataclass
class Compiled:
    """What the passes give: for each program its graph, memory, and a shader number and grid an op. seconds: by stage."""

    graphs: Graphs
    memories: dict[str, Memory] = field(default_factory=dict)
    shaders: list[Shader] = field(default_factory=list)
    calls: dict[str, list[tuple[int, tuple[int, int, int]]]] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)     # of the shaders
    seconds: dict[str, float] = field(default_factory=dict)


def stages(device: Device, kernels: Mapping[str, Kernel]) -> list[Stage]:
    """Name and step of every pass over graphs."""
    def each(step: Callable[[Graph], Graph]) -> Callable[[Graphs], Graphs]:
        return lambda graphs: {name: step(g) for name, g in graphs.items()}
    first: list[Stage] = [("simplify", each(simplify)), ("layout", lay_out)]
    if not kernels:
        return first        # the reference device plays graphs as they are
    first.append(("choices", each(split_sums)))
    if device.packed_dot:
        first.append(("activations", each(lambda g: round_activations(g, device, kernels))))
    return [*first, ("cut caches", each(lambda g: cut_caches(g, device))), ("split_kv", each(lambda g: split_kv(g, device))),
            ("fusion", each(lambda g: fuse(g, device, kernels))), ("cut weights", each(lambda g: cut_weights(g, device))),
            ("alias", each(alias)), ("tiling", each(lambda g: tile(g, device, kernels)))]


def run_stages(graphs: Mapping[str, Graph], device: Device, kernels: Mapping[str, Kernel]) -> Iterator[tuple[str, Graphs, float]]:
    """Run the passes; after each: its name, the verified graphs, its seconds. TILEWRIGHT_DUMP=STAGE|all prints graphs."""
    now, verified = dict(graphs), Graphs()
    wanted = os.environ.get("TILEWRIGHT_DUMP", "").split(",")
    for name, step in [("frontend", lambda g: g), *stages(device, kernels)]:
        start = time.perf_counter()
        now = step(now)
        seconds = time.perf_counter() - start
        if name in wanted or "all" in wanted:
            for program, graph in now.items():
                print(f"--- {program} after {name}\n{show(graph)}", file=sys.stderr)
        for program, graph in now.items():
            verify(graph, name, verified.get(program))
        verified = now
        yield name, now, seconds


def compile_graphs(graphs: Mapping[str, Graph], device: Device, kernels: Mapping[str, Kernel],
                   progress: Callable[[str], None] = lambda stage: None) -> Compiled:
    """Compile all programs of a model for a device. kernels: by name; none for the reference device.

    Raises GraphError when a graph breaks a rule or no kernel runs an op."""
    result = Compiled(dict(graphs))
    for name, result.graphs, result.seconds[name] in run_stages(graphs, device, kernels):
        progress(name)
    if not kernels:
        return result
    start = time.perf_counter()
    result.memories = {name: place(g) for name, g in result.graphs.items()}
    result.seconds["memory"] = time.perf_counter() - start
    progress("memory")
    start = time.perf_counter()
    _generate(result, device, kernels)
    result.seconds["codegen"] = time.perf_counter() - start
    progress("codegen")
    return result


def _generate(result: Compiled, device: Device, kernels: Mapping[str, Kernel]) -> None:
    """Render every distinct op once; equal text is one shader."""
    known: dict[Hashable, tuple[int, tuple[int, int, int]]] = {}
    numbers: dict[Shader, int] = {}
    for program, graph in result.graphs.items():
        calls = result.calls[program] = []
        for op in graph.ops:
            choice = op.choice
            assert choice
            steps = any(graph.values[n].role == "input" for n in op.inputs)     # which lie in other places in other programs
            key = (form(op, graph.values)[0], choice, program if steps else "")
            if key not in known:
                site, kernel = Site(graph, op, device), kernels[choice.kernel]
                shader = render(site, kernel, choice)
                if shader not in numbers:
                    numbers[shader] = len(numbers)
                    result.shaders.append(shader)
                    result.choices.append(choice)
                known[key] = numbers[shader], kernel.grid(site, dict(choice.schedule))
            calls.append(known[key])
