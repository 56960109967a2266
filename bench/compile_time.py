"""How long the passes and code generation take for large models, without weights; distinct shaders and dispatches a layer.

usage: python -m tilewright.bench.compile_time        (writes bench/results/compile_time.json)
"""
from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

from ..api import plan_for
from ..compiler.device import shipped_devices
from ..compiler.pipeline import compile_graphs
from ..frontends.lower import lower
from ..templates import KERNELS
from .shapes import SHAPES, synthetic


def measure(shape: str, device_name: str, repeat: int = 3) -> dict:
    """Medians over a few runs; dispatches a layer are those of one-token decoding."""
    device = next(d for d in shipped_devices() if d.name == device_name)
    checkpoint = synthetic(shape, "q4_0", empty=True)
    runs = []
    for _ in range(repeat):
        start = time.perf_counter()
        lowered = lower(checkpoint, plan_for(checkpoint, device, None, "f16", "f16"))
        frontend = time.perf_counter() - start
        compiled = compile_graphs(lowered.graphs, device, KERNELS)
        runs.append((time.perf_counter() - start, {"lower": frontend, **compiled.seconds}))
    total, seconds = sorted(runs, key=lambda r: r[0])[len(runs) // 2]
    decode = compiled.calls["decode_1"]
    shaders = {name: len({number for number, _ in calls}) for name, calls in compiled.calls.items()}
    return {"shape": shape, "device": device_name, "seconds": round(total, 3), "median": round(statistics.median(r[0] for r in runs), 3),
            "stages": {k: round(v, 3) for k, v in seconds.items()}, "programs": len(compiled.graphs), "shaders": shaders,
            "dispatches_a_layer": round(len(decode) / lowered.model["layers"], 2), "decode_dispatches": len(decode)}


def main() -> None:
    found = [measure(shape, device) for shape in SHAPES if shape != "tiny" for device in ("NVIDIA H200", "llvmpipe")]
    for row in found:
        print(f"{row['shape']:6} {row['device']:12} {row['seconds']:6.2f} s  {row['programs']} programs, at most "
              f"{max(row['shaders'].values())} shaders in one, {row['dispatches_a_layer']} dispatches a layer of decode; {row['stages']}")
    path = Path(__file__).parent / "results" / "compile_time.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
