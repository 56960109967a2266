"""What loading a q4_0 GGUF file of a large shape takes, and the package that it is compiled to: seconds by stage, to the first token too,
GPU bytes against the file's weights, anonymous host memory.

usage: python -m tilewright.bench.load_memory [SHAPE] [--file FILE]      (writes the file first, made-up weights; Linux)
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ..frontends.checkpoint import PLAIN_DTYPES
from .shapes import synthetic


def write(shape: str, path: Path, stored: str = "q4_0") -> int:
    """A GGUF file of a shape without a tokenizer. Returns the bytes of its tensors."""
    import gguf
    checkpoint = synthetic(shape, stored)
    writer = gguf.GGUFWriter(str(path), checkpoint.config["general.architecture"])
    for key, value in checkpoint.config.items():
        if key != "general.architecture":
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(checkpoint.tensors["token_embd.weight"].shape[0])
    for tensor in checkpoint.tensors.values():
        if tensor.format == stored and stored not in PLAIN_DTYPES:
            writer.add_tensor(tensor.name, tensor.data.reshape(*tensor.shape[:-1], -1), raw_dtype=gguf.GGMLQuantizationType[stored.upper()])
        else:
            writer.add_tensor(tensor.name, tensor.array())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sum(t.data.size for t in checkpoint.tensors.values())


def anonymous() -> int:
    """Bytes of anonymous memory of this process now."""
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))


def load(path: str, package: str = "") -> dict:
    """Load the file and watch; package: where to write what was compiled."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())
    threading.Thread(target=watch, daemon=True).start()
    from .. import load as load_model
    before, start = anonymous(), time.perf_counter()
    model = load_model(path) if path.endswith(".wgpu-llama") else load_model(path, context=8192, dtype="f16")
    seconds = time.perf_counter() - start
    next(iter(model.stream([1], max_tokens=1)))
    first = time.perf_counter() - start
    done.set()
    if package:
        model.package.save(package)     # reads the file once more, so later than the memory was watched
    sizes = model.package.manifest["buffers"]
    stages = {k: round(v, 2) for k, v in model.load_seconds.items()}
    return {"seconds": round(seconds, 2), "first_token": round(first, 2), "stages": stages, "rss_anon_peak": peak[0], "rss_anon_before": before,
            "gpu_weights": sum(v for k, v in sizes.items() if k.startswith("weights")),
            "gpu_caches": sum(v for k, v in sizes.items() if k.endswith((".keys", ".values"))), "gpu_all": sum(sizes.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="8b")
    parser.add_argument("--file")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--package", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load, args.package)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.file or folder) / f"{args.shape}.gguf" if not args.file else Path(args.file)
        package = Path(folder) / f"{args.shape}.wgpu-llama"
        weights = write(args.shape, path)
        for what, file in (("GGUF, first", path), ("GGUF, again", path), ("package, first", package), ("package, again", package)):
            command = [sys.executable, "-m", "tilewright.bench.load_memory", "--load", str(file)]
            command += ["--package", str(package)] if what == "GGUF, again" else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            print(f"{what}: {found['seconds']} s for {weights / 1e9:.2f} GB ({weights / found['seconds'] / 1e9:.2f} GB/s), first token after "
                  f"{found['first_token']} s; {', '.join(f'{k} {v}' for k, v in found['stages'].items())}; on the GPU "
                  f"{found['gpu_weights'] / weights:.3f} x the file's weights, {found['gpu_all'] / 1e9:.2f} GB in all; RssAnon peak "
                  f"{found['rss_anon_peak'] / 2**30:.2f} GiB (before {found['rss_anon_before'] / 2**30:.2f})", flush=True)


if __name__ == "__main__":
    main()
