"""Products of small matrices: which ops come to them, on which devices, that their kernels mean what the ops mean, and that Tint takes them.

No software adapter has such products, so the kernels run with these written out (matrices.py), and Tint reads them in Dawn's adapter that
does nothing. On an adapter that has them, in Node over Dawn, the same package plays with them and without."""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tilewright
from cases import Case, cases
from dawn import WEB, HardwareGpu, missing_matrices, missing_modules, on_hardware, refusals
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matrices import F16, with_matrices, writing_out
from test_tint import memory
from tilewright import testing
from tilewright.api import compile_for, targets
from tilewright.compiler.builder import Builder
from tilewright.compiler.codegen import Shader, module_text, render
from tilewright.compiler.device import MATRICES, Device, Matrices, read_device, shipped_devices, write_device
from tilewright.compiler.ir import Choice, Graph
from tilewright.compiler.kernel import Site
from tilewright.compiler.passes.tiling import exceeds
from tilewright.compiler.pipeline import compile_graphs
from tilewright.compiler.proof import unproved
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.runtime.requirements import lacks
from tilewright.templates import KERNELS

DEVICES = {d.name: d for d in shipped_devices()}
DAWN = DEVICES["NVIDIA H200 over Dawn"]
DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
LLAMA = Path(__file__).parent / "data" / "models" / "tales-llama"
MATRIX_CASES = [c for c in cases() if c.kernel.endswith("_matrix")]
few = settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def light(schedule) -> int:
    """How long a software adapter takes to compile a schedule's shader: it grows with what a subgroup does."""
    return schedule["teams"] * schedule["block"] if "teams" in schedule else schedule["sub_rows"] * schedule["sub_cols"] * schedule["tile_k"]


def check(gpu, device: Device, graph: Graph, kernel: str, feeds=None, least: int = 0, shape: Matrices = F16) -> None:
    """The kernel's schedule that is quickest to compile, of those of at least `least` rows a subgroup, against numpy."""
    graph, kernel, device = testing.fuse_all(graph), KERNELS[kernel], with_matrices(device, shape)
    chosen = min((s for s in testing.schedules(graph, kernel, device) if s.get("sub_rows", least) >= least), key=light)

    class Light(type(kernel)):
        source = kernel.source

        def schedules(self, site):
            yield chosen
    with writing_out(shape):
        assert testing.check(gpu, graph, Light(), device, feeds) == 1


@pytest.mark.parametrize("case", MATRIX_CASES, ids=lambda case: f"{case.kernel}: {case.label}")
def test_every_case_against_numpy(gpu, device, case: Case):
    check(gpu, device, case.graph, case.kernel, case.feeds)


def test_several_matrices_a_subgroup(gpu, device):
    case = MATRIX_CASES[0]
    check(gpu, device, case.graph, case.kernel, case.feeds, least=32)


@pytest.mark.parametrize("kernel", ["matmul_matrix", "attention_matrix"])
def test_matrices_of_other_shapes(gpu, device, kernel):
    """As other vendors have them: not square."""
    case = next(c for c in MATRIX_CASES if c.kernel == kernel)
    check(gpu, device, case.graph, case.kernel, case.feeds, shape=Matrices("f16", "f32", 8, 16, 16))


@few
@given(st.integers(2, 150), st.integers(1, 40), st.integers(1, 4), st.sampled_from(("q4_0", "q8_0", "q5_1", "i4z_g64", "f16", "bf16")),
       st.sampled_from(("", "bias", "residual", "pairs")))
def test_matmul_matrix(gpu, device, rows, fours, blocks, layout, after):
    b = Builder()
    y = b.matmul(b.state("x", (rows, 64 * blocks), "f16"), b.weight("w", (4 * fours, 64 * blocks), layout=layout))
    if after == "pairs":
        gate, up = b.unzip(y)
        y = b.mul(b.silu(gate), up)
    elif after:
        y = b.add(y, b.weight("bias", (4 * fours,)) if after == "bias" else b.state("residual", (rows, 4 * fours), "f16"))
    check(gpu, device, b.graph(y), "matmul_matrix")


@pytest.mark.parametrize("case", MATRIX_CASES, ids=lambda case: f"{case.kernel}: {case.label}")
def test_every_case_on_an_adapter_that_has_them(case: Case, tmp_path):
    if why := missing_matrices():
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(testing, "module_text", lambda shader, dialect: module_text(shader, "tint"))
        assert testing.check(HardwareGpu(tmp_path), case.graph, KERNELS[case.kernel], DAWN, case.feeds, limit=3)


@pytest.mark.parametrize("path, quantize", [(LLAMA, "q4_0"), (LLAMA, None), (DEMO, "q8_0")], ids=["q4_0", "float weights", "experts"])
def test_a_model_on_an_adapter_that_has_them(path, quantize, tmp_path):
    """In Node over Dawn, compiled by what the adapter says of itself, against the meaning of the same package in numpy."""
    if why := missing_matrices():
        pytest.skip(why)
    record, file = tmp_path / "device.toml", tmp_path / "model.wgpu-llama"
    record.write_text(on_hardware(WEB / "cli.mjs", "--record").stdout)
    package = compile_for(open_checkpoint(path), replace(read_device(record), packed_dot=True), context=256, dtype="f16", quantize=quantize)
    kernels = {s["kernel"].split("(")[0] for s in package.manifest["shaders"]}
    assert {"matmul_matrix", "attention_matrix"} <= kernels and ("expert_tiles_matrix" in kernels) == (path == DEMO)
    package.save(file)
    ids = np.random.default_rng(0).integers(0, package.manifest["model"]["vocab_size"], 200)
    want = tilewright.load(file, device="reference").logits(ids)
    got = np.array(json.loads(on_hardware(WEB / "cli.mjs", file, "--logits", ",".join(map(str, ids))).stdout)["logits"])
    error = ((got - want) ** 2).sum() / (want**2).sum()
    print(f"NMSE {error:.1e}")
    assert error <= 1e-4


def prefilled(device: Device, *, rows: int = 512, dtype: str = "f16", layout: str = "q4_0", kernels=KERNELS) -> Graph:
    """A projection, tiled for the device."""
    b = Builder()
    graph = b.graph(b.matmul(b.rms_norm(b.state("x", (rows, 256), dtype), eps=1e-5), b.weight("w", (512, 256), layout=layout)))
    return compile_graphs({"p": graph}, device, kernels).graphs["p"]


@pytest.mark.parametrize("layout", ["q4_0", "q8_0", "f16"])
def test_prompts_take_the_matrices_and_tokens_packed_products(layout):
    assert [str(op.choice).split("(")[0] for op in prefilled(DAWN, layout=layout).ops] == ["rms_norm", "matmul_matrix"]
    few_rows = [op.choice.kernel for op in prefilled(DAWN, rows=32, layout=layout).ops if op.choice]
    assert "matmul_matrix" not in few_rows or layout == "f16"
    assert ("quantize" in few_rows) == (layout != "f16")


@pytest.mark.parametrize("device, dtype", [
    (DEVICES["NVIDIA H200"], "f16"), (DAWN, "f32"), (DAWN.without("subgroups"), "f16"), (DAWN.without(MATRICES), "f16"),
    (replace(DAWN, matrices=(Matrices("i8", "i32", 16, 16, 32), Matrices("f16", "f16", 16, 16, 16))), "f16")],
    ids=["no feature", "numbers that f16 does not hold", "no subgroups", "feature taken away", "other products only"])
def test_others_do_without(device, dtype):
    graph = prefilled(device, dtype=dtype)
    assert [op.choice.kernel for op in graph.ops if op.choice][-1] == "matmul_q8"


def test_a_choice_that_the_device_cannot_run_is_refused():
    graph = prefilled(DAWN)
    product = next(op for op in graph.ops if op.choice and op.choice.kernel == "matmul_matrix")
    kernel, schedule = KERNELS["matmul_matrix"], dict(product.choice.schedule)
    lacking = replace(DAWN, features=DAWN.features - {MATRICES})
    assert exceeds(Site(graph, product, lacking), kernel, schedule) == f"needs {MATRICES}"
    assert not kernel.accepts(Site(graph, product, DAWN.without(MATRICES)))
    tuned = replace(lacking.without(MATRICES), tuned={Site(graph, product, DAWN).signature: product.choice})
    assert all(op.choice.kernel != "matmul_matrix" for op in prefilled(tuned).ops if op.choice)


def test_packages_ask_for_what_they_use_and_hold_both_ways(gpu):
    package = compile_for(open_checkpoint(LLAMA), [DAWN, DEVICES["NVIDIA H200"]], context=128, dtype="f16", quantize="q4_0")
    first, second = (v["device"] for v in package.variants)
    assert first["name"] == DAWN.name and first["matrices"] == ["f16:f32:16x16x16"]
    assert MATRICES in first["features"] and "subgroup_id" in first["language"]
    assert second["matrices"] == [] and MATRICES not in second["features"]
    assert f"the feature {MATRICES}" in lacks(first, gpu)
    for variant in package.variants:
        kernels = [s["kernel"].split("(")[0] for s in variant["shaders"]]
        used = {program: {kernels[d["shader"]] for d in p["dispatches"]} for program, p in variant["programs"].items()}
        assert [p for p in used if "matmul_matrix" in used[p]] == (["prefill_64", "prefill_128"] if variant["device"] is first else [])
    assert "graph" not in package.shared and len(package.shared["weights"]) == len(compile_for(
        open_checkpoint(LLAMA), DAWN, context=128, dtype="f16", quantize="q4_0").shared["weights"])


def test_one_package_for_browsers_with_and_without():
    package = compile_for(open_checkpoint(LLAMA), targets("web-matrices,web"), context=128, dtype="f16", quantize="q4_0")
    assert [v["device"]["matrices"] for v in package.variants] == [["f16:f32:16x16x16"], [], []]
    assert package.variants[0]["device"]["limits"]["max_compute_workgroup_storage_size"] <= 32768


def test_asked_for_integers_there_are_no_matrices():
    assert targets("web-matrices", "q8")[0].matrices == () and targets("web-matrices", "f32")[0].matrices


def test_a_record_says_which_products_there_are(tmp_path):
    path = tmp_path / "device.toml"
    path.write_text(write_device(DAWN))
    assert read_device(path) == DAWN
    path.write_text('name = "x"\nmatrices = ["16x16"]')
    with pytest.raises(ValueError, match="'16x16' is no product of matrices; write it as f16:f32:16x16x16"):
        read_device(path)


def test_nothing_is_proved_of_them():
    """The proof is for players that leave out checks, which have no matrices; it must refuse and not fail."""
    graph = prefilled(DAWN)
    op = graph.ops[-1]
    shader = render(Site(graph, op, DAWN), KERNELS[op.choice.kernel], op.choice)
    assert unproved(shader.wgsl, (4, 4, 1), [1 << 24] * len(shader.bindings))


def shaders() -> Iterator[tuple[str, Shader]]:
    """Of all cases and schedules on the devices that have matrices."""
    for case in MATRIX_CASES:
        kernel = KERNELS[case.kernel]
        for device in (d for d in shipped_devices() if d.matrices):
            for schedule in testing.schedules(case.graph, kernel, device):
                choice = Choice(kernel.name, tuple(schedule.items()))
                yield f"{choice} of {case.label}", render(Site(case.graph, replace(case.graph.ops[0], choice=choice), device), kernel, choice)


def test_matrices_begin_on_16_bytes():
    """Vulkan wants it, and drivers lay variables one behind another: a smaller one before would move what matrices are loaded from."""
    for name, shader in shaders():
        assert memory(shader.wgsl, whole=1) == memory(shader.wgsl, whole=16) == shader.workgroup_bytes, name


@pytest.mark.skipif(bool(missing_modules()), reason=missing_modules())
def test_tint_accepts_every_schedule(tmp_path):
    modules = {name: module_text(shader, "tint") for name, shader in shaders()}
    assert len(modules) > 8
    refused = {name: error for name, error in refusals(tmp_path, modules).items() if error}
    assert not refused, "\n".join(f"{name}: {error[:300]}" for name, error in refused.items())
    broken = {"broken": next(iter(modules.values())).replace("col_major", "row_major", 1).replace("ws[", "xs[[", 1)}
    assert refusals(tmp_path, broken)["broken"]
