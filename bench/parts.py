"""What a report measures: each part gives its results piece by piece, so that one that is stopped keeps what it had."""
from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..api import compile_for, open_checkpoint
from ..compiler.device import REFERENCE, Device
from ..compiler.kernel import Site
from ..frontends.checkpoint import Checkpoint
from ..runtime.generate import Model
from ..runtime.player import ReferencePlayer
from ..runtime.terminal import show_table
from ..runtime.tracing import TracedGpu
from ..templates import KERNELS
from . import profiling, tuning
from .llama_cpp import compare
from .loading import measure
from .measuring import SUM_COLUMNS, TUNED_COLUMNS, step_sums, tuned_rows
from .shapes import synthetic, write_gguf

DEMO = Path(__file__).parent.parent / "frontends" / "demo" / "tales-llama4"
EXACT, ROUNDED = 1e-5, 2e-2     # NMSE allowed against numpy: in f32; in f16 with activations that may be rounded to 8 bits

Piece = tuple[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all parts share. tune: seconds of tuning, 0 for none; tokens: of a stream; streams: that a speed is the median of."""

    gpu: TracedGpu
    record: Device          # without tuned choices
    tune: float
    tokens: int
    streams: int = 3


@dataclass(frozen=True)
class Part:
    name: str
    run: Callable[[Bench], Iterator[Piece]]
    asked: bool = False     # only when it is named


def parts(quick: bool, all_layers: bool, llama_bench: Path | None = None) -> list[Part]:
    """Those of large models on a GPU; or the same of a tiny one, which a software adapter plays in seconds. llama_bench: llama.cpp's program."""
    contexts, prompts = ((32, 128), (128,)) if quick else ((128, 8192), (512, 2048, 16384))
    models = ("tiny-q4_0",) if quick else ("8b-q4_0", "8b-q8_0", "8b-f16", "1b-q4_0", "scout12-q4_0")
    other = [Part("llama.cpp", partial(compare, llama_bench, models, prompts, contexts))] if llama_bench else []
    if quick:
        return [Part("correct", partial(correct, "tiny")), Part("decode-tiny-q4_0", partial(decode, "tiny", "q4_0", contexts)),
                Part("prefill-tiny-q4_0", partial(prefill, "tiny", "q4_0", prompts)),
                Part("batch-tiny-q4_0", partial(batch, "tiny", "q4_0", (4,), 16)), Part("load-tiny-q4_0", partial(load, "tiny", "q4_0")), *other]
    return [Part("correct", partial(correct, "1b")),
            *(Part(f"decode8b-{stored}", partial(decode, "8b", stored, contexts)) for stored in ("q4_0", "q8_0", "f16")),
            Part("decode1b-q4_0", partial(decode, "1b", "q4_0", contexts)), Part("decodescout12-q4_0", partial(decode, "scout12", "q4_0", contexts)),
            Part("decodescout-q4_0", partial(decode, "scout", "q4_0", contexts), asked=not all_layers),
            Part("prefill8b-q4_0", partial(prefill, "8b", "q4_0", prompts)),
            Part("batch8b-q4_0", partial(batch, "8b", "q4_0", (8, 32), 128)), Part("load8b-q4_0", partial(load, "8b", "q4_0")), *other]


def correct(shape: str, bench: Bench) -> Iterator[Piece]:
    """A layer of a shape with random weights against numpy; the demo model's tokens against numpy's."""
    ids = np.random.default_rng(2).integers(0, 1000, 8).tolist()
    checkpoint = synthetic(shape, "q4_0", 1)
    wanted = Model(compiled := compile_for(checkpoint, REFERENCE, 64), ReferencePlayer(compiled), None).logits(ids)
    for name, record, dtype, bound in (("f32", replace(bench.record, packed_dot=False), "f32", EXACT), ("f16", bench.record, "f16", ROUNDED)):
        model = profiling.playing(compile_for(checkpoint, record, 64, dtype), bench.gpu)
        got = model.logits(ids)
        model.close()
        error = float(((got - wanted) ** 2).sum() / (wanted**2).sum())
        yield f"layer_{name}", {"shape": shape, "nmse": error, "bound": bound, "passed": error <= bound}
    found = []
    for record in (REFERENCE, bench.record):
        package = compile_for(open_checkpoint(DEMO), record, 256)
        model = Model(package, ReferencePlayer(package), None) if record is REFERENCE else profiling.playing(package, bench.gpu)
        found.append([token for token, _ in model.stream(list(range(5, 21)), max_tokens=32)])
        model.close()
    yield "demo", {"tokens": len(found[0]), "same": sum(a == b for a, b in zip(*found, strict=True)), "passed": found[0] == found[1]}


def models(bench: Bench, checkpoint: Checkpoint, context: int, programs: Callable[[str], bool],
           batch: int = 1) -> Iterator[tuple[str, Device, Model]]:
    """A model as it is compiled without tuning, then with. programs: whose steps are tuned."""
    record = bench.record
    for label in ("untuned", "tuned") if bench.tune else ("untuned",):
        model = profiling.playing(compile_for(checkpoint, record, context, "f16", batch=batch), bench.gpu)
        try:
            yield label, record, model
            if label == "untuned" and bench.tune:
                found = tuning.tune(model, record, KERNELS, most=48 if bench.streams > 1 else 6, seconds=bench.tune, programs=programs)
                show_table("", TUNED_COLUMNS, tuned_rows(found))
                show_table("", SUM_COLUMNS, step_sums(found))
                record = replace(record, tuned=found.choices)
        finally:
            model.close()


def decode(shape: str, stored: str, contexts: tuple[int, ...], bench: Bench) -> Iterator[Piece]:
    """Tokens a second of streams at contexts; what the GPU and the host do meanwhile; the dispatches of a step."""
    checkpoint, room = synthetic(shape, stored), max(contexts) + bench.tokens + 64
    for label, record, model in models(bench, checkpoint, room, lambda name: name.startswith("decode")):
        yield f"{label}.weights", weight_bytes(model)
        for context in contexts:
            stream_speed(model, context, 8)
            speeds = [stream_speed(model, context, bench.tokens) for _ in range(bench.streams)]
            steps = profiling.decode(model, context, min(64, bench.tokens))
            yield f"{label}.at.{context}", {"tok_s": statistics.median(speeds), "least": min(speeds), "most": max(speeds), "gpu_idle": steps.idle,
                                            "cpu_us": steps.cpu * 1e6, "cpu_parts_us": {k: v * 1e6 for k, v in steps.parts.items()}}
            times = [t for program in ("decode_1", "greedy_1") for t in profiling.program_times(model, program, context + bench.tokens, record)]
            yield f"{label}.dispatches.{context}", profiling.rows(times, record)


def stream_speed(model: Model, context: int, tokens: int) -> float:
    """Tokens a second of the whole loop of a stream at a context, without the prompt."""
    prompt = np.random.default_rng(0).integers(0, model.info["vocab_size"], context - 1).tolist()
    stream = model.stream(prompt, max_tokens=tokens)
    next(stream)
    first = time.perf_counter()     # the rest comes in frames of some steps: all of it counts, from here to the last
    return sum(1 for _ in stream) / (time.perf_counter() - first)


def weight_bytes(model: Model) -> int:
    """Bytes of weights that a token reads: all but the embedding, of experts those that it takes."""
    graph = model.package.graph("decode_1")
    sites = [Site(graph, op, REFERENCE) for op in graph.ops]
    return int(sum(profiling.traffic(site, 1) for site in sites if site.anchor.kind.removesuffix("_q8") in ("matmul", "expert_matmul", "expert_sum")))


def prefill(shape: str, stored: str, counts: tuple[int, ...], bench: Bench) -> Iterator[Piece]:
    """Tokens a second of prompts."""
    checkpoint = synthetic(shape, stored)
    for label, record, model in models(bench, checkpoint, max(counts) + 64, lambda name: name.startswith("prefill")):
        for count in counts:
            seconds, program, times = profiling.prefill(model, count, record)
            yield f"{label}.tokens.{count}", {"tok_s": count / seconds, "program": program, "dispatches": profiling.rows(times, record)}


def batch(shape: str, stored: str, sizes: tuple[int, ...], prompt: int, bench: Bench) -> Iterator[Piece]:
    """Tokens a second of many sequences together, while all are under way."""
    checkpoint = synthetic(shape, stored)
    for size in sizes:
        context = prompt + bench.tokens + 64
        for label, _, model in models(bench, checkpoint, context, lambda name, size=size: name == f"decode_{size}", size):    # type: ignore[misc]
            yield f"{label}.batch.{size}", {"tok_s": batch_speed(model, size, prompt, bench.tokens)}


def batch_speed(model: Model, size: int, prompt: int, tokens: int) -> float:
    """In sum, from the last sequence's first token to the first one's last."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, model.info["vocab_size"], prompt).tolist() for _ in range(size)]
    counts, stamps = dict.fromkeys(range(size), 0), list[float]()
    for _ in model.stream_many(prompts, max_tokens=4):
        pass        # the first run of a kernel is slower
    for index, _, _ in model.stream_many(prompts, max_tokens=tokens + 2 * size):
        counts[index] += 1
        if all(counts.values()):
            stamps.append(time.perf_counter())
        if max(counts.values()) >= tokens + size:
            break
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


def load(shape: str, stored: str, bench: Bench) -> Iterator[Piece]:
    """A compiled package, and a GGUF file of the same, from the file to the first token."""
    with tempfile.TemporaryDirectory() as folder:
        package, file = (Path(folder) / f"{shape}.{suffix}" for suffix in ("wgpu-llama", "gguf"))
        compile_for(synthetic(shape, stored), bench.record, 4096, "f16").save(package)
        for name in ("cold", "warm")[-bench.streams:]:
            yield name, measure(package, bench.gpu.info.name)
        write_gguf(file, shape, stored)
        yield "gguf", measure(file, bench.gpu.info.name, 4096)
