"""What loading a model takes, in a process of its own: seconds by stage and to the first token, memory of the host and of the GPU.

usage: python -m tilewright.bench.loading MODEL [--device auto] [--context N]       (a package, a GGUF file, a folder)
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CHILD = """
import sys, time
start = time.perf_counter()
import tilewright
imported = time.perf_counter() - start
from tilewright.bench import loading
loading.child(imported, *sys.argv[1:])
"""


def measure(file: Path, device: str = "auto", context: int | None = None) -> dict[str, Any]:
    """Seconds (import_s, load_s, first_token_s after that, stages of loading) and bytes (of the file, host_bytes, gpu_weights, gpu_bytes);
    or what failed. context: positions, for what is not compiled."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(file), device, str(context or "")], capture_output=True, text=True, check=False)
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
    sizes, path = model.package.manifest["buffers"], Path(file)
    print(json.dumps({
        "bytes": sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()),
        "import_s": imported, "load_s": loaded - start, "first_token_s": first, "stages": model.load_seconds,
        "host_bytes": max(0, peak[0] - before), "gpu_weights": sum(v for k, v in sizes.items() if k.startswith("weights")),
        "gpu_bytes": sum(sizes.values())}))


def anonymous() -> int:
    """Bytes of anonymous memory of this process now; 0 where the system does not tell as Linux does."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int)
    args = parser.parse_args()
    for name, value in measure(args.model, args.device, args.context).items():
        print(f"{name:14} {', '.join(f'{k} {v:.3f}' for k, v in value.items()) if isinstance(value, dict) else value}")


if __name__ == "__main__":
    main()
