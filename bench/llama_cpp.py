"""llama.cpp on the same shapes: GGUF files of made-up weights, through its llama-bench."""
from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .load_memory import write
from .parts import Bench

PROMPTS, DEPTHS = "512,2048", "0,8192"


def compare(program: Path, models: tuple[str, ...], bench: Bench) -> Iterator[tuple[str, Any]]:
    """By model the tokens a second of prompts and of decoding after so many tokens. Raises OSError where the program cannot be run."""
    for model in models:
        shape, stored = model.split("-")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{model}.gguf"
            write(shape, file, stored)
            command = [str(program), "-m", str(file), "-p", PROMPTS, "-n", str(bench.tokens), "-d", DEPTHS, "-fa", "1", "-ngl", "999", "-o", "json"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            yield model, _read(done.stdout) if done.returncode == 0 else {"failed": done.stderr.strip().splitlines()[-1:]}


def _read(text: str) -> dict[str, Any]:
    """llama-bench's rows by what they measured."""
    rows = json.loads(text)
    name = {True: "decode at {n_depth}", False: "prompt of {n_prompt} at {n_depth}"}
    found = {name[bool(r["n_gen"])].format(n_depth=r.get("n_depth", 0), n_prompt=r["n_prompt"]): {"tok_s": r["avg_ts"], "spread": r["stddev_ts"]}
             for r in rows}
    first = rows[0] if rows else {}
    return {**found, "build": str(first.get("build_commit", "unknown")), "backend": str(first.get("backends", "unknown"))}
