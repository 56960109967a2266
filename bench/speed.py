"""Decode and prefill speed of synthetic models, and where the GPU's time goes.

usage: python -m tilewright.bench.speed SHAPE [--layers N] [--device auto] [--stored q4_0] [--dtype f16] [--contexts 128,8192] [--prefill 512]
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict

import numpy as np

from ..api import compile_for, open_gpu, record_of
from ..compiler.proof import proved
from ..runtime.generate import Model
from ..runtime.player import GpuPlayer
from .shapes import SHAPES, synthetic


def kernel_times(player: GpuPlayer, program: str, repeat: int = 5) -> list[dict]:
    """Per kernel of a program: dispatches, microseconds, bytes of weights read, GB/s, slowest first."""
    entry = player.package.manifest["programs"][program]
    times = player.gpu.profile(player.dispatches(program), repeat)
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for d, seconds in zip(entry["dispatches"], times, strict=True):
        weights = sum(size for buffer, _, size in d["bindings"] if buffer.startswith("weights"))
        found[f"{player.package.manifest['shaders'][d['shader']]['kernel']} #{d['shader']}"].append((seconds, weights))
    rows = [{"kernel": name, "count": len(calls), "us": sum(t for t, _ in calls) * 1e6, "each_us": statistics.median(t for t, _ in calls) * 1e6,
             "weight_mb": sum(w for _, w in calls) / 1e6, "gb_s": sum(w for _, w in calls) / max(sum(t for t, _ in calls), 1e-12) / 1e9}
            for name, calls in found.items()]
    return sorted(rows, key=lambda r: -r["us"])


def decode_speed(model: Model, context: int, tokens: int) -> dict:
    """Tokens a second of the whole stream loop at a context, without the prompt."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, model.info["vocab_size"], context - 1).tolist()
    start = time.perf_counter()
    stream = model.stream(prompt, max_tokens=tokens)
    next(stream)
    first = time.perf_counter()     # the rest comes in frames of some steps: all of it counts, from here to the last
    count = sum(1 for _ in stream)
    return {"context": context, "tok_s": count / (time.perf_counter() - first), "first_token_s": first - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    for name, default in (("layers", 0), ("device", "auto"), ("stored", "q4_0"), ("dtype", "f16"), ("contexts", "128"), ("tokens", 128),
                          ("prefill", ""), ("context", 8400)):
        parser.add_argument(f"--{name}", default=default, type=type(default))
    args = parser.parse_args()
    gpu = open_gpu(args.device)
    assert gpu
    start = time.perf_counter()
    record, checkpoint = record_of(gpu), synthetic(args.shape, args.stored, args.layers)
    package = compile_for(checkpoint, record, context=args.context, dtype=args.dtype)
    compiled = time.perf_counter() - start
    player = GpuPlayer(package, gpu, trusted=proved(package.manifest))
    model = Model(package, player, None)
    loaded = time.perf_counter() - start - compiled
    print(f"{args.shape} {package.manifest['model']['layers']} layers {args.stored} on {gpu.info.name}: compiled in {compiled:.1f} s, "
          f"loaded in {loaded:.1f} s")
    for context in map(int, args.contexts.split(",")):
        print(json.dumps({k: round(v, 3) for k, v in decode_speed(model, context, args.tokens).items()}))
    for row in kernel_times(player, "decode_1")[:14]:
        print(f"{row['us']:9.1f} us {row['count']:4} x {row['each_us']:7.1f}  {row['weight_mb']:9.1f} MB {row['gb_s']:7.0f} GB/s  {row['kernel']}")
    for count in map(int, filter(None, args.prefill.split(","))):
        ids = np.random.default_rng(1).integers(0, model.info["vocab_size"], count)
        list(model.prefill_chunks(ids.astype(np.int32)))
        player.read("hidden", 1)
        start = time.perf_counter()
        list(model.prefill_chunks(ids.astype(np.int32)))
        player.read("hidden", 1)
        print(f"prefill {count}: {count / (time.perf_counter() - start):.0f} tok/s")
    if args.prefill:
        for row in kernel_times(player, f"prefill_{max(package.manifest['model']['prefill'])}")[:12]:
            print(f"{row['us']:9.1f} us {row['count']:4} x {row['each_us']:7.1f}  {row['kernel']}")


if __name__ == "__main__":
    main()
