"""Run the web player in Node: alone, or over Dawn on a GPU or on SwiftShader, which comes with Chromium."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tilewright

WEB = Path(tilewright.__file__).parent / "runtime" / "web"
SCRIPTS = Path(__file__).parent / "web"
ROOT = Path(__file__).parent.parent
SWIFTSHADER = tuple(Path(folder) / "vk_swiftshader_icd.json" for folder in ("/usr/lib/chromium", "/usr/lib/chromium-browser", "/opt/google/chrome"))
# Both cost SwiftShader much time, and what they are for is held elsewhere: kernels are trusted with their indices natively too.
TOGGLES = "disable_workgroup_init,disable_robustness,allow_unsafe_apis"
HELD_BACK = "allow_unsafe_apis,vulkan_enable_f16_on_nvidia,use_vulkan_memory_model"
PROBE = """import { create, globals } from "webgpu"; Object.assign(globalThis, globals); const gpu = create([]);
console.log(await gpu.requestAdapter() ? "found" : "none");"""


@cache
def modules() -> Path | None:
    """The folder above the node_modules that has the npm package webgpu: `make test` installs it into .venv/node."""
    folders = [ROOT / ".venv" / "node", *(Path(p).parent for p in os.environ.get("NODE_PATH", "").split(os.pathsep) if p)]
    return next((f for f in folders if (f / "node_modules" / "webgpu").exists()), None)


@cache
def missing_node() -> str:
    """Why no JavaScript can be run; empty if it can."""
    return "" if shutil.which("node") else "needs Node 18 or newer on PATH"


@cache
def missing_modules() -> str:
    """Why Tint cannot read a module in Node; empty if it can: on no adapter but Dawn's null one, which has every feature and does nothing."""
    return missing_node() or ("" if modules() else "needs the npm package webgpu in .venv/node or beside a folder of NODE_PATH")


@cache
def missing_dawn() -> str:
    """Why no package can be played in Node; empty if one can."""
    if missing_modules():
        return missing_modules()
    found = node("--input-type=module", "-e", PROBE).stdout
    return "" if "found" in found else "Dawn finds no adapter: Debian's chromium brings SwiftShader"


def on_hardware(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Node on the adapter that Dawn itself prefers, with what it holds back by default."""
    return subprocess.run(["node", *map(str, arguments), "--dawn", HELD_BACK], cwd=modules(), capture_output=True, text=True, timeout=300)


@cache
def missing_matrices() -> str:
    """Why no adapter here multiplies matrices; empty if one does."""
    offered = "" if missing_modules() else on_hardware(WEB / "cli.mjs", "--record").stdout
    return missing_modules() or ("" if '"f16:f32:' in offered else "Dawn's adapter offers no products of f16 matrices")


@dataclass(frozen=True)
class File:
    """A buffer between dispatches."""

    path: Path

    def destroy(self) -> None:
        self.path.unlink()


class HardwareGpu:
    """What `tilewright.testing.run` needs of a GPU, on the adapter that Dawn prefers: a start of Node for every dispatch. folder: for files."""

    def __init__(self, folder: Path):
        self.folder, self.made = folder, 0

    def buffer(self, size: int) -> File:
        self.made += 1
        made = File(self.folder / f"buffer{self.made}")
        made.path.write_bytes(bytes(size))
        return made

    def write(self, buffer: File, offset: int, array: np.ndarray) -> None:
        with buffer.path.open("r+b") as file:
            file.seek(offset)
            file.write(np.ascontiguousarray(array).tobytes())

    def read(self, buffer: File, offset: int, size: int) -> np.ndarray:
        return np.fromfile(buffer.path, np.uint8, size, offset=offset)

    def pipeline(self, wgsl: str, bindings: Sequence[str], label: str) -> dict[str, Any]:
        return {"wgsl": wgsl, "bindings": list(bindings)}

    def bind(self, pipeline: dict[str, Any], ranges: Sequence[tuple[File, int, int]]) -> list[str]:
        return [str(buffer.path) for buffer, _, _ in ranges]

    def replay(self, dispatches: Sequence[tuple[dict[str, Any], list[str], tuple[int, int, int]]]) -> dict[str, Any]:
        (pipeline, files, grid), = dispatches
        return {**pipeline, "files": files, "grid": grid, "toggles": HELD_BACK}

    def submit(self, replays: Sequence[dict[str, Any]]) -> None:
        job, = replays
        path = self.folder / "dispatch.json"
        path.write_text(json.dumps(job))
        ran = subprocess.run(["node", str(SCRIPTS / "dispatch.mjs"), str(path)], cwd=modules(), capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stderr


needs_node = pytest.mark.skipif(bool(missing_node()), reason=missing_node())


def node(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run Node where it finds webgpu, on SwiftShader if that is here."""
    driver = next((str(p) for p in SWIFTSHADER if p.exists()), None)
    environment = {**os.environ, **({"VK_ICD_FILENAMES": driver} if driver else {})}
    return subprocess.run(["node", *map(str, arguments)], cwd=modules(), env=environment, capture_output=True, text=True, timeout=timeout)


def answers(script: str, folder: Path, given: dict[str, Any]) -> Any:
    """What a script of tests/web prints for its jobs, which it gets in a file in `folder`."""
    jobs = folder / "jobs.json"
    jobs.write_text(json.dumps(given))
    ran = node(SCRIPTS / script, jobs)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def pure(folder: Path, jobs: Sequence[dict[str, Any]]) -> list[Any]:
    """Answers of modules that need no GPU."""
    return answers("pure.mjs", folder, {"web": str(WEB), "jobs": jobs})


def refusals(folder: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """What Tint says of each module, any feature enabled; "" where it accepts it."""
    return answers("tint.mjs", folder, {"modules": texts})


def play(folder: Path, package: Path, jobs: Sequence[dict[str, Any]]) -> list[Any]:
    """Play a package: an answer for each job."""
    return answers("play.mjs", folder, {"web": str(WEB), "toggles": TOGGLES, "file": str(package), "jobs": jobs})
