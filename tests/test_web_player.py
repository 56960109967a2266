"""Packages play in Node, over Dawn, as they play here: logits, greedy continuations, seeded samples, quantized weights, ends of streams."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tilewright
from dawn import TOGGLES, WEB, missing_dawn, node, play
from tilewright import api
from tilewright.compiler.device import shipped_devices
from tilewright.frontends.checkpoint import open_checkpoint

DATA = Path(__file__).parent / "data"
DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
LLAMA = DATA / "models" / "tales-llama"
TALES = {"demo": (DEMO, DATA / "models" / "tales-llama4.npz"), "llama": (LLAMA, LLAMA / "truth.npz")}
PROMPT = "The old man looked at the sea and"
POSITIONS, TOKENS = 100, 12
# What every browser has, as slow as SwiftShader: that chooses small workgroups.
WEB_DEFAULT = replace(next(d for d in shipped_devices() if d.name == "web-default"), bandwidth=4e9, launch=1e-5, flops=2e10, width=16)
SEEDED = [{"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repeat_penalty": 1.1, "seed": 7},
          {"temperature": 0.9, "seed": 2**40 + 1}, {"temperature": 1.5, "top_k": 5, "seed": 1}, {"temperature": 0.6, "top_p": 0.8, "seed": 2},
          {"temperature": 1.2, "min_p": 0.1, "seed": 3}, {"temperature": 0.0, "repeat_penalty": 50.0}]
CAMEL = {"top_k": "topK", "top_p": "topP", "min_p": "minP", "repeat_penalty": "repeatPenalty"}
REFUSED = {"is empty": [], "token id 99999 is out of range": [99999], "token id 1.5 is out of range": [1.5], "has 2049 tokens": [1] * 2049}


@pytest.fixture(autouse=True, scope="module")
def dawn():
    if why := missing_dawn():
        pytest.skip(why)


def compiled(path: Path, to: Path, rows: int = 2, **options: Any) -> Path:
    """A package whose prompts go through in chunks of so many rows and no others, for SwiftShader compiles shaders slowly."""
    plan = api.plan_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "plan_for", lambda *given: replace(plan(*given), prefill=(rows,), head=(1, rows)))
        api.compile_for(open_checkpoint(path), WEB_DEFAULT, **options).save(to)
    return to


def stream(prompt: Any, **options: Any) -> dict[str, Any]:
    return {"do": "stream", "prompt": prompt, "options": {CAMEL.get(name, name): value for name, value in options.items()}}


def answered(folder: Path, package: Path, jobs: dict[Any, dict[str, Any]]) -> dict[Any, Any]:
    """One run of Node, because a load takes longest."""
    return dict(zip(jobs, play(folder, package, list(jobs.values())), strict=True))


def held_to_truth(name: str, folder: Path) -> dict[Any, dict[str, Any]]:
    truth = np.load(TALES[name][1])
    return {"logits": {"do": "logits", "ids": truth["token_ids"][:POSITIONS].tolist(), "out": str(folder / "logits")},
            **{("greedy", n): stream(truth[f"greedy{n}_prompt"].tolist(), maxTokens=TOKENS) for n in range(4)}}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return compiled(DEMO, tmp_path_factory.mktemp("web") / "tales-llama4.wgpu-llama", rows=8)


@pytest.fixture(scope="module")
def demo(package) -> dict[Any, Any]:
    jobs = held_to_truth("demo", package.parent)
    jobs |= {("seeded", i): stream(PROMPT, maxTokens=8, **options) for i, options in enumerate(SEEDED)}
    jobs |= {"stopped": stream(PROMPT, maxTokens=12, stop=" the"), "none": stream(PROMPT, maxTokens=0)}
    jobs |= {"left": stream(PROMPT, maxTokens=9) | {"leave": 2}}
    jobs |= {name: {"do": name, "prompt": PROMPT} for name in ("aborted", "interrupted")}
    jobs |= {("refused", words): {"do": "refusal", "job": stream(prompt)} for words, prompt in REFUSED.items()}
    jobs |= {"full": stream([5] * 2048), "about": {"do": "about"}}
    jobs |= {"profile": {"do": "profile", "prompt": PROMPT, "options": {"maxTokens": TOKENS}}, "loss": {"do": "loss", "prompt": PROMPT}}
    return {**answered(package.parent, package, jobs), "folder": package.parent}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> dict[Any, Any]:
    folder = tmp_path_factory.mktemp("llama")
    return {**answered(folder, compiled(LLAMA, folder / "llama.wgpu-llama", rows=8), held_to_truth("llama", folder)), "folder": folder}


@pytest.fixture(scope="module")
def model(package):
    """The demo's package, played from Python."""
    loaded = tilewright.load(package)
    yield loaded
    loaded.close()


@pytest.mark.parametrize("name", TALES)
def test_logits(name, request):
    truth, folder = np.load(TALES[name][1]), request.getfixturevalue(name)["folder"]
    got, near = np.fromfile(folder / "logits", np.float32).reshape(POSITIONS, -1), truth["positions"] < POSITIONS
    assert near.sum() >= 4
    assert np.abs(got[truth["positions"][near]] - truth["logits"][near]).max() <= 2e-3


@pytest.mark.parametrize("name", TALES)
@pytest.mark.parametrize("prompt", range(4))
def test_greedy(name, prompt, request):
    truth, got = np.load(TALES[name][1]), request.getfixturevalue(name)["greedy", prompt]
    unsure = np.flatnonzero(truth[f"greedy{prompt}_margin"][:TOKENS] <= 1e-2)
    count = unsure[0] if len(unsure) else TOKENS
    assert got["tokens"][:count] == truth[f"greedy{prompt}_tokens"].tolist()[:count]
    assert got["reason"] == "length" and len(got["tokens"]) == TOKENS


@pytest.mark.parametrize("case", range(len(SEEDED)))
def test_seeded_samples_are_those_of_python(case, demo, model):
    got = demo["seeded", case]
    want = list(model.stream(PROMPT, max_tokens=8, **SEEDED[case]))
    assert list(zip(got["tokens"], got["pieces"], strict=True)) == want


def test_streams_end_as_in_python(demo, model):
    stopped = model.stream(PROMPT, max_tokens=12, stop=" the")
    assert "".join(demo["stopped"]["pieces"]) == "".join(piece for _, piece in stopped) and demo["stopped"]["reason"] == stopped.finish_reason
    assert demo["none"] == {"tokens": [], "pieces": [], "reason": "length"}
    assert demo["full"] == {"tokens": [], "pieces": [], "reason": "context"}
    assert demo["left"] == {**demo["left"], "reason": None} and len(demo["left"]["tokens"]) == 2


def test_a_stream_that_is_aborted_or_overtaken_leaves_the_model_usable(demo, model):
    short = model.generate(PROMPT, max_tokens=4)
    assert demo["aborted"] == {"count": 3, "reason": "aborted", "then": short}
    assert demo["interrupted"] == {"text": short, "error": "this stream ended when the model was put to other work: finish one before the next"}


@pytest.mark.parametrize("words", REFUSED)
def test_prompts_that_are_refused(words, demo):
    name, message = demo["refused", words]
    assert name == "PromptError" and words in message and "\n" not in message


def test_a_model_says_what_it_is(demo, package):
    manifest = tilewright.open_package(package).manifest
    about = demo["about"]
    assert about["info"] == manifest["model"] and about["variant"] == manifest["device"]
    assert sum(about["memory"].values()) == sum(manifest["buffers"].values()) and about["adapter"]["description"]


def test_the_gpu_does_not_wait_for_the_host(demo):
    """From its own clock: a step begins as soon as the one before it ends. (Chunks of the prompt come first, with the first step.)"""
    steps = np.array(demo["profile"])[-TOKENS + 1:]
    busy, gaps = (steps[:, 1] - steps[:, 0]).sum(), np.median(steps[1:, 0] - steps[:-1, 1])
    assert gaps < 0.1 * busy / len(steps)


def test_a_lost_device_is_an_error_of_its_own(demo):
    assert demo["loss"] == {"kind": "lost", "name": "DeviceError", "lost": "destroyed"}


@pytest.mark.parametrize("form", ["q4_0", "q8_0"])
def test_quantized(form, tmp_path):
    """Against the meaning of the same package, in numpy; several sequences, at once where there are slots, give what each gives alone."""
    file = compiled(LLAMA, tmp_path / "model.wgpu-llama", quantize=form, context=64, batch=2 if form == "q4_0" else 1)
    reference = tilewright.load(file, device="reference")
    ids, prompts = np.load(TALES["llama"][1])["token_ids"][:40].tolist(), [[5, 6, 7], [9] * 20, [11, 12]]
    logits, many = play(tmp_path, file, [{"do": "logits", "ids": ids, "out": str(tmp_path / "logits")},
                                         {"do": "many", "prompts": prompts, "options": {"maxTokens": 6}}])
    assert logits is None and np.abs(np.fromfile(tmp_path / "logits", np.float32).reshape(40, -1) - reference.logits(ids)).max() <= 2e-3
    assert many["tokens"] == [[token for token, _ in reference.stream(p, max_tokens=6)] for p in prompts]
    assert many["reasons"] == {"0": "length", "1": "length", "2": "length"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return compiled(DATA / "truth" / "llama", tmp_path_factory.mktemp("tiny") / "tiny.wgpu-llama", context=64)


def command(*arguments: object):
    return node(WEB / "cli.mjs", *arguments, "--dawn", TOGGLES)


def test_command(tiny):
    truth = np.load(DATA / "truth" / "llama" / "truth.npz")
    ids = truth["token_ids"][:5].tolist()
    ran = command(tiny, "--logits", ",".join(map(str, ids)))
    assert ran.returncode == 0, ran.stderr
    assert np.abs(np.array(json.loads(ran.stdout)["logits"]) - truth["logits"][:5]).max() <= 1e-3
    ran = command(tiny, "--ids", "1,2,3", "--max-tokens", 8, "--temperature", 0.7, "--seed", 3, "--json", "--profile")
    said = json.loads(ran.stdout)
    want = [t for t, _ in tilewright.load(tiny, device="reference").stream([1, 2, 3], max_tokens=8, temperature=0.7, seed=3)]
    assert said["tokens"] == want and said["finish_reason"] == "length" and said["profile"]["steps"] == 8


@pytest.mark.parametrize("arguments, sentence", [
    (("--ids", "1,x"), "--ids takes numbers"), (("--seed", "x"), "--seed takes a whole number"), (("more",), "usage:"),
    (("--nonsense",), "--nonsense"), ((), "the model has no tokenizer")])
def test_the_command_refuses_in_a_sentence(arguments, sentence, tiny):
    ran = command(tiny, "--prompt", "x", *arguments)
    assert ran.returncode == 1 and sentence in ran.stderr and "    at " not in ran.stderr


def test_the_command_names_a_file_that_is_not_there():
    ran = command("nowhere.wgpu-llama")
    assert ran.returncode == 1 and ran.stderr == "tilewright: nowhere.wgpu-llama cannot be read: there is no such file\n"
