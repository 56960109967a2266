"""The command line: every command on a tiny model, and one sentence for everything that can go wrong."""
from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import safetensors.numpy
from tilewright.__main__ import main
from tilewright.compiler import report
from tilewright.compiler.text import read
from tokenizers import Tokenizer, models, pre_tokenizers

CONFIG = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rope_theta": 10000.0,
          "tie_word_embeddings": True, "eos_token_id": 63}
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


def write_model(folder: Path, template: str | None = None) -> Path:
    """A llama of random numbers that knows the words w0 to w61."""
    folder.mkdir()
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,)}
    for i in range(2):
        for name, shape in (("self_attn.q_proj", (32, 32)), ("self_attn.k_proj", (16, 32)), ("self_attn.v_proj", (16, 32)),
                            ("self_attn.o_proj", (32, 32)), ("mlp.gate_proj", (64, 32)), ("mlp.up_proj", (64, 32)),
                            ("mlp.down_proj", (32, 64)), ("input_layernorm", (32,)),
                            ("post_attention_layernorm", (32,))):
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    weights = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(models.WordLevel({**{f"w{i}": i for i in range(62)}, "<unk>": 62, "</s>": 63}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} if template else {}))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def talker(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "talker", TEMPLATE)


@pytest.fixture(scope="module")
def package(model) -> Path:
    """Compiled for a device that nobody needs to have."""
    path = model.parent / "tiny.wgpu-llama"
    with pytest.raises(SystemExit) as left:
        main(["compile", str(model), "-o", str(path), "--device", "web-default"])
    assert left.value.code == 0
    return path


class Ran(NamedTuple):
    code: str | int | None
    out: str
    err: str


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Ran]:
    def call(*arguments: object, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        return Ran(left.value.code, *capsys.readouterr())
    return call


def test_help_and_version(run):
    assert run("--version").out == "tilewright 0.1.0\n"
    top = run("--help")
    assert top.code == 0
    for command in ("demo", "compile", "generate", "chat", "inspect", "explain", "view", "devices"):
        assert command in top.out
        assert "tilewright " in run(command, "--help").out, "help shows an example"


def test_as_a_module():
    command = [sys.executable, "-m", "tilewright", "generate", "nowhere", "--prompt", "x"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == "tilewright: nowhere does not exist; give a Hugging Face folder or a .gguf file\n"


def test_generate_gives_text_alone_on_stdout(run, model):
    ran = run("generate", model, "--prompt", "w1 w2", "--max-tokens", 8, "--device", "reference")
    assert ran.code == 0 and len(ran.out.split()) == 8 and ran.out.endswith("\n")
    assert re.fullmatch(r"8 tokens, [\d.,]+ tokens/s, finished: length\n", ran.err)
    piped = run("generate", model, "--prompt", "-", "--max-tokens", 8, "--device", "reference", stdin="w1 w2\n")
    assert piped.out == ran.out


def test_generate_passes_its_options_on(run, model):
    def text(*options: object) -> str:
        return run(*command, "--max-tokens", 12, *options).out
    command = ("generate", model, "--prompt", "w1 w2", "--device", "reference")
    plain, drawn = text(), text("--temperature", 3, "--seed", 5)
    assert drawn == text("--temperature", 3, "--seed", 5) != text("--temperature", 3, "--seed", 6)
    assert plain == text("--temperature", 3, "--top-k", 1) == text("--temperature", 3, "--min-p", 1)
    words = drawn.split()
    stopped = run(*command, "--temperature", 3, "--seed", 5, "--stop", words[5], "--stop", "w99")
    assert stopped.out.strip() == drawn[:drawn.index(words[5])].strip() and "finished: stop" in stopped.err
    assert "finished: context" in run(*command, "--context", 8).err


def test_reference_by_environment(run, model, monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_REFERENCE", "1")
    ran = run("generate", model, "--prompt", "w1", "--max-tokens", 2, "--device", "no such adapter")
    assert ran.code == 0


def test_demo(run):
    ran = run("demo", "--max-tokens", 4, "--device", "reference", "--prompt", "It was")
    assert ran.code == 0 and ran.out.startswith("It was")
    for row in ("adapter", "kernels", "compiling", "loading", "prompt", "answer"):
        assert f"\n{row}" in ran.out


def test_demo_on_a_gpu(run, gpu):
    ran = run("demo", "--max-tokens", 4)
    assert ran.code == 0 and gpu.info.name in ran.out and "distinct shaders" in ran.out


def test_chat(run, talker):
    ran = run("chat", talker, "--device", "reference", "--temperature", 0, "--max-tokens", 3, stdin="w1 w2\n\nw3\n/new\nw1 w2\n/quit\nw4\n")
    first, second, again = ran.out.splitlines()
    assert ran.code == 0 and first == again != second


def test_chat_goes_on_after_a_question_that_is_too_long(run, talker):
    ran = run("chat", talker, "--device", "reference", "--context", 16, "--max-tokens", 2, stdin=f"{'w1 ' * 20}\nw2\n")
    assert ran.code == 0 and len(ran.out.splitlines()) == 1 and "the context is 16" in ran.err


def test_inspect(run, package):
    ran = run("inspect", package, "--tensors")
    assert ran.code == 0
    for word in ("decode_1", "distinct shaders", "matvec", "layers.*.keys", "without sharing", "step buffer", "layers.1.down"):
        assert word in ran.out
    told = json.loads(run("inspect", package, "--json").out)
    assert told["decode"]["dispatches"] == sum(told["decode"]["layers"]) + told["decode"]["outside"]
    assert len(told["decode"]["layers"]) == 2 and len(set(told["decode"]["layers"])) == 1
    assert sum(k["decode"] for k in told["kernels"].values()) == told["programs"]["decode_1"]["dispatches"]
    assert sum(w["elements"] for w in told["weights"].values()) == sum(int(np.prod(t["shape"])) for t in told["tensors"])


def test_inspect_a_model(run, model):
    assert "decode_1" in run("inspect", model, "--device", "reference").out


def test_explain(run, model):
    listed = run("explain", model, "--device", "web-default").out.splitlines()
    assert listed[0].split()[0] == "0" and "matvec(" in "".join(listed)
    told = run("explain", model, "--device", "web-default", "--op", "attention_split").out
    assert told == run("explain", model, "--device", "web-default", "--op", "attention").out      # as it is split there
    assert "after frontend:" in told and "= attention(" in told and "after tiling:" in told
    assert "->" in told and "chosen: attention_split(" in told and "@compute" in told
    assert "numpy reference" in run("explain", model, "--device", "reference", "--op", 2).out


def test_explain_a_package(run, model, package):
    of_model, of_package = (run("explain", path, "--device", "web-default", "--op", 3).out for path in (model, package))
    assert of_package[of_package.index("schedules considered"):] == of_model[of_model.index("schedules considered"):]


def test_trace_goes_through_joined_and_split_ops():
    before = read("""
        weight %q: f32[4,4]
        weight %k: f32[4,4]
        input %x: f32[1,4]
        %a: f32[1,4] = matmul(%x, %q)
        %b: f32[1,4] = matmul(%x, %k)
        %c: f32[1,1,4] = split(%a, sizes=[4], head_dim=4)
        %d: f32[1,1,4] = split(%b, sizes=[4], head_dim=4)
        %e: f32[1,1,4] = silu(%d)
        return %c, %e""".replace("        ", ""))
    after = read("""
        weight %qk: f32[8,4]
        input %x: f32[1,4]
        %ab: f32[1,8] = matmul(%x, %qk)
        %c: f32[1,1,4], %d: f32[1,1,4] = split(%ab, sizes=[4 4], head_dim=4)
        %e: f32[1,1,4] = silu(%d)
        return %c, %e""".replace("        ", ""))
    stages = [("before", before), ("after", after)]
    origins = [[op.outputs[0] for op in report.trace(stages, index)[0][2]] for index in range(3)]
    assert origins == [["a", "b", "c", "d"], ["a", "b", "c", "d"], ["e"]]


def test_view(run, model, tmp_path):
    ran = run("view", model, "--device", "web-default", "-o", tmp_path / "graph.html")
    text = (tmp_path / "graph.html").read_text()
    drawing = ElementTree.fromstring(text[text.index("<svg"):text.index("</svg>") + 6])
    boxes = [*drawing.iter("rect")]
    assert ran.code == 0 and ran.err.endswith(f": {len(boxes)} ops\n") and len([*drawing.iter("title")]) == len(boxes)
    assert "src=" not in text and "http" not in text
    by_row: dict[str, list[tuple[float, float]]] = {}
    for box in boxes:
        by_row.setdefault(box.attrib["y"], []).append((float(box.attrib["x"]), float(box.attrib["x"]) + float(box.attrib["width"])))
    assert all(left[1] < right[0] for row in by_row.values() for left, right in pairwise(sorted(row))), "boxes overlap"


def test_devices(run, monkeypatch):
    ran = run("devices")
    assert ran.code == 0 and "web-default" in ran.out
    monkeypatch.setattr("tilewright.runtime.adapter.adapters", list)
    assert "mesa-vulkan-drivers" in run("devices").out


def test_devices_lists_the_adapter(run, gpu):
    out = run("devices").out
    assert gpu.info.name in out and "auto takes this one" in out and "subgroup size" in out


PROMPT = ("--prompt", "w1", "--device", "reference")


@pytest.mark.parametrize(("arguments", "sentence"), [
    (("generate", "{tmp}/none", *PROMPT), "does not exist"),
    (("generate", "{tmp}/empty", *PROMPT), "holds no config.json"),
    (("generate", "{tmp}/broken", *PROMPT), "is not valid JSON"),
    (("generate", "{tmp}/short.wgpu-llama", *PROMPT), "is truncated"),
    (("inspect", "{tmp}/noise.wgpu-llama"), "no .wgpu-llama file"),
    (("inspect", "{tmp}/flipped.wgpu-llama"), "is damaged"),
    (("generate", "{model}", "--prompt", "w1", "--device", "no such adapter"), "adapter"),
    (("compile", "{model}", "-o", "{tmp}/x", "--device", "no such adapter"), "device profiles: "),
    (("compile", "{model}", "-o", "{tmp}/none/x", "--device", "web-default"), "cannot be written"),
    (("compile", "{model}", "-o", "{tmp}/x", "--device", "reference", "--dtype", "f64"), "known: f32, f16"),
    (("generate", "{model}", *PROMPT, "--context", "65"), "the model's own is 64"),
    (("generate", "{package}", *PROMPT, "--context", "32"), "compile the model again"),
    (("generate", "{model}", *PROMPT, "--top-p", "2"), "top_p is 2.0"),
    (("generate", "{model}", *PROMPT, "--temperature", "-1"), "temperature is -1.0"),
    (("generate", "{model}", "--prompt", "w1 w2 w3", "--device", "reference", "--context", "2"), "3 tokens but the context is 2"),
    (("generate", "{model}", "--prompt", "", "--device", "reference"), "the prompt is empty"),
    (("chat", "{model}", "--device", "reference"), "no chat template"),
    (("explain", "{model}", "--op", "rout", "--device", "web-default"), "no op 'rout'"),
    (("explain", "{model}", "--program", "decode_9", "--device", "reference"), "no program 'decode_9'"),
    (("view", "{model}", "-o", "{tmp}/none/x.html", "--device", "reference"), "none/x.html: No such file or directory"),
])
def test_errors_are_one_sentence(run, model, package, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    whole = package.read_bytes()
    (tmp_path / "short.wgpu-llama").write_bytes(whole[:-1000])
    (tmp_path / "noise.wgpu-llama").write_bytes(b"noise" * 100)
    (tmp_path / "flipped.wgpu-llama").write_bytes(whole[:-2000] + bytes([whole[-2000] ^ 1]) + whole[-1999:])
    ran = run(*(a.format(tmp=tmp_path, model=model, package=package) for a in arguments))
    assert ran.code == 1 and ran.out == ""
    assert ran.err.startswith("tilewright: ") and ran.err.count("\n") == 1 and sentence in ran.err


def test_wrong_usage_has_its_own_exit_code(run, model):
    assert run("generate", model).code == run("nonsense").code == 2


def test_interrupt(run, model, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt
    monkeypatch.setattr("tilewright.runtime.terminal.play", interrupted)
    ran = run("generate", model, *PROMPT)
    assert (ran.code, ran.err) == (130, "")


def test_interrupting_an_answer_keeps_the_conversation(run, talker, monkeypatch):
    def interrupted(stream: object, also) -> None:
        also("w1")
        raise KeyboardInterrupt
    monkeypatch.setattr("tilewright.runtime.terminal.play", interrupted)
    assert run("chat", talker, "--device", "reference", stdin="w1\nw2\n").code == 0


def test_faults_are_not_hidden(model, monkeypatch):
    def faulty(*_: object) -> None:
        raise KeyError("a mistake of ours")
    monkeypatch.setattr("tilewright.runtime.terminal.play", faulty)
    with pytest.raises(KeyError):
        main(["generate", str(model), *PROMPT])
