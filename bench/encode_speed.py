"""Quantizing a weight matrix: numpy on the host against the kernel on the GPU, upload included and alone.

usage: python -m tilewright.bench.encode_speed [--device auto] [--rows 4096] [--columns 14336] [--source f32] [--formats q8_0,q4_0] [--json FILE]
"""
from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import ml_dtypes
import numpy as np

from ..compiler.layouts import LAYOUTS, plane_bytes
from ..frontends.weights import requantization
from ..runtime.adapter import pick
from ..runtime.gpu import Gpu
from ..runtime.timing import passes
from ..runtime.upload import Upload

SOURCES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}


def best(work: Callable[[], object], repeat: int) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def kernel_seconds(gpu: Gpu, array: np.ndarray, layout: str) -> float:
    """Of the dispatch alone, on one piece, as if for the whole array."""
    piece = array.reshape(-1)[:requantization.PIECE]
    source, *planes = [gpu.buffer(size) for size in (piece.nbytes, *plane_bytes(piece.shape, "f32", layout))]
    gpu.write(source, 0, piece.view(np.uint8))
    dispatch = requantization.dispatch(gpu, piece, layout, [(b, 0, b.size) for b in (source, *planes)])
    spans = passes(gpu, [[dispatch]] * 5)
    return float(np.median(spans[:, 1] - spans[:, 0])) * array.size / piece.size


def measure(gpu: Gpu, array: np.ndarray, layout: str) -> dict[str, object]:
    """Milliseconds of one format; `same` says whether both sides gave the same bits."""
    buffers = [gpu.buffer(size) for size in plane_bytes(array.shape, "f32", layout)]

    def on_gpu() -> None:
        requantization.encode(upload, array, layout, [(b, 0, b.size) for b in buffers])
        upload.flush()
        gpu.read(buffers[-1], 0, 4)
    with Upload(gpu) as upload:
        on_gpu()        # compiles
        seconds, host = best(on_gpu, 3), best(lambda: LAYOUTS[layout].pack(array), 1)
    same = all(np.array_equal(gpu.read(b), p.reshape(-1).view(np.uint8)) for b, p in zip(buffers, LAYOUTS[layout].pack(array), strict=True))
    alone = kernel_seconds(gpu, array, layout) if "timestamp-query" in gpu.features else float("nan")
    for buffer in buffers:
        buffer.destroy()
    return {"format": layout, "numpy_ms": host * 1e3, "gpu_ms": seconds * 1e3, "kernel_ms": alone * 1e3, "times": host / seconds, "same": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=14336)
    parser.add_argument("--source", choices=SOURCES, default="f32")
    parser.add_argument("--formats", default=",".join(requantization.ENCODERS))
    parser.add_argument("--json")
    args = parser.parse_args()
    gpu = Gpu(pick(args.device))
    array = np.random.default_rng(0).standard_normal((args.rows, args.columns), np.float32).astype(SOURCES[args.source])
    results = []
    for layout in args.formats.split(","):
        results.append(row := measure(gpu, array, layout))
        print(f"{layout:9} numpy {row['numpy_ms']:8.1f} ms  GPU with upload {row['gpu_ms']:8.1f} ms  kernel {row['kernel_ms']:8.2f} ms  "
              f"x{row['times']:.1f}  {'same bits' if row['same'] else 'DIFFERENT'}", flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"device": gpu.info.name, "shape": array.shape, "source": args.source, "results": results}, file, indent=1)
    gpu.close()


if __name__ == "__main__":
    main()
