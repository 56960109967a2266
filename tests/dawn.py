"""Run the web player in Node: alone, or over Dawn on a GPU or on SwiftShader, which comes with Chromium."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tilewright

WEB = Path(tilewright.__file__).parent / "runtime" / "web"
SCRIPTS = Path(__file__).parent / "web"
ROOT = Path(__file__).parent.parent
SWIFTSHADER = tuple(Path(folder) / "vk_swiftshader_icd.json" for folder in ("/usr/lib/chromium", "/usr/lib/chromium-browser", "/opt/google/chrome"))
# Both cost SwiftShader much time, and what they are for is held elsewhere: kernels are trusted with their indices natively too.
TOGGLES = "disable_workgroup_init,disable_robustness,allow_unsafe_apis"
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
def missing_dawn() -> str:
    """Why no package can be played in Node; empty if one can."""
    if missing_node() or not modules():
        return missing_node() or "needs the npm package webgpu in .venv/node or beside a folder of NODE_PATH"
    found = node("--input-type=module", "-e", PROBE).stdout
    return "" if "found" in found else "Dawn finds no adapter: Debian's chromium brings SwiftShader"


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


def play(folder: Path, package: Path, jobs: Sequence[dict[str, Any]]) -> list[Any]:
    """Play a package: an answer for each job."""
    return answers("play.mjs", folder, {"web": str(WEB), "toggles": TOGGLES, "file": str(package), "jobs": jobs})
