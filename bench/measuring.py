"""What probe, tune and profile do besides measuring: records that are kept, and tables and files that tell of it."""
from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from ..api import KERNELS, MOST_CONTEXT, compile_for, compile_package, is_package, open_checkpoint, open_gpu, open_package, record_of
from ..compiler.device import Device, save_device, user_file
from ..compiler.package import PackageError
from ..compiler.proof import proved
from ..frontends.quantize import Quantize
from ..frontends.weights.loading import fill
from ..runtime import timing
from ..runtime.adapter import DeviceError, pick
from ..runtime.generate import Model
from ..runtime.gpu import Gpu
from ..runtime.player import GpuPlayer
from ..runtime.terminal import progress
from ..runtime.tracing import TracedGpu
from . import probing, profiling, tuning

Progress = Callable[[str, int, int], None]
Row = tuple[str, ...]
Table = tuple[str, tuple[str, ...], list[Any]]


def real_gpu(device: str) -> Gpu:
    """Raises DeviceError for what cannot be measured."""
    if (gpu := open_gpu(device)) is None:
        raise DeviceError("nothing to measure: the numpy reference is no GPU; give --device a part of an adapter's name (tilewright devices)")
    return gpu


def probe(gpu: Gpu, show: Progress) -> probing.Probed:
    """Measure an adapter; what its record says besides stays, if it can be read."""
    try:
        known = record_of(gpu)
    except ValueError:
        known = Device(gpu.info.name)
    return probing.probe(gpu, known, show)


def keep(device: Device, how: str, gpu: Gpu, path: Path | None = None) -> Path:
    """Write a record of an adapter, by default into the user's folder. Returns where it is."""
    path = path or user_file(gpu.info.name)
    save_device(replace(device, match=f"^{re.escape(gpu.info.name)}$"), path, f"{how} {date.today()}, {gpu.info.backend}, driver {gpu.info.driver}")
    return path


def measured(gpu: Gpu, show: Progress) -> Device:
    """The adapter's record; one that nobody measured is probed first, and kept."""
    record = record_of(gpu)
    if not record.match:
        record = probing.probe(gpu, record, show).device
        keep(record, "tilewright probe", gpu)
    return record


def tune(gpu: Gpu, path: Path, seconds: float, show: Progress, context: int | None = None, dtype: str | None = None,
         cache: str | None = None, quantize: Quantize = None, batch: int = 1) -> tuple[tuning.Tuning, Path]:
    """Load a model, tune its ops, and keep the choices in the user's record of the adapter. Returns what was found, and the file.

    Raises PackageError for what is compiled already."""
    record = measured(gpu, show)
    plain = replace(record, tuned={})
    if is_package(path):
        if (package := open_package(path)).manifest["shaders"]:
            raise PackageError(f"{path} is compiled already: tune the model that it was made of, then compile that again")
        package = compile_package(package, plain, show)
    else:
        package = compile_for(open_checkpoint(path), plain, context, dtype or "f32", cache, show, quantize, batch=batch)
    player = GpuPlayer(package, gpu, lambda done, total: show("loading weights", done, total), trusted=partial(proved, package.manifest),
                       fill=partial(fill, package) if package.array else None)
    model = Model(package, player, None)
    found = tuning.tune(model, plain, KERNELS, seconds=seconds, progress=show)
    model.close()
    return found, keep(replace(record, tuned={**record.tuned, **found.choices}), "tilewright tune", gpu)


def tune_first(model: Path, device: str, context: int | None, dtype: str | None, cache: str | None, quantize: Quantize) -> None:
    """Tune with a budget of a minute, and say so on standard error."""
    gpu = real_gpu(device)
    with progress() as show:
        found, path = tune(gpu, model, 60.0, show, context, dtype, cache, quantize)
    gpu.close()
    print(f"tuned {len(found.ops)} kernels, kept in {path}", file=sys.stderr)


def tuned_rows(found: tuning.Tuning) -> list[Row]:
    """A line an op, those that most of their step's time goes into first."""
    ordered = sorted(found.ops, key=lambda r: -r.default.seconds * r.uses.get(r.step, 0))
    ops = ["+".join(r.kinds) for r in ordered]
    return [(" ".join(f"{p} x{n}" for p, n in r.uses.items()), op if len(op) < 60 else f"{op[:57]}...", *_times(r.portable, r.default, r.best),
             str(r.best.choice) if r.best != r.default else "as default") for op, r in zip(ops, ordered, strict=True)]


TUNED_COLUMNS = ("where", "op", "portable us", "default us", "tuned us", "of default", "of portable", "choice")


def _times(portable: tuning.Timing | None, default: tuning.Timing, best: tuning.Timing) -> Row:
    return (f"{portable.seconds * 1e6:.1f}" if portable else "none", f"{default.seconds * 1e6:.1f}", f"{best.seconds * 1e6:.1f}",
            _share(best, default), _share(best, portable))


def _share(best: tuning.Timing, other: tuning.Timing | None) -> str:
    """Nothing where the other took no time that could be measured."""
    return f"{best.seconds / other.seconds:.2f}" if other and other.seconds else ""


def step_sums(found: tuning.Tuning) -> list[Row]:
    """What whole steps take."""
    return [(name, f"{default * 1e3:.3f}", f"{tuned * 1e3:.3f}", f"{tuned / default:.3f}") for name, (default, tuned) in found.steps.items()]


SUM_COLUMNS = ("step", "default ms", "tuned ms", "of default")


def tuned_json(found: tuning.Tuning, gpu: Gpu) -> dict[str, Any]:
    def timing(t: tuning.Timing | None) -> dict[str, Any] | None:
        return {**asdict(t), "choice": str(t.choice)} if t else None
    return {"adapter": str(gpu.info), "date": str(date.today()),
            "steps": {name: {"default_s": default, "tuned_s": tuned} for name, (default, tuned) in found.steps.items()},
            "kernels": [{"signature": r.signature, "kinds": r.kinds, "step": r.step, "uses": r.uses, "timed": r.timed,
                         "default": timing(r.default), "portable": timing(r.portable), "tuned": timing(r.best)} for r in found.ops]}


def write_json(told: Any, path: Path) -> None:
    """To a file, or to standard output for `-`."""
    text = json.dumps(told, indent=1) + "\n"
    if str(path) == "-":
        print(text, end="")
    else:
        path.write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class Profile:
    tables: list[Table]
    numbers: dict[str, Any]
    trace: dict[str, Any]


def profile(path: Path, device: str, tokens: int, context: int, prompt: int, dtype: str | None, cache: str | None, quantize: Quantize,
            show: Progress) -> Profile:
    """Profile decoding at a context and, if it is not 0, a prompt of so many tokens."""
    gpu = TracedGpu(pick(device))
    record, room = record_of(gpu), max(context + profiling.WARM + tokens + 1, prompt)
    model = profiling.open_model(path, gpu, show, room if room > MOST_CONTEXT and not is_package(path) else None, dtype, cache, quantize)
    if room > model.context:
        raise PackageError(f"this takes {room} positions and the model has a context of {model.context}: give smaller numbers")
    steps = profiling.decode(model, context, tokens)
    dispatches = [t for program in ("decode_1", "greedy_1") for t in profiling.program_times(model, program, context + tokens, record)]
    found = profiling.rows(dispatches, record)
    tables: list[Table] = [(f"a decode step at position {context + profiling.WARM} and on: {len(dispatches)} dispatches",
                            profiling.COLUMNS, profiling.table(found)), ("", ("", ""), step_rows(steps, dispatches, gpu))]
    numbers = {"adapter": str(gpu.info), "date": str(date.today()), "decode": {
        "context": context, "step_ms": steps.step * 1e3, "gpu_idle": steps.idle, "cpu_ms": steps.cpu * 1e3,
        "cpu_parts_ms": {k: v * 1e3 for k, v in steps.parts.items()}, "dispatches": found}}
    if prompt:
        seconds, program, times = profiling.prefill(model, prompt, record)
        found = profiling.rows(times, record)
        tables.append((f"{program}, of a prompt of {prompt} tokens: {prompt / seconds:,.0f} tokens/s", profiling.COLUMNS, profiling.table(found)))
        numbers["prefill"] = {"tokens": prompt, "seconds": seconds, "program": program, "dispatches": found}
    model.close()
    gpu.close()
    return Profile(tables, numbers, profiling.chrome_trace(steps.recording, dispatches))


def step_rows(steps: profiling.Decode, dispatches: Sequence[profiling.Timed], gpu: Gpu) -> list[Row]:
    """What there is to say of a decode step as a whole."""
    how = "inside one pass" if timing.INSIDE in gpu.features else "in a pass of its own each, which adds to short ones"
    parts = ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in steps.parts.items())
    return [("step", f"{steps.step * 1e3:.3f} ms, {1 / steps.step:,.1f} tokens/s"),
            ("sum of its dispatches", f"{sum(t.seconds for t in dispatches) * 1e3:.3f} ms, timed {how}"),
            ("GPU idle between steps", f"{steps.idle:.1%}"), ("host work a step", f"{steps.cpu * 1e6:.0f} us: {parts}")]
