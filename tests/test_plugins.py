"""Families from outside: the README's Granite from a file and from an installed package, against transformers and against plain numpy."""
from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tilewright
from hypothesis import given, settings
from hypothesis import strategies as st
from test_readme import blocks
from tilewright import CheckpointError, testing
from tilewright.api import record_of
from tilewright.frontends import models

GRANITE = Path(__file__).parent / "data" / "plugins" / "granite"
SOURCE = next(b.text for b in blocks("README.md") if b.rest == "granite.py")
PACKAGE = "Metadata-Version: 2.1\nName: granite-for-tilewright\nVersion: 1.0\n"


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(models, "_registered", {})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "granite.py"
    path.write_text(SOURCE)
    return path


def logits(path: Path, ids, device: str = "reference") -> np.ndarray:
    model = tilewright.load(path, device=device)
    try:
        return model.logits(ids)
    finally:
        model.close()


@pytest.mark.parametrize("device", ["auto", "reference"])
def test_a_file(file, device, gpu):
    with pytest.raises(CheckpointError, match=r"no model family 'granite'; known: .*llama4, .* \(register_model adds one from a file\)"):
        tilewright.load(GRANITE, device="reference")
    assert tilewright.register_model(file) == "granite" and "granite" in models.known()
    truth = np.load(GRANITE / "truth.npz")
    assert np.abs(logits(GRANITE, truth["token_ids"], device) - truth["logits"]).max() <= 1e-4


def install(folder: Path, monkeypatch, text: str, point: str = "granite = granite_for_tilewright.model") -> None:
    """An installed package with an entry point, as pip leaves it."""
    for name, content in (("granite_for_tilewright/__init__.py", ""), ("granite_for_tilewright/model.py", text),
                          ("granite_for_tilewright-1.0.dist-info/METADATA", PACKAGE),
                          ("granite_for_tilewright-1.0.dist-info/entry_points.txt", f"[tilewright.models]\n{point}\n")):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(content)
    monkeypatch.syspath_prepend(folder)
    for module in [m for m in sys.modules if m.startswith("granite_for_tilewright")]:
        monkeypatch.delitem(sys.modules, module)


def test_an_installed_package(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, SOURCE)
    truth = np.load(GRANITE / "truth.npz")
    assert np.abs(logits(GRANITE, truth["token_ids"]) - truth["logits"]).max() <= 1e-4
    assert "granite" in models.known()


def test_an_installed_package_does_not_change_what_is_built_in(tmp_path, monkeypatch, file):
    install(tmp_path, monkeypatch, "raise ZeroDivisionError", "llama = granite_for_tilewright.model")
    assert models.family("llama").__name__ == "tilewright.frontends.models.llama"


def test_a_registered_file_replaces_what_is_built_in(tmp_path):
    (tmp_path / "llama.py").write_text(SOURCE)
    tilewright.register_model(tmp_path / "llama.py")
    assert hasattr(models.family("llama").Config, "logits_scaling") and not hasattr(models.family("mistral").Config, "logits_scaling")


def test_names_of_gguf_architectures():
    """They write `-` or nothing where a model_type has `_`."""
    assert models.family("qwen3moe") is models.family("qwen3_moe") is models.family("qwen3-moe")


def test_what_is_no_family(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"nowhere\.py is no Python file of a model family"):
        tilewright.register_model(tmp_path / "nowhere.py")
    (tmp_path / "half.py").write_text("def read(raw): pass\ntensors = 3")
    with pytest.raises(CheckpointError, match=r"half\.py is no model family: it defines no tensors, embedding, decoder, head"):
        tilewright.register_model(tmp_path / "half.py")
    (tmp_path / "broken.py").write_text("1 // 0")
    with pytest.raises(ZeroDivisionError):
        tilewright.register_model(tmp_path / "broken.py")
    assert not {"nowhere", "half", "broken"} & set(models.known())
    install(tmp_path / "site", monkeypatch, "import no_such_module_at_all")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        models.family("granite")
    install(tmp_path / "site", monkeypatch, "")
    with pytest.raises(CheckpointError, match=r"the entry point granite of tilewright\.models is no model family: it defines no read"):
        models.family("granite")


def test_a_weight_that_nobody_names(tmp_path):
    (tmp_path / "granite.py").write_text(SOURCE.replace("llama.head(g, c, x)", 'g.linear(x, "skull", c.vocab_size)'))
    tilewright.register_model(tmp_path / "granite.py")
    with pytest.raises(CheckpointError, match="the model file reads the weight skull, but its `tensors` does not say where it comes from"):
        tilewright.load(GRANITE, device="reference")


# ---- properties, for which a plug-in needs no more than this

def test_every_op_that_it_comes_to(file, gpu):
    """By several schedules of every kernel that runs it."""
    tilewright.register_model(file)
    assert testing.check_model(gpu, GRANITE, record_of(gpu), limit=2) >= 30


def test_the_check_notices(file, gpu, monkeypatch):
    """An op that means something else than its WGSL computes."""
    tilewright.register_model(file)
    monkeypatch.setattr("tilewright.compiler.ops.OPS", {**testing.OPS, "silu": testing.OPS["sigmoid"]})
    with pytest.raises(AssertionError, match="mat"):
        testing.check_model(gpu, GRANITE, record_of(gpu), limit=1)


def write(folder: Path, config: dict, seed: int) -> dict[str, np.ndarray]:
    """A folder with random weights, and these by name."""
    c, rng = config, np.random.default_rng(seed)
    h, wide = c["hidden_size"], c["intermediate_size"]
    few = h // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes = {"self_attn.q_proj": (h, h), "self_attn.k_proj": (few, h), "self_attn.v_proj": (few, h), "self_attn.o_proj": (h, h),
              "mlp.gate_proj": (wide, h), "mlp.up_proj": (wide, h),
              "mlp.down_proj": (h, wide), "input_layernorm": (h,), "post_attention_layernorm": (h,)}
    named = {"model.embed_tokens": (c["vocab_size"], h), "model.norm": (h,), "lm_head": (c["vocab_size"], h),
             **{f"model.layers.{i}.{name}": shape for i in range(c["num_hidden_layers"]) for name, shape in shapes.items()}}
    arrays = {f"{name}.weight": (rng.standard_normal(shape) * shape[-1]**-0.5 + (len(shape) == 1)).astype(np.float32)
              for name, shape in named.items()}
    folder.mkdir()
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return arrays


def granite(c: dict, weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Granite in float64, a head at a time, written from the model's description and sharing nothing with the package."""
    w = {name.removesuffix(".weight"): array.astype(np.float64) for name, array in weights.items()}
    count, dim = len(ids), c["hidden_size"] // c["num_attention_heads"]

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c["rms_norm_eps"]) * w[name]

    def turned(x):
        angle = np.arange(count)[:, None] * c["rope_theta"] ** (-2 * np.arange(dim // 2) / dim)
        a, b = x[:, :dim // 2], x[:, dim // 2:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)
    x = w["model.embed_tokens"][ids] * c["embedding_multiplier"]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        h, given = norm(x, layer + "input_layernorm"), []
        q, k, v = (h @ w[f"{layer}self_attn.{p}_proj"].T for p in "qkv")
        for head in range(c["num_attention_heads"]):
            of = head // (c["num_attention_heads"] // c["num_key_value_heads"])
            mine, theirs = slice(head * dim, (head + 1) * dim), slice(of * dim, (of + 1) * dim)
            scores = turned(q[:, mine]) @ turned(k[:, theirs]).T * c["attention_multiplier"]
            scores = np.exp(np.where(np.tri(count, dtype=bool), scores, -math.inf) - scores.max())
            given.append(scores / scores.sum(1, keepdims=True) @ v[:, theirs])
        x = x + np.concatenate(given, 1) @ w[layer + "self_attn.o_proj"].T * c["residual_multiplier"]
        h = norm(x, layer + "post_attention_layernorm")
        gate, up = h @ w[layer + "mlp.gate_proj"].T, h @ w[layer + "mlp.up_proj"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[layer + "mlp.down_proj"].T * c["residual_multiplier"]
    return norm(x, "model.norm") @ w["lm_head"].T / c["logits_scaling"]


@settings(max_examples=5, deadline=None, derandomize=True)
@given(st.data())
def test_any_granite(tmp_path_factory, gpu, data):
    """Sizes and factors that nobody thought of, and any sequence."""
    folder = tmp_path_factory.mktemp("granite")
    (folder / "granite.py").write_text(SOURCE)
    tilewright.register_model(folder / "granite.py")
    heads, group, dim = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), 2 * data.draw(st.integers(2, 10))
    names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    factors = {name: data.draw(st.floats(0.25, 4)) for name in names}
    config = {"model_type": "granite", "vocab_size": data.draw(st.integers(20, 90)), "hidden_size": heads * group * dim, "num_hidden_layers": 2,
              "intermediate_size": data.draw(st.integers(3, 70)), "num_attention_heads": heads * group, "num_key_value_heads": heads,
              "rms_norm_eps": 1e-5, "rope_theta": data.draw(st.sampled_from([100.0, 1e4])), "max_position_embeddings": 32, **factors}
    weights = write(folder / "model", config, data.draw(st.integers(0, 99)))
    ids = data.draw(st.lists(st.integers(0, 19), min_size=1, max_size=32))
    want = granite(config, weights, ids)
    np.testing.assert_allclose(logits(folder / "model", ids, "auto"), want, rtol=1e-3, atol=1e-3 * max(1, np.abs(want).max()))
