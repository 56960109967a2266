"""Choose schedules inside the loaded model: whole steps are timed, with the dispatches of one op exchanged for a candidate's.

Alone, in a chain of its like, an op finds other things in caches and waits for other neighbours than in the model, so that what wins there
may lose here. All lists of dispatches that are compared take turns in one submission, so that a clock that changes meets them alike.
"""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..compiler.device import Device, shipped_devices
from ..compiler.ir import Choice, Graph
from ..compiler.kernel import Kernel, Site
from ..compiler.passes.tiling import candidates
from ..runtime.generate import Model
from .steps import Step, Variant, steps_of

SHARE = 0.005                   # of a step's estimated time: ops that take less are left as they are
FIRST, AGAIN = 0.5, 0.1         # s of replays before anything is timed, before an op is
HOPELESS = 3.0, 0.1             # not timed in the model: alone so many times slower than the default, and so much of a step lost
TOGETHER, FINALISTS = 8, 6      # choices that are timed with the present one at first, and again
CLOSE = 0.01                    # of a step's time behind the fastest: timed again
LOOKS, ROUNDS, DUEL = 3, 9, 16  # rounds of all choices, of those that are close, of the winner against the present one
GAIN, WINS = 0.0015, 0.75       # of a step's time to be won, and share of rounds, that a choice is taken for: less may be noise


@dataclass(frozen=True)
class Timing:
    """A choice, with seconds of a dispatch in the model (what a step loses or gains by it, at all its contexts) and by the cost model."""

    choice: Choice
    seconds: float
    estimate: float


@dataclass(frozen=True)
class Tuned:
    """What was found for an op. step: where it was timed; uses: its dispatches by program; default: what the model was compiled with;
    portable: what the cost model would take for a device without any optional feature and with WebGPU's least limits, where that exists;
    best: the default unless another is clearly faster; timed: choices."""

    signature: str
    kinds: tuple[str, ...]
    step: str
    uses: Mapping[str, int]
    default: Timing
    best: Timing
    portable: Timing | None
    timed: int


@dataclass(frozen=True)
class Tuning:
    """What was found for ops; and for every step the seconds that it takes by default and tuned, at its first context."""

    ops: tuple[Tuned, ...]
    steps: Mapping[str, tuple[float, float]]

    @property
    def choices(self) -> dict[str, Choice]:
        """By signature, what goes under [tuned] in a device record."""
        return {r.signature: r.best.choice for r in self.ops}


def tune(model: Model, device: Device, kernels: Mapping[str, Kernel], most: int = 48, seconds: float = 60.0,
         programs: Callable[[str], bool] = lambda name: True,
         progress: Callable[[str, int, int], None] = lambda what, done, total: None) -> Tuning:
    """Time choices for the ops of a loaded model, the heaviest first, within a budget of seconds; what was found for one stays for the next.

    device: the record that it was compiled with. most: choices of an op (see `likely`). programs: whose steps are tuned.
    A step that is not faster as a whole in the end keeps its defaults. The model's caches are written to, so that its streams end."""
    until, found = time.perf_counter() + seconds, list[Tuned]()
    model.interrupt()
    steps = steps_of(model, device, programs)
    ordered = _heaviest(steps, kernels)
    for done, (weight, name, key) in enumerate(ordered):
        if (left := until - time.perf_counter()) <= 0:
            break
        progress(f"tuning {name}: {'+'.join(steps[name].works[key].site.op.kinds)}", done, len(ordered))
        steps[name].warm(AGAIN if found else FIRST)
        share = max(0.25, weight / sum(w for w, _, _ in ordered[done:]))
        if result := _tuned(steps[name], name, key, kernels, most, min(until, time.perf_counter() + max(1.0, share * left))):
            uses = sum((s.works[key].uses for s in steps.values() if key in s.works), Counter[str]())
            found.append(replace(result, uses=dict(uses)))
    return _judged(steps, found)


def _heaviest(steps: Mapping[str, Step], kernels: Mapping[str, Kernel]) -> list[tuple[float, str, str]]:
    """Weight, step and op, every op where it weighs most."""
    weights: dict[str, tuple[float, str]] = {}
    for name, step in steps.items():
        estimates = {key: len(w.places) * _estimate(w.site, w.site.op.choice, kernels) for key, w in step.works.items()}
        for key, estimate in estimates.items():
            if estimate >= SHARE * sum(estimates.values()):
                weights[key] = max(weights.get(key, (0.0, "")), (estimate * step.runs, name))
    return sorted(((weight, name, key) for key, (weight, name) in weights.items()), reverse=True)


def _estimate(site: Site, choice: Choice | None, kernels: Mapping[str, Kernel]) -> float:
    assert choice
    return kernels[choice.kernel].cost(site, dict(choice.schedule))


def likely(options: Sequence[tuple[float, Choice]], site: Site, kernels: Mapping[str, Kernel], most: int) -> list[Choice]:
    """So many: three in four the cheapest, then the two cheapest of every kernel and size of workgroup, for the cost model may be wrong about
    a whole kind."""
    seen, found = Counter[tuple[str, int]](), list[Choice]()
    for i, (_, choice) in enumerate(options):
        kind = choice.kernel, kernels[choice.kernel].threads(site, dict(choice.schedule))
        seen[kind] += 1
        if i < most * 3 // 4 or (seen[kind] <= 2 and len(found) < most):
            found.append(choice)
    return found


def _tuned(step: Step, name: str, key: str, kernels: Mapping[str, Kernel], most: int, until: float) -> Tuned | None:
    """Nothing where there is no choice, or no time."""
    site = step.works[key].site
    default, portable = site.op.choice, _portable(site, kernels)
    eligible = [c for c in likely(candidates(site, kernels), site, kernels, most) if c != default]
    if not eligible or default is None:
        return None
    sites = dict.fromkeys(eligible, site)
    if portable and portable[1] != default:
        sites = {portable[1]: sites.get(portable[1], portable[0]), **sites}      # first, should time be short
    contest = Contest(step, key, kernels)
    now = time.perf_counter()
    contest.look(sites, (now + until) / 2)
    if not (decided := contest.decide(eligible, until)):
        return None
    winner, seconds = decided
    times = {c: Timing(c, s, _estimate(sites.get(c, site), c, kernels)) for c, s in seconds.items()}
    if winner:
        step.now = step.exchanged(key, contest.variants[winner])
    return Tuned(key, site.op.kinds, name, {}, times[default], times[winner or default], times.get(portable[1]) if portable else None, len(times))


class Contest:
    """Choices for an op in the place of its present one. looks: by choice the step's time against the present one, and seconds more."""

    def __init__(self, step: Step, key: str, kernels: Mapping[str, Kernel]):
        self.step, self.key, self.kernels, self.work = step, key, kernels, step.works[key]
        self.contexts = len(step.feeds) if self.work.attends else 1
        self.variants, self.looks = dict[Choice, Variant](), dict[Choice, tuple[float, float]]()

    def look(self, sites: Mapping[Choice, Site], until: float) -> None:
        """A few rounds of as many as there is time for; what is hopeless alone is not timed in the model."""
        step, choices = self.step, list(sites)
        for at in range(0, len(choices), TOGETHER):
            if step.fitting(until - time.perf_counter(), LOOKS, self.contexts) < 2:
                break
            made = step.variants(self.key, {c: sites[c] for c in choices[at:at + TOGETHER]}, self.kernels)
            self.variants |= made
            present, *alone = step.alone(self.key, list(made.values()))
            for choice, seconds in zip(list(made), alone, strict=True):
                more = (seconds - present) * len(self.work.places)
                if seconds > HOPELESS[0] * present and more > HOPELESS[1] * step.took:
                    self.looks[choice] = 1 + more / step.took, more
                    del made[choice]
            room = step.fitting(until - time.perf_counter(), LOOKS, self.contexts) - 1
            group = list(made)[:max(1, room)]
            timed = step.seconds([step.now, *(step.exchanged(self.key, made[c]) for c in group)], LOOKS, self.contexts)
            self.looks |= {c: (float(np.median(r)), float(g)) for c, r, g in zip(group, ratios(timed).T, gains(timed), strict=True)}

    def decide(self, eligible: Collection[Choice], until: float) -> tuple[Choice | None, dict[Choice, float]] | None:
        """The choice that beats the present one, if any does, and seconds of a dispatch by choice; nothing if time is short."""
        step, hopeful = self.step, [c for c in self.looks if c in eligible]
        fastest = min([1.0, *(self.looks[c][0] for c in hopeful)])
        near = sorted((c for c in hopeful if self.looks[c][0] < fastest + CLOSE), key=lambda c: self.looks[c][0])
        if not self.looks or (room := step.fitting(until - time.perf_counter(), ROUNDS, self.contexts) - 2) < 0:
            return None
        near = near[:min(room, FINALISTS)]
        lists = [step.exchanged(self.key, self.variants[c]) for c in near]
        again = step.seconds([step.now, step.without(self.key), *lists], ROUNDS, self.contexts)
        spent, *more = (-gains(again)[0], *gains(again)[1:])
        took = {c: m for c, (_, m) in self.looks.items()} | dict(zip(near, more, strict=True)) | {self.work.site.op.choice: 0.0}
        winner = None
        if near and better(again[..., [0, 2 + (first := int(np.argmin(np.median(ratios(again), 0)[1:])))]]):
            duel = step.seconds([step.now, lists[first]], DUEL, self.contexts)       # of many, one may have been lucky
            took[near[first]] = gains(duel)[0]
            winner = near[first] if better(duel) else None
        return winner, {c: max(0.0, float(spent + m)) / len(self.work.places) for c, m in took.items()}


def ratios(seconds: np.ndarray) -> np.ndarray:
    """Of [contexts, rounds, 1 + lists]: the time by every list against that by the first in the same round, the mean of all contexts;
    [rounds, lists]."""
    return (seconds[..., 1:] / seconds[..., :1]).mean(0)


def gains(seconds: np.ndarray) -> np.ndarray:
    """Seconds that every list takes more than the first, by the ratios of rounds, the mean of all contexts; [lists]."""
    first = np.median(seconds[..., :1], 1, keepdims=True)
    return np.median(first * (seconds[..., 1:] / seconds[..., :1] - 1), 1).mean(0)


def better(seconds: np.ndarray) -> bool:
    """Whether the second of two lists is faster than the first by more than noise."""
    against = ratios(seconds)[:, 0]
    return bool(np.median(against) < 1 - GAIN and (against < 1).mean() > WINS)


def _judged(steps: Mapping[str, Step], found: Sequence[Tuned]) -> Tuning:
    """With the defaults again in every step that is not faster as a whole."""
    times, kept = {}, list[Tuned]()
    for name, step in steps.items():
        mine = [r for r in found if r.step == name]
        if mine:
            step.warm(AGAIN)
            timed = step.seconds([step.default, step.now], DUEL, len(step.feeds))
            tuned = better(timed)
            kept += mine if tuned else [replace(r, best=r.default) for r in mine]
            times[name] = float(np.median(timed[0, :, 0])), float(np.median(timed[0, :, 1 if tuned else 0]))
    return Tuning(tuple(kept), times)


def _portable(site: Site, kernels: Mapping[str, Kernel]) -> tuple[Site, Choice] | None:
    """What the cost model takes for the least of all devices, which only has the bindings and the f16 that the op needs."""
    least = next(d for d in shipped_devices() if d.name == "web-default")
    needs = ("max_storage_buffers_per_shader_stage", "max_storage_buffer_binding_size")
    device = replace(least, features=site.device.features & {"shader-f16"}, limits={**least.limits, **{n: site.device.limit(n) for n in needs}})
    there = Site(Graph(dict(site.values), (site.op,), site.op.outputs), site.op, device)
    found = candidates(there, kernels)
    return (there, found[0][1]) if found else None
