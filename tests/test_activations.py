"""Activations in 8-bit integers: what the passes make of them, and how far the logits of a real model are from exact ones."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright.api import compile_for, plan_for, record_of
from tilewright.compiler.device import shipped_devices
from tilewright.compiler.pipeline import run_stages
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.frontends.lower import lower
from tilewright.runtime.generate import Model
from tilewright.runtime.player import GpuPlayer
from tilewright.templates import KERNELS

DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
TRUTH = np.load(Path(__file__).parent / "data" / "models" / "tales-llama4.npz")
H200 = next(d for d in shipped_devices() if d.packed_dot)


def decoded(model: Model, ids: np.ndarray) -> np.ndarray:
    """Logits token by token: what the programs of few rows give."""
    rows = []
    for at in range(len(ids)):
        step = {"token": ids[at:at + 1].astype(np.int32), "position": np.array([at], np.int32), "slot": np.zeros(1, np.int32)}
        model.player.play([("decode_1", step)])
        rows.append(model.player.read("logits", 1)[0])
    return np.stack(rows)


@pytest.mark.parametrize("quantize, bound", [("q8_0", 1.5e-4), ("q4_0", 8e-3)])
def test_logits_stay_near_the_exact_ones(gpu, quantize, bound):
    package = compile_for(open_checkpoint(DEMO), replace(record_of(gpu), packed_dot=True), context=256, quantize=quantize)
    assert any(s["kernel"].startswith("matvec_q8") for s in package.manifest["shaders"])
    model = Model(package, GpuPlayer(package, gpu), None)
    at = TRUTH["positions"][TRUTH["positions"] < 150]
    got, want = decoded(model, TRUTH["token_ids"][:150])[at], TRUTH["logits"][:len(at)]
    error = ((got - want) ** 2).sum() / (want**2).sum()
    print(f"{quantize}: NMSE {error:.2e}")
    assert error <= bound
    model.close()


def test_each_input_is_rounded_once_and_where_it_is_made():
    checkpoint = open_checkpoint(DEMO)
    low = lower(checkpoint, plan_for(checkpoint, H200, 256, "f16", "f16"), "q4_0")
    graph = list(run_stages({"decode_1": low.graphs["decode_1"]}, H200, KERNELS))[-1][1]["decode_1"]
    alone = [op for op in graph.ops if op.kinds == ("quantize",)]
    assert sum("quantize" in op.kinds for op in graph.ops) > 3 * len(alone), "most rounding is the end of what makes the numbers"
    integers = [op.kinds for op in graph.ops if any(k.endswith("_q8") for k in op.kinds)]
    assert integers and not any("rms_norm" in kinds for kinds in integers), "a norm is a factor of the result"
    assert sum(len(op.kinds) > 1 for op in graph.ops) > len(graph.ops) / 2
