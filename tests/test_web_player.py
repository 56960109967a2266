"""Packages play in Node, over Dawn, as they play here: logits, greedy continuations, seeded samples, quantized weights, ends of streams."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tilewright
from dawn import TOGGLES, WEB, missing_dawn, node, play
from tilewright import api
from tilewright.compiler.device import Device, shipped_devices
from tilewright.frontends.checkpoint import open_checkpoint

DATA = Path(__file__).parent / "data"
DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
LLAMA = DATA / "models" / "tales-llama"
TALES = {"tales-llama4": (DEMO, DATA / "models" / "tales-llama4.npz"), "tales-llama": (LLAMA, LLAMA / "truth.npz")}
PROMPT = "The old man looked at the sea and"
POSITIONS = 280     # past the window of tales-llama4, which is 256
# What every browser has, as slow as SwiftShader: that chooses small workgroups.
WEB_DEFAULT = replace(next(d for d in shipped_devices() if d.name == "web-default"), bandwidth=4e9, launch=1e-5, flops=2e10, width=16)


@pytest.fixture(autouse=True, scope="module")
def dawn():
    if why := missing_dawn():
        pytest.skip(why)


def compiled(path: Path, to: Path, device: Device = WEB_DEFAULT, **options: Any) -> Path:
    """A package with one chunk size of its own, for SwiftShader compiles shaders slowly."""
    with pytest.MonkeyPatch.context() as patch:
        plan = api.plan_for
        patch.setattr(api, "plan_for", lambda *given: replace(plan(*given), prefill=(16,)))
        api.compile_for(open_checkpoint(path), device, **options).save(to)
    return to


class Played(NamedTuple):
    truth: dict[str, np.ndarray]
    logits: np.ndarray
    greedy: list[dict[str, Any]]
    rest: list[Any]


SEEDED = [{"temperature": 0.9, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repeat_penalty": 1.1, "seed": 7},
          {"temperature": 0.9, "seed": 2**40 + 1}, {"temperature": 1.5, "top_k": 5, "seed": 1}, {"temperature": 0.6, "top_p": 0.8, "seed": 2},
          {"temperature": 1.2, "min_p": 0.1, "seed": 3}, {"repeat_penalty": 50.0}]
CAMEL = {"top_k": "topK", "top_p": "topP", "min_p": "minP", "repeat_penalty": "repeatPenalty"}


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return compiled(DEMO, tmp_path_factory.mktemp("web") / "tales-llama4.wgpu-llama")


@pytest.fixture(scope="module", params=TALES)
def played(request, package, tmp_path_factory) -> Played:
    """One run of Node a model, with all that is asked of it."""
    path, truth = TALES[request.param]
    folder, numbers = tmp_path_factory.mktemp("played"), dict(np.load(truth))
    file = package if path == DEMO else compiled(path, folder / "model.wgpu-llama")
    jobs: list[dict[str, Any]] = [{"do": "logits", "ids": numbers["token_ids"][:POSITIONS].tolist(), "out": str(folder / "logits")}]
    jobs += [{"do": "stream", "prompt": numbers[f"greedy{n}_prompt"].tolist(), "options": {"maxTokens": 24}} for n in range(4)]
    if path == DEMO:
        jobs += [{"do": "stream", "prompt": PROMPT, "options": {CAMEL.get(k, k): v for k, v in options.items()} | {"maxTokens": 12}} for options in SEEDED]
        jobs += [*ENDS, {"do": "about"}, {"do": "profile", "prompt": PROMPT, "options": {"maxTokens": 24}}, {"do": "loss", "prompt": PROMPT}]
    _, *answers = play(folder, file, jobs)
    return Played(numbers, np.fromfile(folder / "logits", np.float32).reshape(POSITIONS, -1), answers[:4], answers[4:])


ENDS: list[dict[str, Any]] = [
    {"do": "stream", "prompt": PROMPT, "options": {"maxTokens": 12, "stop": " the"}},
    {"do": "stream", "prompt": PROMPT, "options": {"maxTokens": 0}},
    {"do": "stream", "prompt": PROMPT, "options": {"maxTokens": 9}, "leave": 2},
    {"do": "aborted", "prompt": PROMPT},
    {"do": "interrupted", "prompt": PROMPT},
    *({"do": "refusal", "job": {"do": "stream", "prompt": prompt, "options": {}}} for prompt in ([], [99999], [1.5], [1] * 3000)),
]


def test_logits(played):
    near = played.truth["positions"] < POSITIONS
    assert near.sum() >= 10
    assert np.abs(played.logits[played.truth["positions"][near]] - played.truth["logits"][near]).max() <= 2e-3


def test_greedy(played):
    for n, stream in enumerate(played.greedy):
        unsure = np.flatnonzero(played.truth[f"greedy{n}_margin"][:24] <= 1e-2)
        count = unsure[0] if len(unsure) else 24
        assert stream["tokens"][:count] == played.truth[f"greedy{n}_tokens"].tolist()[:count]
        assert stream["reason"] == "length" and len(stream["tokens"]) == 24


@pytest.fixture(scope="module")
def model(package):
    """The same package, played from Python."""
    loaded = tilewright.load(package)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def of_demo(package, tmp_path_factory) -> list[Any]:
    """What the demo answers to all but logits and truth's prompts."""
    folder = tmp_path_factory.mktemp("demo")
    seeded = [{"do": "stream", "prompt": PROMPT, "options": {CAMEL.get(k, k): v for k, v in o.items()} | {"maxTokens": 12}} for o in SEEDED]
    return play(folder, package, seeded)
