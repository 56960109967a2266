"""The steps of a loaded model as lists of dispatches, in which those of one op can be exchanged, and which are timed against each other."""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil

import numpy as np

from ..compiler.codegen import module_text, render
from ..compiler.device import Device
from ..compiler.ir import Choice
from ..compiler.kernel import Kernel, Site
from ..compiler.proof import unproved
from ..runtime.adapter import DeviceError
from ..runtime.generate import Model
from ..runtime.gpu import Dispatch, Pipeline, Shader
from ..runtime.player import GpuPlayer
from ..runtime.sampling import pack_params
from ..runtime.timing import passes

SHORT = 128                     # position of a decode step; the other is the middle of the context
TOKENS = 256                    # that follow a prompt: how often a decode step runs for every run of a prefill program
PASS = 4e-3                     # s: a timed pass repeats its step until it takes this
SUBMISSION, WARMING = 0.5, 0.02     # s of work in a submission: at most, if a pass takes no more; while the GPU warms up

Feeds = Mapping[str, Mapping[str, np.ndarray]]      # inputs of programs
Variant = tuple[Pipeline, tuple[int, int, int]]     # a shader and its grid


@dataclass
class Work:
    """An op of a step: the places of its dispatches in the list, and the sizes that they bind."""

    site: Site
    places: list[int] = field(default_factory=list)
    sizes: set[tuple[int, ...]] = field(default_factory=set)
    uses: Counter[str] = field(default_factory=Counter)

    @property
    def attends(self) -> bool:
        """Whether its work grows with the context."""
        return any("attention" in kind for kind in self.site.op.kinds)


class Step:
    """Programs that a model plays one after the other, as one list of dispatches. runs: for every prompt; feeds: inputs, context by context."""

    def __init__(self, model: Model, device: Device, runs: int, feeds: Sequence[Feeds]):
        assert isinstance(model.player, GpuPlayer)
        self.player, self.runs, self.feeds = model.player, runs, feeds
        self.default, self.works = list[Dispatch](), dict[str, Work]()
        self.took, self.length = 0.0, 1     # s of a step; steps of a pass
        for program in feeds[0]:
            graph, calls = model.package.graph(program), model.package.manifest["programs"][program]["dispatches"]
            for op, call, dispatch in zip(graph.ops, calls, self.player.dispatches(program), strict=True):
                site = Site(graph, op, device)
                work = self.works.setdefault(site.signature, Work(site))
                work.places.append(len(self.default))
                work.sizes.add(tuple(size for _, _, size in call["bindings"]))
                work.uses[program] += 1
                self.default.append(dispatch)
        self.now = list(self.default)

    def exchanged(self, key: str, variant: Variant) -> list[Dispatch]:
        """The list as it is now, with another pipeline for an op: bind groups fit every pipeline with the same bindings."""
        found = list(self.now)
        for place in self.works[key].places:
            found[place] = (variant[0], self.now[place][1], variant[1])
        return found

    def without(self, key: str) -> list[Dispatch]:
        left = set(self.works[key].places)
        return [d for i, d in enumerate(self.now) if i not in left]

    def warm(self, seconds: float) -> None:
        """Replay the step until clocks are up, and see what it takes."""
        start, count = time.perf_counter(), 1
        self._feed(self.feeds[0])
        while True:
            spans = passes(self.player.gpu, [self.now] * count)
            self.took = max(1e-9, float(np.median(spans[:, 1] - spans[:, 0])))
            if time.perf_counter() - start >= seconds:
                break
            count = ceil(WARMING / self.took)
        self.length = ceil(PASS / self.took)

    def seconds(self, lists: Sequence[Sequence[Dispatch]], rounds: int, contexts: int = 1) -> np.ndarray:
        """What a step takes by each of the lists, which take turns; float64 [contexts, rounds, lists]."""
        found = []
        for feeds in self.feeds[:contexts]:
            self._feed(feeds)
            rows: list[np.ndarray] = []
            while len(rows) < rounds:
                turns = min(rounds - len(rows), max(1, int(SUBMISSION / (len(lists) * self.took * self.length))))
                groups = [list(dispatches) * self.length for dispatches in lists]
                spans = passes(self.player.gpu, [groups[0], *groups * turns])[1:]       # the first comes after a pause
                rows += list((spans[:, 1] - spans[:, 0]).reshape(turns, -1) / self.length)
            found.append(rows)
        return np.array(found)

    def fitting(self, seconds: float, rounds: int, contexts: int) -> int:
        """How many lists there is time for."""
        return int(seconds / (rounds * contexts * self.took * self.length)) - 1

    def alone(self, key: str, variants: Sequence[Variant]) -> list[float]:
        """Seconds of one dispatch of an op as it is now, then by each of the variants; drivers finish compiling at the first."""
        place = self.works[key].places[0]
        found = passes(self.player.gpu, [[d[place]] for d in [self.now, *(self.exchanged(key, v) for v in variants)]] * 3)
        return (found[:, 1] - found[:, 0]).reshape(3, -1)[1:].min(0).tolist()

    def variants(self, key: str, sites: Mapping[Choice, Site], kernels: Mapping[str, Kernel]) -> dict[Choice, Variant]:
        """Pipelines as the player would make them; left out is what the driver refuses."""
        asked: dict[Choice, tuple[Shader, tuple[int, int, int]]] = {}
        for choice, site in sites.items():
            shader, grid = render(site, kernels[choice.kernel], choice), kernels[choice.kernel].grid(site, dict(choice.schedule))
            trusted = all(unproved(shader.wgsl, grid, sizes) is None for sizes in self.works[key].sizes)
            asked[choice] = Shader(module_text(shader, "naga"), shader.bindings, str(choice), trusted), grid
        with suppress(DeviceError):     # in parallel; one that is refused refuses all
            self.player.gpu.pipelines([shader for shader, _ in asked.values()])
        found: dict[Choice, Variant] = {}
        for choice, (wanted, grid) in asked.items():
            with suppress(DeviceError):
                found[choice] = self.player.gpu.pipelines([wanted])[0], grid
        return found

    def _feed(self, feeds: Feeds) -> None:
        for program, inputs in feeds.items():
            self.player.feed(program, inputs)


def steps_of(model: Model, device: Device, programs: Callable[[str], bool] = lambda name: True) -> dict[str, Step]:
    """By the name of its first program, every step that a session takes: decoding and what picks the token, at a short context and at half of
    all; prefilling, at the beginning and there. programs: which are wanted."""
    info, half, rng = model.info, model.context // 2, np.random.default_rng(0)

    def inputs(position: np.ndarray, slot: np.ndarray) -> dict[str, np.ndarray]:
        arrays = {"token": rng.integers(0, info["vocab_size"], position.size), "position": position, "slot": slot}
        return {name: array.astype(np.int32) for name, array in arrays.items()}
    found = {}
    for n in info["decode"]:
        params = np.stack([pack_params(0, 0, 1, 0, 1, 0, 0, 1, slot) for slot in range(n)])
        short = min(SHORT, model.context - 1)
        if programs(f"decode_{n}"):
            found[f"decode_{n}"] = Step(model, device, TOKENS, [
                {f"decode_{n}": inputs(np.full(n, at), np.arange(n)), f"greedy_{n}": {"params": params}} for at in sorted({short, max(short, half)})])
    for n in info["prefill"]:
        if programs(f"prefill_{n}"):
            found[f"prefill_{n}"] = Step(model, device, 1, [{f"prefill_{n}": inputs(at + np.arange(n), np.zeros(n))}
                                                            for at in sorted({0, min(half, model.context - n)})])
    return found
