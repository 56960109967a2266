"""Activations in 8-bit integers: what the passes make of them, and how far the logits of a real model are from exact ones."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright.api import compile_for, plan_for, record_of
from tilewright.compiler.builder import Builder
from tilewright.compiler.device import shipped_devices
from tilewright.compiler.kernel import Site
from tilewright.compiler.passes.tiling import candidates
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
    assert "expert_tiles_q8" in {s["kernel"].split("(")[0] for s in package.manifest["shaders"]}
    want = TRUTH["logits"][:len(at)]
    for how, got in (("decoded", decoded(model, TRUTH["token_ids"][:150])[at]), ("prefilled", model.logits(TRUTH["token_ids"][:150])[at])):
        error = ((got - want) ** 2).sum() / (want**2).sum()
        print(f"{quantize}, {how}: NMSE {error:.2e}")
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


def test_a_mixture_prefills_in_tiles():
    """Llama 4 with two experts a token: no sum over choices is left to the kernels that read rows, in floats or rounded."""
    checkpoint = open_checkpoint(Path(__file__).parent / "data" / "truth" / "llama4-top2-dense-mix")
    for device, quantize in ((H200, "q4_0"), (replace(H200, packed_dot=False), None)):
        low = lower(checkpoint, plan_for(checkpoint, device, 64, "f32", "f32"), quantize)
        stages = [graphs["prefill_64"] for _, graphs, _ in run_stages({"prefill_64": low.graphs["prefill_64"]}, device, KERNELS)]
        assert "expert_sum" in {op.kind for op in stages[0].ops}
        after = [Site(stages[-1], op, device) for op in stages[-1].ops]
        assert not any("expert_sum" in kind for site in after for kind in site.op.kinds)
        assert all(KERNELS["expert_tiles_q8" if quantize else "expert_tiles"].accepts(s) for s in after if s.anchor.kind.startswith("expert"))


@pytest.mark.parametrize("experts, top_k, wide, inner", [(128, 8, 2048, 768), (8, 2, 4096, 14336), (16, 1, 5120, 8192)])
def test_tiles_are_what_prefill_chooses(experts, top_k, wide, inner):
    """For the shapes of Qwen3-MoE, Mixtral and Llama 4 Scout."""
    for columns, rows in ((wide, 2 * inner), (inner, wide)):
        g = Builder()
        w, expert = g.weight("w", (experts, rows, columns), layout="q4_0"), g.state("expert", (512, top_k), "i32")
        x = g.quantize(g.state("x", (512, columns) if columns == wide else (512, top_k, columns)))
        g.expert_matmul_q8(*x, w, expert)
        graph = g.graph(g.ops[-1].outputs[0])
        assert candidates(Site(graph, graph.ops[-1], H200), KERNELS)[0][1].kernel == "expert_tiles_q8"
