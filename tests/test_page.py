"""The page in a real browser on a software GPU: load, keep, chat, stop, recover, and say what is wrong."""
from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import browser
import numpy as np
import pytest
import tilewright
from browser import Stage, drive, software, write_package, write_talker
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.runtime.website import export_site

DATA = Path(__file__).parent / "data"
DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
TALES = {"tales-llama4": (DEMO, DATA / "models" / "tales-llama4.npz"),
         "tales-llama": (DATA / "models" / "tales-llama", DATA / "models" / "tales-llama" / "truth.npz")}
IDS = 288       # of the truth: more than the chunks of Llama 4

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "nothing is missing")


@pytest.fixture
def staged() -> Iterator[Callable[[Path], Stage]]:
    """Serves packages until the test is over."""
    with ExitStack() as stack:
        def serve(package: Path) -> Stage:
            stage = stack.enter_context(Stage(package))
            Thread(target=stage.serve_forever, daemon=True).start()
            stack.callback(stage.shutdown)
            return stage
        yield serve


@pytest.fixture(scope="module")
def tales(tmp_path_factory) -> Callable[[str], Path]:
    folder, tokenizer = tmp_path_factory.mktemp("tales"), open_checkpoint(DEMO).tokenizer

    def make(name: str) -> Path:
        return write_package(TALES[name][0], folder / f"{name}.wgpu-llama", 320, tokenizer=tokenizer)
    return make


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("talker")
    return write_package(write_talker(folder / "talker"), folder / "talker.wgpu-llama", 256)


@pytest.mark.parametrize("name", TALES)
def test_logits_and_greedy_continuations(tales, staged, name):
    stage, truth, prompts = staged(tales(name)), np.load(TALES[name][1]), (0, 1) if name == "tales-llama4" else (2,)
    rows = [int(p) for p in truth["positions"] if p < IDS]
    saw = drive("logits", stage.address, file=f"{name}.wgpu-llama", ids=truth["token_ids"][:IDS].tolist(), rows=rows, count=24,
                prompts=[truth[f"greedy{n}_prompt"].tolist() for n in prompts])
    got = np.frombuffer(base64.b64decode(saw["logits"]), np.float32).reshape(len(rows), -1)
    want = truth["logits"][[p < IDS for p in truth["positions"]]]
    print(f"{name}: {saw['rate']:.1f} tokens/s, greatest difference {np.abs(got - want).max():.2e}")
    assert len(rows) > 10 and np.abs(got - want).max() <= 2e-3
    for n, tokens in zip(prompts, saw["greedy"], strict=True):
        unsure = np.flatnonzero(truth[f"greedy{n}_margin"][:24] <= 1e-2)
        sure = unsure[0] if len(unsure) else 24
        assert tokens[:sure] == truth[f"greedy{n}_tokens"].tolist()[:sure] and sure > 4


def test_damaged_downloads_damaged_copies_and_a_visit_without_network(tmp_path, staged):
    package = write_package(write_talker(tmp_path / "wide", 12288), tmp_path / "wide.wgpu-llama", 64)
    stage = staged(package)
    stage.pace = 0.1
    stage.corrupt = {200: 1, 6_000_000: 2}      # the header the first time, the weights the second
    saw = drive("visits", stage.address, damage=5_000_000)
    first, second = saw["first"], saw["second"]
    print(f"first visit {first['ms']} ms, second {second['ms']} ms")
    assert "from the server" in first["facts"]
    fetched = [asked for path, asked in stage.asked if path.endswith(".wgpu-llama")]
    assert fetched == [None, None, f"bytes=4194304-{package.stat().st_size - 1}", "bytes=4194304-8388607"], "only what is damaged is fetched again"
    assert saw["repaired"] == "ready"
    shares = [share for share, words in first["seen"] if words.startswith("Downloading")]
    assert any(0 < share < 1 for share in shares) and max(shares) <= 1
    assert len(shares) > 5 and all(f" of {package.stat().st_size / 1e6:.2f} MB" in words for _, words in first["seen"][:5])
    assert "from the stored copy" in second["facts"] and "is kept in this browser" in second["stored"]
    assert "downloaded at every visit" in saw["evicted"] and saw["left"] == []


SLOW = """
const map = GPUBuffer.prototype.mapAsync;
GPUBuffer.prototype.mapAsync = function (...given) {
    return new Promise(resolve => setTimeout(resolve, 25)).then(() => map.apply(this, given));
};
"""


def test_chat(talker, staged):
    stage = staged(talker)
    stage.before_worker(SLOW)       # so that there is time to stop
    saw = drive("chat", stage.address)
    assert "What would you like to know?" in saw["welcome"]
    assert saw["first"] and saw["first"] == saw["second"], "greedy answers are equal"
    assert all(word in saw["meta"] for word in ("12 tokens", "tokens/s", "first after", "longest answer reached"))
    assert saw["busy"] == ["stop", "true"] and "stopped" in saw["stopped"] and int(saw["stopped"].split()[0]) < 60
    assert "3 tokens" in saw["next"]
    assert saw["turns"][0] == "w1 w2 w3" and len(saw["turns"]) == 6 and saw["kept"] == saw["turns"], "a reload keeps the conversation"
    assert saw["wide"] <= 360 and saw["focus"] == "close" and saw["unnamed"] == []
    assert saw["said"] == []


CATCH_DEVICES = """
self.opened = [];
const request = GPUAdapter.prototype.requestDevice;
GPUAdapter.prototype.requestDevice = async function (...given) {
    const device = await request.apply(this, given);
    self.opened.push(device);
    return device;
};
const submit = GPUQueue.prototype.submit;
GPUQueue.prototype.submit = function (...given) {
    if (self.fuse > 0 && --self.fuse === 0) self.opened.at(-1).destroy();
    return submit.apply(this, given);
};
"""


def test_a_lost_device_is_replaced_and_the_conversation_goes_on(talker, staged):
    stage = staged(talker)
    stage.before_worker(CATCH_DEVICES)
    saw = drive("lost", stage.address)
    assert len(saw["whole"]) > 50 and saw["after"] == saw["whole"], "the answer is what it would have been"
    assert saw["devices"] == 3 and "is back" in saw["notice"] and saw["turns"] == 4 and saw["next"]


TROUBLES = {
    "no WebGPU": ("Object.defineProperty(navigator, 'gpu', { value: undefined });", "This browser has no WebGPU", "Chrome"),
    "no adapter": ("GPU.prototype.requestAdapter = async () => null;", "The browser finds no GPU", "hardware acceleration"),
    "too little memory": ("GPUDevice.prototype.popErrorScope = async () => new GPUOutOfMemoryError('no');", "The GPU has too little memory",
                          "--quantize"),
}


@pytest.mark.parametrize("what", TROUBLES)
def test_what_is_said_where_the_model_cannot_play(talker, staged, what):
    script, title, advice = TROUBLES[what]
    stage = staged(talker)
    stage.before_worker(script)
    saw = drive("trouble", stage.address)
    assert saw["title"] == title and advice in saw["advice"] and saw["shown"] and saw["disabled"] and saw["text"]
    if what == "too little memory":
        assert "Compiled anew, with" in saw["text"]


def test_a_feature_that_the_gpu_lacks(tmp_path, staged):
    half = software(frozenset({"shader-f16"}))
    model = write_package(write_talker(tmp_path / "half"), tmp_path / "half.wgpu-llama", 64, half, dtype="f16")
    saw = drive("trouble", staged(model).address)
    assert saw["title"] == "This GPU lacks what the model was compiled for" and "lacks the feature shader-f16" in saw["text"]
    assert "--target web" in saw["advice"]


def test_a_folder_on_a_server_without_ranges(talker, tmp_path):
    export_site(talker, tmp_path / "some" / "where")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        saw = drive("folder", f"http://localhost:{server.server_port}/some/where/")
        server.shutdown()
    assert "from the server" in saw["first"] and "from the stored copy" in saw["second"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass
