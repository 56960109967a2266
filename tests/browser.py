"""Drive the page in headless Chromium with playwright-core: what is needed for that, packages for a software GPU, and a server that misbehaves."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from tilewright.api import plan_for, targets
from tilewright.compiler.assembly import Variant, build_package
from tilewright.compiler.device import Device, shipped_devices
from tilewright.compiler.pipeline import compile_graphs
from tilewright.frontends.checkpoint import TokenizerData, open_checkpoint
from tilewright.frontends.lower import lower
from tilewright.runtime.website import PIECE, Handler, Website
from tilewright.templates import KERNELS
from tint import find_chromium
from tokenizers import Tokenizer, decoders, models

MODULES = (Path(__file__).parent.parent / ".venv" / "node" / "node_modules",      # where make test installs it
           *map(Path, filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep))))
FLAGS = ("--headless=new", "--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--enable-dawn-features=disable_workgroup_init,disable_robustness")        # both cost SwiftShader much time


def missing() -> str:
    """What the tests need and is not there, or nothing."""
    if not find_chromium():
        return "needs Chromium on PATH"
    if not shutil.which("node"):
        return "needs Node on PATH"
    return "" if playwright() else "needs the npm package playwright-core (make test installs it)"


def playwright() -> Path | None:
    return next((folder for folder in MODULES if (folder / "playwright-core").is_dir()), None)


def software(features: frozenset[str] = frozenset()) -> Device:
    """What a software GPU of a browser is like: the guaranteed limits, and slow."""
    slow = next(d for d in shipped_devices() if d.name == "llvmpipe")
    return replace(targets("web-default")[0], features=features, bandwidth=slow.bandwidth, launch=slow.launch, flops=slow.flops, width=slow.width)


def write_package(model: Path, path: Path, context: int, device: Device | None = None, tokenizer: TokenizerData | None = None,
                  dtype: str = "f32") -> Path:
    """Compile a model with few and small programs, for a software GPU takes seconds to compile a large shader."""
    checkpoint, device = open_checkpoint(model), device or software()
    plan = replace(plan_for(checkpoint, device, context, dtype, dtype), prefill=(4,), head=(1,))
    low = lower(checkpoint, plan)
    tokenizer = tokenizer or checkpoint.tokenizer
    assert tokenizer
    build_package([Variant(compile_graphs(low.graphs, device, KERNELS), device, low.model)], low.leaf, tokenizer.settings, tokenizer.json).save(path)
    return path


def write_talker(folder: Path, wide: int = 64) -> Path:
    """A llama of random numbers that knows letters and has a chat template. wide: of its feed-forward layers, which make the file large."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 "
    config = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": wide, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rope_theta": 10000.0,
              "tie_word_embeddings": True, "eos_token_id": 63}
    layer = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
             "mlp.gate_proj": (wide, 32), "mlp.up_proj": (wide, 32), "mlp.down_proj": (32, wide),
             "input_layernorm": (32,), "post_attention_layernorm": (32,)}
    shapes = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in layer.items()}
    random = np.random.default_rng(0)
    safetensors.numpy.save_file({n: random.standard_normal(s, np.float32) for n, s in shapes.items()}, folder / "model.safetensors")
    tokenizer = Tokenizer(models.BPE({**{c: i for i, c in enumerate(letters)}, "</s>": 63}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant "
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Stage(Website):
    """A website that writes down what it was asked for, and can corrupt bytes of the package or be down."""

    def __init__(self, package: Path):
        super().__init__(package, port=0)
        self.RequestHandlerClass = Misbehaving
        self.asked: list[tuple[str, str | None]] = []   # path and range
        self.corrupt: dict[int, int] = {}               # bytes of the package, and the request for it that gets them wrong
        self.down = False
        self.pace = 0.0                                 # seconds between large pieces of a file

    def before_worker(self, script: str) -> None:
        """Run a script in the worker before anything else there."""
        original = Path(Website.__init__.__code__.co_filename).parent / "web" / "worker.js"
        self.files["worker.js"] = (script + original.read_text()).encode()


class Misbehaving(Handler):
    server: Stage

    def reply(self, body: bool) -> None:
        if self.path.startswith("/test-"):
            self.server.down = self.path == "/test-down"
        elif self.server.down:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        else:
            self.server.asked.append((self.path, self.headers.get("Range")))
        super().reply(body)

    def copy(self, file, count: int) -> None:
        turn, end = sum(path.endswith(".wgpu-llama") for path, _ in self.server.asked), file.tell() + count
        wrong = [at for at, when in self.server.corrupt.items() if turn == when] if self.path.endswith(".wgpu-llama") else []
        while (at := file.tell()) < end:
            time.sleep(self.server.pace if end - at > PIECE else 0)
            piece = bytearray(file.read(min(PIECE, end - at)))
            for byte in (byte - at for byte in wrong if at <= byte < at + len(piece)):
                piece[byte] ^= 255
            self.wfile.write(piece)


def drive(scenario: str, url: str, **given: Any) -> dict[str, Any]:
    """Play a scenario of page.mjs; what it saw. Raises AssertionError with what the page said when it failed."""
    job = {"scenario": scenario, "url": url, "browser": find_chromium(), "flags": FLAGS, **given}
    done = subprocess.run(["node", Path(__file__).parent / "page.mjs"], input=json.dumps(job), capture_output=True, text=True, timeout=300,
                          env={**os.environ, "NODE_MODULES": str(playwright())})
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
