"""llama.cpp on the same shapes: GGUF files of made-up weights, through its llama-bench."""
from __future__ import annotations

import json
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shapes import write_gguf

if TYPE_CHECKING:
    from .parts import Bench

OPTIONS = ("-fa", "1", "-ngl", "999", "-o", "json")     # flash attention, all layers on the GPU


def compare(program: Path, models: Sequence[str], prompts: Sequence[int], contexts: Sequence[int], bench: Bench) -> Iterator[tuple[str, Any]]:
    """By model (8b-q4_0) what the report's own parts measure: tokens a second of prompts from an empty cache, and of decoding at contexts.
    Raises OSError where the program cannot be run."""
    for model in models:
        shape, stored = model.split("-")
        told: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{model}.gguf"
            write_gguf(file, shape, stored)
            for asked in (("-p", _list(prompts), "-n", "0"), ("-p", "0", "-n", str(bench.tokens), "-d", _list(contexts))):
                command = [str(program), "-m", str(file), *asked, "-r", str(bench.streams), *OPTIONS]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                told |= {"failed": _reason(done)} if done.returncode else results(json.loads(done.stdout))
        yield model, told


def results(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of llama-bench's rows: what ran, and the speeds of prompts by their tokens, or of decoding by the tokens before."""
    speeds = {str(r["n_depth"] if r["n_gen"] else r["n_prompt"]):
              {"tok_s": statistics.median(r["samples_ts"]), "least": min(r["samples_ts"]), "most": max(r["samples_ts"])} for r in rows}
    return {"program": f"llama.cpp {rows[0]['build_commit']}, {rows[0]['backends']}", "at" if rows[0]["n_gen"] else "tokens": speeds}


def _list(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"llama-bench was ended by {signal.Signals(-done.returncode).name}"
    return (done.stderr.strip().splitlines() or [f"llama-bench ended with exit code {done.returncode}"])[-1]
