"""Every model against what transformers computes: logits, greedy continuations, half precision, packages, small bindings."""
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright.api import compile_for, plan_for, record_of
from tilewright.compiler.assembly import Variant, build_package
from tilewright.compiler.pipeline import compile_graphs
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.frontends.lower import lower
from tilewright.runtime.generate import Model
from tilewright.runtime.player import GpuPlayer
from tilewright.templates import KERNELS

DATA = Path(__file__).parent / "data"
DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
TALES = {"tales-llama4": (DEMO, DATA / "models" / "tales-llama4.npz"),
         "tales-llama": (DATA / "models" / "tales-llama", DATA / "models" / "tales-llama" / "truth.npz")}
TRUTHS = sorted(p.name for p in (DATA / "truth").iterdir())


@pytest.fixture(scope="module", params=TALES)
def tales(request, gpu):
    """A loaded tales model and its truth."""
    path, truth = TALES[request.param]
    model = tilewright.load(path)
    yield model, np.load(truth)
    model.close()


def test_tales_logits(tales):
    model, truth = tales
    got = model.logits(truth["token_ids"])
    assert np.abs(got[truth["positions"]] - truth["logits"]).max() <= 2e-3
    clear = np.sort(got, -1)[:, -1] - np.sort(got, -1)[:, -2] > 1e-2
    np.testing.assert_array_equal(got.argmax(-1)[clear], truth["argmax"][clear])


def agree(tokens, truth, n) -> None:
    """Equal to the truth up to the first step whose margin a rounding error may turn."""
    unsure = np.flatnonzero(truth[f"greedy{n}_margin"] <= 1e-2)
    count = unsure[0] if len(unsure) else len(tokens)
    assert tokens[:count] == truth[f"greedy{n}_tokens"].tolist()[:count]


@pytest.mark.parametrize("prompt", range(4))
def test_tales_greedy(tales, prompt):
    model, truth = tales
    stream = model.stream(truth[f"greedy{prompt}_prompt"], max_tokens=64)
    agree([token for token, _ in stream], truth, prompt)
    assert stream.finish_reason == "length"


@pytest.mark.parametrize("name", TRUTHS)
def test_truth(name, gpu):
    truth = np.load(DATA / "truth" / name / "truth.npz")
    model = tilewright.load(DATA / "truth" / name)
    try:
        assert np.abs(model.logits(truth["token_ids"]) - truth["logits"]).max() <= 1e-3
    finally:
        model.close()


@pytest.mark.parametrize("name", TRUTHS)
def test_truth_in_numpy(name):
    truth = np.load(DATA / "truth" / name / "truth.npz")
    assert np.abs(tilewright.load(DATA / "truth" / name, device="reference").logits(truth["token_ids"]) - truth["logits"]).max() <= 1e-3


@pytest.mark.parametrize("name", TRUTHS)
def test_truth_with_exact_frequencies(name, tmp_path):
    """What transformers computes when it loads the folder in float32: every third row. (truth.npz is of a model that was cast to bfloat16
    and back as a whole, which rounds the frequencies of RoPE; `inv_freq_dtype` in our config.json says so.)"""
    shutil.copytree(DATA / "truth" / name, tmp_path / name)
    config = json.loads((tmp_path / name / "config.json").read_text())
    del config["rope_parameters"]["inv_freq_dtype"]
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    got = tilewright.load(tmp_path / name, device="reference").logits(np.load(DATA / "truth" / name / "truth.npz")["token_ids"])
    assert np.abs(got[::3] - np.load(DATA / "truth" / name / "exact.npz")["logits"]).max() <= 1e-4


@pytest.mark.parametrize("name", ["llama", "llama4"])
def test_prefill_then_decode_gives_the_logits_of_one_shot(name, gpu):
    """Every cut of the sequence in chunks and single tokens, across chunk borders and ring wraps."""
    truth = np.load(DATA / "truth" / name / "truth.npz")
    ids = truth["token_ids"].astype(np.int32)
    model = tilewright.load(DATA / "truth" / name)
    whole = model.logits(ids)
    for prompt in (1, 17, 40):
        for _, size in model.prefill_chunks(ids[:prompt]):
            pass
        model.player.play([("head_1", {"row": np.array([size - 1], np.int32)})])
        got = [model.player.read("logits", 1)[0]]
        for at in range(prompt, len(ids)):
            model.player.play([("decode_1", {"token": ids[at:at + 1], "position": np.array([at], np.int32), "slot": np.zeros(1, np.int32)})])
            got.append(model.player.read("logits", 1)[0])
        np.testing.assert_allclose(np.stack(got), whole[prompt - 1:], atol=1e-4)
    model.close()


def test_half_precision(gpu):
    """f16 storage, at all positions: stricter than leaving out those where a rounding chose another expert."""
    if "shader-f16" not in gpu.features:
        pytest.skip(f"{gpu.info.name} has no shader-f16")
    path, truth = TALES["tales-llama4"][0], np.load(TALES["tales-llama4"][1])
    model = tilewright.load(path, dtype="f16")
    got, want = model.logits(truth["token_ids"])[truth["positions"]], truth["logits"]
    assert ((got - want) ** 2).sum() / (want**2).sum() <= 1e-5
    best = np.sort(want, -1)
    clear = best[:, -1] - best[:, -2] > 0.05
    np.testing.assert_array_equal(got.argmax(-1)[clear], want.argmax(-1)[clear])
    model.close()


def test_a_small_binding_limit_changes_nothing(gpu):
    """Weights and caches in pieces on a real device."""
    name = "llama4"
    device = record_of(gpu)
    device = replace(device, limits={**device.limits, "max_storage_buffer_binding_size": 16384})
    checkpoint = open_checkpoint(DATA / "truth" / name)
    low = lower(checkpoint, replace(plan_for(checkpoint, device, 160, "f32", "f32"), prefill=(8, 16)))
    package = build_package([Variant(compile_graphs(low.graphs, device, KERNELS), device, low.model)], low.leaf)
    truth = np.load(DATA / "truth" / name / "truth.npz")
    model = Model(package, GpuPlayer(package, gpu), None)
    assert any(".rows" in w for w in package.manifest["weights"]) and any(s.endswith(".keys.1") for s in package.manifest["states"])
    assert np.abs(model.logits(truth["token_ids"]) - truth["logits"]).max() <= 1e-3
    model.close()


SCRIPT = """
import sys, time, numpy as np, tilewright
from tilewright import open_package
times = []
for _ in range(5):
    start = time.perf_counter()
    open_package(sys.argv[1])
    times.append(time.perf_counter() - start)
print(min(times))
np.save(sys.argv[2], tilewright.load(sys.argv[1]).logits(np.load(sys.argv[3])["token_ids"][:300]))
"""


def test_a_saved_package_plays_the_same_in_another_process(gpu, tmp_path):
    path, truth = TALES["tales-llama4"][0], TALES["tales-llama4"][1]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        package = compile_for(open_checkpoint(path), record_of(gpu))
        package.blob("weights.0")
        times.append(time.perf_counter() - start)
    package.save(tmp_path / "tales.wgpu-llama")
    model = tilewright.load(path)
    want = model.logits(np.load(truth)["token_ids"][:300])
    model.close()
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "tales.wgpu-llama", tmp_path / "logits.npy", truth],
                          capture_output=True, text=True, check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), want)
    assert min(times) >= 5 * float(done.stdout), f"compiling took {min(times):.3f} s, loading {done.stdout.strip()} s"


def test_a_package_plays_in_numpy_and_an_uncompiled_one_on_a_gpu(gpu, tmp_path):
    path = DATA / "truth" / "llama"
    truth = np.load(path / "truth.npz")
    tilewright.compile(path).save(tmp_path / "compiled.wgpu-llama")
    tilewright.compile(path, device="reference").save(tmp_path / "plain.wgpu-llama")
    for file, device in (("compiled", "reference"), ("plain", "auto"), ("plain", "reference")):
        model = tilewright.load(tmp_path / f"{file}.wgpu-llama", device=device)
        assert np.abs(model.logits(truth["token_ids"]) - truth["logits"]).max() <= 1e-3
        model.close()


def test_manifest_carries_what_players_need(gpu):
    package = tilewright.compile(DEMO)
    manifest = json.loads(json.dumps(package.manifest))
    assert manifest["model"]["vocab_size"] == 2048 and manifest["tokenizer"]["bos"] == 0
    assert all("enable" not in s["wgsl"] for s in manifest["shaders"])
    window = manifest["states"]["layers.0.keys"]["shape"][2]
    assert window == 256 + max(manifest["model"]["prefill"]), "a chunked layer keeps its window and the largest prefill chunk"
    assert manifest["states"]["layers.3.keys"]["shape"][2] == 2048
    assert manifest["memory"]["temporaries"] < manifest["memory"]["unshared"]
