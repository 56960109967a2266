"""Packages play in Node, over Dawn, as they play here: logits, greedy continuations, seeded samples, quantized weights, ends of streams."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tilewright
from dawn import ROOT, TOGGLES, WEB, missing_dawn, node, play
from tilewright import api
from tilewright.compiler.device import read_device, shipped_devices
from tilewright.frontends.checkpoint import open_checkpoint

DATA = Path(__file__).parent / "data"
DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
LLAMA = DATA / "models" / "tales-llama"
TALES = {"demo": (DEMO, DATA / "models" / "tales-llama4.npz"), "llama": (LLAMA, LLAMA / "truth.npz")}
PROMPT = "The old man looked at the sea and"
POSITIONS, TOKENS = 60, 12
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


def test_llama(tmp_path):
    answers = answered(tmp_path, compiled(LLAMA, tmp_path / "llama.wgpu-llama", rows=8), held_to_truth("llama", tmp_path))
    check_logits("llama", tmp_path)
    check_greedy("llama", answers)


def test_demo(tmp_path):
    """All of it in one run, for a load takes longest."""
    package = compiled(DEMO, tmp_path / "tales-llama4.wgpu-llama", rows=8)
    jobs = held_to_truth("demo", tmp_path)
    jobs |= {("seeded", i): stream(PROMPT, maxTokens=8, **options) for i, options in enumerate(SEEDED)}
    jobs |= {"stopped": stream(PROMPT, maxTokens=12, stop=" the"), "none": stream(PROMPT, maxTokens=0), "full": stream([5] * 2048)}
    jobs |= {"left": stream(PROMPT, maxTokens=9) | {"leave": 2}}
    jobs |= {name: {"do": name, "prompt": PROMPT} for name in ("aborted", "interrupted")}
    many = ("seeded", 0), ("seeded", 5), "stopped", "left", "aborted", "interrupted"
    jobs |= {("fast", name): {"do": "fast", "job": jobs[name]} for name in many}
    jobs["fast", "long"] = {"do": "fast", "job": stream(PROMPT, maxTokens=40)}
    jobs |= {("refused", words): {"do": "refusal", "job": stream(prompt)} for words, prompt in REFUSED.items()} | {"about": {"do": "about"}}
    jobs |= {"profile": {"do": "profile", "prompt": PROMPT, "options": {"maxTokens": TOKENS}}, "loss": {"do": "loss", "prompt": PROMPT}}
    answers = answered(tmp_path, package, jobs)
    check_logits("demo", tmp_path)
    check_greedy("demo", answers)
    model = tilewright.load(package)
    try:
        check_seeded_samples(answers, model)
        check_ends(answers, model)
        check_frames_of_many_steps(answers, model)
    finally:
        model.close()
    check_refusals(answers)
    check_what_it_says_of_itself(answers, tilewright.open_package(package).manifest)
    check_that_the_gpu_does_not_wait(answers)
    assert answers["loss"] == {"kind": "lost", "name": "DeviceError", "lost": "destroyed"}


def check_logits(name, folder):
    truth = np.load(TALES[name][1])
    got, near = np.fromfile(folder / "logits", np.float32).reshape(POSITIONS, -1), truth["positions"] < POSITIONS
    assert near.sum() >= 3
    assert np.abs(got[truth["positions"][near]] - truth["logits"][near]).max() <= 2e-3


def check_greedy(name, answers):
    """Equal to the truth up to the first step whose margin a rounding error may turn."""
    truth = np.load(TALES[name][1])
    for prompt in range(4):
        got, unsure = answers["greedy", prompt], np.flatnonzero(truth[f"greedy{prompt}_margin"][:TOKENS] <= 1e-2)
        count = unsure[0] if len(unsure) else TOKENS
        assert got["tokens"][:count] == truth[f"greedy{prompt}_tokens"].tolist()[:count]
        assert got["reason"] == "length" and len(got["tokens"]) == TOKENS


def check_seeded_samples(answers, model):
    """The tokens and pieces that the same package gives in Python."""
    for i, options in enumerate(SEEDED):
        got = answers["seeded", i]
        assert list(zip(got["tokens"], got["pieces"], strict=True)) == list(model.stream(PROMPT, max_tokens=8, **options))


def check_ends(answers, model):
    """Streams that stop, find no room, are left, aborted or overtaken; the model can be used after all of them."""
    stopped = model.stream(PROMPT, max_tokens=12, stop=" the")
    assert "".join(answers["stopped"]["pieces"]) == "".join(piece for _, piece in stopped) and answers["stopped"]["reason"] == stopped.finish_reason
    assert answers["none"] == {"tokens": [], "pieces": [], "reason": "length"}
    assert answers["full"] == {"tokens": [], "pieces": [], "reason": "context"}
    assert answers["left"]["reason"] is None and len(answers["left"]["tokens"]) == 2
    short = model.generate(PROMPT, max_tokens=4)
    assert answers["aborted"] == {"count": 3, "reason": "aborted", "then": short}
    assert answers["interrupted"] == {"text": short, "error": "this stream ended when the model was put to other work: finish one before the next"}


def check_frames_of_many_steps(answers, model):
    """What a frame's steps and their ends give does not depend on how many steps it has."""
    for name in [key[1] for key in answers if key[0] == "fast" and key[1] != "long"]:
        assert answers["fast", name] == answers[name], name
    assert answers["fast", "long"]["tokens"] == [token for token, _ in model.stream(PROMPT, max_tokens=40)]


def check_refusals(answers):
    for words in REFUSED:
        name, message = answers["refused", words]
        assert name == "PromptError" and words in message and "\n" not in message


def check_what_it_says_of_itself(answers, manifest):
    about = answers["about"]
    assert about["info"] == manifest["model"] and about["variant"] == manifest["device"]
    assert about["adapter"]["description"]


def check_that_the_gpu_does_not_wait(answers):
    """From its own clock: a step begins as soon as the one before it ends. (Chunks of the prompt come first, with the first step.)"""
    steps = np.array(answers["profile"])[-TOKENS + 1:]
    busy, gaps = (steps[:, 1] - steps[:, 0]).sum(), np.median(steps[1:, 0] - steps[:-1, 1])
    assert gaps < 0.1 * busy / len(steps)


@pytest.mark.parametrize("form", ["q4_0", "q8_0"])
def test_quantized(form, tmp_path):
    """Against the meaning of the same package, in numpy; several sequences, at once where there are slots, give what each gives alone."""
    file = compiled(LLAMA, tmp_path / "model.wgpu-llama", quantize=form, context=64, batch=2 if form == "q4_0" else 1)
    reference = tilewright.load(file, device="reference")
    ids, prompts = np.load(TALES["llama"][1])["token_ids"][:40].tolist(), [[5, 6, 7], [9] * 20, [11, 12]]
    together = {"do": "many", "prompts": prompts, "options": {"maxTokens": 6}}
    alone = {"do": "logits", "ids": ids, "out": str(tmp_path / "logits")}
    logits, many, fast = play(tmp_path, file, [alone, together, {"do": "fast", "job": together}])
    assert logits is None and np.abs(np.fromfile(tmp_path / "logits", np.float32).reshape(40, -1) - reference.logits(ids)).max() <= 2e-3
    assert many["tokens"] == [[token for token, _ in reference.stream(p, max_tokens=6)] for p in prompts]
    assert many == fast and many["reasons"] == {"0": "length", "1": "length", "2": "length"}


def command(*arguments: object):
    return node(WEB / "cli.mjs", *arguments, "--dawn", TOGGLES)


def test_command(tmp_path):
    tiny = compiled(DATA / "truth" / "llama", tmp_path / "tiny.wgpu-llama", context=64)
    truth = np.load(DATA / "truth" / "llama" / "truth.npz")
    ran = command(tiny, "--logits", ",".join(map(str, truth["token_ids"][:5])))
    assert ran.returncode == 0, ran.stderr
    assert np.abs(np.array(json.loads(ran.stdout)["logits"]) - truth["logits"][:5]).max() <= 1e-3
    ran = command(tiny, "--ids", "1,2,3", "--max-tokens", 8, "--temperature", 0.7, "--seed", 3, "--json", "--profile")
    said = json.loads(ran.stdout)
    want = [t for t, _ in tilewright.load(tiny, device="reference").stream([1, 2, 3], max_tokens=8, temperature=0.7, seed=3)]
    assert said["tokens"] == want and said["finish_reason"] == "length" and said["profile"]["steps"] == 8
    check_refused("the model has no tokenizer", tiny, "--prompt", "x")
    timed = node(ROOT / "bench" / "prompts.mjs", tiny, "--tokens", 5, "--repeat", 1, "--kernels", "--dawn", TOGGLES)
    assert "prompt of 5: " in timed.stdout and " attention(" in timed.stdout, timed.stderr


def test_the_record_of_an_adapter(tmp_path):
    """What the command says of an adapter is a device that models are compiled for."""
    path = tmp_path / "adapter.toml"
    path.write_text(command("--record").stdout)
    record = read_device(path)
    assert "swiftshader" in record.name.lower() and record.matrices == ()
    assert record.subgroup_size == (4 if "subgroups" in record.features else 0)
    assert record.limit("max_compute_workgroup_storage_size") >= 16384
    api.compile_for(open_checkpoint(DATA / "truth" / "llama"), record, context=64)


def check_refused(sentence, *arguments):
    ran = command(*arguments)
    assert ran.returncode == 1 and sentence in ran.stderr and "    at " not in ran.stderr


@pytest.mark.parametrize("arguments, sentence", [
    (("--ids", "1,x"), "--ids takes numbers"), (("--seed", "x"), "--seed takes a whole number"), (("more",), "usage:"),
    (("--nonsense",), "--nonsense")])
def test_the_command_refuses_in_a_sentence(arguments, sentence):
    check_refused(sentence, "any.wgpu-llama", *arguments)


def test_the_command_names_a_file_that_is_not_there():
    ran = command("nowhere.wgpu-llama")
    assert ran.returncode == 1 and ran.stderr == "tilewright: nowhere.wgpu-llama cannot be read: there is no such file\n"
