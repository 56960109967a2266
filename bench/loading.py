"""What loading a model takes, in a process of its own: seconds by stage and to the first token, memory of the host and of the GPU; and what
binds it: how long plain reads of its files take, and plain writes of their bytes to the GPU.

usage: python -m tilewright.bench.loading MODEL [--device auto] [--context N]       (a package, a GGUF file, a folder)
       python -m tilewright.bench.loading 8b [--format q4_0]      (writes a GGUF file of that shape first, with made-up weights)
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .shapes import SHAPES, write_gguf

STATUS = Path("/proc/self/status")
READERS, PIECE = 8, 4 << 20     # of plain reads: threads, and bytes at a time
WRITTEN = 512 << 20     # bytes of a buffer
CHILD = """
import sys, time
start = time.perf_counter()
import tilewright
imported = time.perf_counter() - start
from tilewright.bench import loading
if sys.argv[1] == "write":
    loading.write_plainly(*sys.argv[2:4])
else:
    loading.child(imported, *sys.argv[2:])
"""


def measure(file: Path, device: str = "auto", context: int | None = None) -> dict[str, Any]:
    """Seconds (import_s, load_s, first_token_s after that, stages of loading) and bytes (of the file, host_bytes, gpu_weights, gpu_bytes);
    or what failed. context: positions, for what is not compiled."""
    return _apart("load", str(file), device, str(context or ""))


def _apart(*arguments: str) -> dict[str, Any]:
    """What a process of its own prints."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def child(imported: float, file: str, device: str, context: str) -> None:
    """Load it, watch and print."""
    from .. import load
    from ..api import is_package
    peak, done, before = [0], threading.Event(), anonymous()

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], anonymous())
    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    model = load(file, device) if is_package(file) else load(file, device, int(context) if context else None, "f16")
    loaded = time.perf_counter()
    next(iter(model.stream(list(range(1, 17)), max_tokens=2)))
    first = time.perf_counter() - loaded
    done.set()
    sizes = model.package.manifest["buffers"]
    print(json.dumps({
        "bytes": sum(p.stat().st_size for p in files_of(Path(file))),
        "import_s": imported, "load_s": loaded - start, "first_token_s": first, "stages": model.load_seconds,
        "host_bytes": max(0, peak[0] - before), "gpu_weights": sum(v for k, v in sizes.items() if k.startswith("weights")),
        "gpu_bytes": sum(sizes.values())}))


def anonymous() -> int:
    """Bytes of anonymous memory of this process now; 0 where the system does not tell as Linux does."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def files_of(model: Path) -> list[Path]:
    return [p for p in (model.rglob("*") if model.is_dir() else [model]) if p.is_file()]


def forget(model: Path) -> None:
    """Have the system drop what it keeps of a model's files in memory, so that who reads them next waits for the disk; where it can be asked."""
    for path in files_of(model) if hasattr(os, "posix_fadvise") else ():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(model: Path) -> float:
    """Seconds that reading all of a model's files takes, several pieces at once, into memory that is used again and again."""
    own, start = threading.local(), time.perf_counter()

    def read(file: int, at: int) -> None:
        if not hasattr(own, "memory"):
            own.memory = np.ones(PIECE, np.uint8)
        os.preadv(file, [own.memory], at)
    for path in files_of(model):
        with open(path, "rb") as file, ThreadPoolExecutor(READERS) as pool:
            list(pool.map(partial(read, file.fileno()), range(0, path.stat().st_size, PIECE)))
    return time.perf_counter() - start


def write_plainly(model: str, device: str) -> None:
    """Print the seconds that `write_buffer`s of all bytes of a model's files take, from memory that holds them."""
    from ..api import open_gpu
    gpu, octets = open_gpu(device), np.concatenate([np.fromfile(path, np.uint8) for path in files_of(Path(model))])
    assert gpu, "there is no GPU"
    parts = [octets[at:at + WRITTEN] for at in range(0, octets.size, WRITTEN)]
    buffers = [gpu.buffer(part.size) for part in parts]

    def write() -> float:
        start = time.perf_counter()
        for buffer, part in zip(buffers, parts, strict=True):
            gpu.write(buffer, 0, part)
        gpu.read(buffers[-1], 0, 4)
        return time.perf_counter() - start
    print(json.dumps({"seconds": min(write(), write())}))       # the first one touches memory that is new


def compare(model: Path, device: str, context: int | None) -> None:
    """Print what loading takes from the disk and from memory, beside plain reads and writes of the same bytes."""
    size = sum(path.stat().st_size for path in files_of(model))
    forget(model)
    disk, memory, bus = read_plainly(model), read_plainly(model), _apart("write", str(model), device)["seconds"]
    print(f"{size / 1e9:.2f} GB: plain reads {disk:.2f} s from the disk ({size / disk / 1e9:.2f} GB/s) and {memory:.2f} s from memory, "
          f"plain writes to the GPU {bus:.2f} s ({size / bus / 1e9:.2f} GB/s)")
    measure(model, device, context)     # compiles templates, and shaders for the driver's cache
    for where, plain, least in (("disk", "reads from the disk", disk), ("memory", "writes to the GPU", bus)):
        if where == "disk":
            forget(model)
        found = measure(model, device, context)
        if "failed" in found:
            raise SystemExit(found["failed"])
        print(f"loaded from {where} in {found['load_s']:.2f} s, {found['load_s'] / least:.2f} times the plain {plain}, after importing in "
              f"{found['import_s']:.2f} s; first token {found['first_token_s']:.2f} s later\n  "
              + ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["stages"].items())
              + f"\n  on the GPU {found['gpu_weights'] / size:.3f} times the file in weights, {found['gpu_bytes'] / 1e9:.2f} GB in all; "
              f"anonymous host memory {found['host_bytes'] / 2**30:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int)
    parser.add_argument("--format", default="q4_0")
    args = parser.parse_args()
    if args.model not in SHAPES:
        compare(Path(args.model), args.device, args.context)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{args.model}.gguf"
        write_gguf(file, args.model, args.format)
        compare(file, args.device, args.context)


if __name__ == "__main__":
    main()
