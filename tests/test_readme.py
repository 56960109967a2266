"""README.md and CONTRIBUTING.md tell the truth: every block of Python runs as written, every command parses, every signature is ours.

A fence's info string says what a block is: `python` is run, `python NAME` is a file, `python in PATH` belongs into that file,
`python signatures` are those of api.py, `bash` are commands. Blocks of one document share a process, a folder and their names.
"""
from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import safetensors.numpy
import typer
from tilewright.__main__ import app
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
TIMES = ("once", "upon", "a", "time", "Once", "</s>")


class Block(NamedTuple):
    kind: str       # the first word of the info string
    rest: str       # the others
    line: int       # of the document, that the text starts on
    text: str


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return [Block(m[1], m[2].strip(), text[:m.start(3)].count("\n") + 1, m[3])
            for m in re.finditer(r"^```(\w*)(.*)\n((?s:.*?))^```$", text, re.M)]


def commands(document: str) -> list[list[str]]:
    """The words of every command, without environment variables before it."""
    found = [shlex.split(line, comments=True) for b in blocks(document) if b.kind == "bash" for line in b.text.splitlines()]
    return [words[next(i for i, w in enumerate(words) if "=" not in w):] for words in found if words]


def write_model(folder: Path, model_type: str) -> None:
    """A tiny model of random numbers, of llama's shapes, with what granite has besides."""
    config = {"model_type": model_type, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True, "eos_token_id": 5,
              "embedding_multiplier": 12.0, "attention_multiplier": 0.2, "residual_multiplier": 0.22, "logits_scaling": 8.0}
    shapes = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
              "mlp.gate_proj": (64, 32), "mlp.up_proj": (64, 32), "mlp.down_proj": (32, 64), "input_layernorm": (32,),
              "post_attention_layernorm": (32,)}
    named = {"embed_tokens": (64, 32), "norm": (32,), **{f"layers.{i}.{n}": shape for i in range(2) for n, shape in shapes.items()}}
    rng = np.random.default_rng(0)
    folder.mkdir()
    safetensors.numpy.save_file({f"model.{n}.weight": rng.standard_normal(s, np.float32) / 4 for n, s in named.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    words = {w: i for i, w in enumerate((*TIMES, *(f"w{i}" for i in range(64 - len(TIMES)))))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_graph(path: Path) -> None:
    """y = relu(x), as ONNX."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, "n")) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8), path)


def run(*arguments: object, cwd: Path) -> str:
    # the same tilewright as here, wherever it was imported from
    path = os.pathsep.join((str(ROOT / "tests"), *sys.path))
    ran = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300,
                         env={**os.environ, "PYTHONPATH": path})
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def script(document: str) -> str:
    """Runs a document's blocks in order; tracebacks name the document's lines."""
    parts = ["import importlib, pathlib"]
    for b in blocks(document):
        module = b.rest.removeprefix("in ").removesuffix(".py").replace("/", ".")
        if b.kind not in ("python", "wgsl", "toml") or b.rest == "signatures" or module.startswith("tests."):
            continue
        if b.rest and not b.rest.startswith("in "):
            parts.append(f"pathlib.Path({Path(b.rest).name!r}).write_text({b.text!r})")
            continue
        space = f"vars(importlib.import_module({f'tilewright.{module}'!r}))" if b.rest else "globals()"
        padded = "\n" * (b.line - 1) + b.text
        parts.append(f"exec(compile({padded!r}, {document!r}, 'exec'), {space})")
    return "\n".join(parts)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_all_code_runs_as_written(gpu, tmp_path, document):
    for name, model_type in (("my-llama", "llama"), ("my-granite", "granite"), ("my-scaled-llama", "scaled_llama")):
        write_model(tmp_path / name, model_type)
    write_graph(tmp_path / "my-graph.onnx")
    (tmp_path / "blocks.py").write_text(script(document))
    run("blocks.py", cwd=tmp_path)
    for words in commands(document):
        if words[0] == "pytest":
            assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", *words[1:], cwd=tmp_path)
        elif words[0] == "python" and words[1] != "-m":
            assert run(*words[1:], cwd=tmp_path)


def test_a_case_is_entered_where_the_guide_says(tmp_path):
    """What it gives to tests/cases.py are cases of the README's kernel."""
    kernel = next(b for b in blocks("README.md") if b.rest == "swiglu.py")
    (tmp_path / "swiglu.py").write_text(kernel.text)
    made = next(b for b in blocks("CONTRIBUTING.md") if b.rest == "in tests/cases.py")
    run("-c", f"import cases; exec({made.text!r}, vars(cases))\nfrom swiglu import Swiglu\nfrom tilewright.compiler.device import Device\n"
        "from tilewright.testing import schedules\nfound = [c for c in cases.cases() if c.kernel == 'swiglu']\n"
        "assert len(found) == 4 and all(list(schedules(c.graph, Swiglu(), Device('any'))) for c in found if 'f32' in c.label)", cwd=tmp_path)


@pytest.mark.parametrize("words", [w for d in DOCUMENTS for w in commands(d)], ids=" ".join)
def test_commands_parse(words):
    program, *arguments = words
    if program == "tilewright":
        group = typer.main.get_command(app)
        name, command, rest = group.resolve_command(group.make_context("tilewright", [], resilient_parsing=True), arguments)
        command.make_context(name, rest)        # raises for an unknown option or a missing argument
    elif program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1])
    else:
        assert words in (["pip", "install", "."],) or program in ("python", "pytest")


def test_signatures_are_those_of_the_interface():
    def defined(text: str) -> dict[str, str]:
        return {f.name: f"{ast.unparse(f.args)} -> {ast.unparse(f.returns)}" for f in ast.parse(text).body
                if isinstance(f, ast.FunctionDef) and f.returns}
    ours = defined((ROOT / "api.py").read_text()) | defined((ROOT / "frontends" / "models" / "__init__.py").read_text())
    told = defined(next(b.text for b in blocks("README.md") if b.rest == "signatures"))
    assert told == {name: ours[name] for name in told} and {"compile", "load", "load_tokenizer", "register_model"} <= told.keys()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 280
