"""Model families in detail: single tokens against the truth, keys of config.json as transformers takes them, rings, and refusals."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright import CheckpointError
from tilewright.api import plan_for, record_of
from tilewright.compiler.assembly import Variant, build_package
from tilewright.compiler.caches import caches, spans
from tilewright.compiler.device import REFERENCE
from tilewright.compiler.pipeline import compile_graphs
from tilewright.compiler.report import describe, tables
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.frontends.lower import lower
from tilewright.frontends.models import family
from tilewright.runtime.generate import Model
from tilewright.runtime.player import GpuPlayer, ReferencePlayer
from tilewright.templates import KERNELS

DATA = Path(__file__).parent / "data"
TRUTH, VARIANTS = DATA / "truth", DATA / "variants"
DEMO = Path(tilewright.__file__).parent / "frontends" / "demo" / "tales-llama4"
DEVICES = ("auto", "reference")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def decoded(model: Model, ids: np.ndarray, start: int = 0) -> np.ndarray:
    """Logits of the tokens from `start` on, one decode step each."""
    got = []
    for at in range(start, len(ids)):
        model.player.play([("decode_1", {"token": ids[at:at + 1], "position": np.array([at], np.int32), "slot": np.zeros(1, np.int32)})])
        got.append(model.player.read("logits", 1)[0].copy())
    return np.stack(got)


def edited(folder: Path, to: Path, **changes) -> Path:
    """A copy of a checkpoint with other entries in its config.json; `...` leaves one out."""
    shutil.copytree(folder, to)
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    (to / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return to


def logits(path: Path, ids: np.ndarray, device: str = "reference") -> np.ndarray:
    model = tilewright.load(path, device=device)
    try:
        return model.logits(ids)
    finally:
        model.close()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", names(TRUTH))
def test_token_by_token(name, device, gpu):
    truth = np.load(TRUTH / name / "truth.npz")
    model = tilewright.load(TRUTH / name, device=device)
    try:
        assert np.abs(decoded(model, truth["token_ids"].astype(np.int32)) - truth["logits"]).max() <= 1e-3
    finally:
        model.close()


# ---- config.json

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", names(VARIANTS))
def test_the_less_usual_ways(name, device, gpu):
    """Biases, tied embeddings, head sizes of their own, windows by layer, sparse steps: against transformers (data/make_variants.py)."""
    truth = np.load(VARIANTS / name / "truth.npz")
    assert np.abs(logits(VARIANTS / name, truth["token_ids"], device) - truth["logits"]).max() <= 1e-4


# What transformers fills in when it saves a config, so that files which lack it have to mean the same.
@pytest.mark.parametrize(("name", "changes"), [
    ("qwen2-sliding", {"layer_types": ...}),
    ("smollm3-sliding", {"layer_types": ..., "no_rope_layers": ..., "rope_parameters": ..., "tie_word_embeddings": ...}),
    ("smollm3-sliding", {"layer_types": None, "no_rope_layers": None, "rope_parameters": None, "rope_theta": 2e6}),
    ("qwen3_moe-sparse", {"num_local_experts": ..., "num_experts": 5, "mlp_only_layers": None, "rope_parameters": ..., "rope_theta": 1e4}),
    ("qwen3_moe-sparse", {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]}),
    ("mistral-wide-heads", {"rope_parameters": ..., "rope_theta": 1e6, "rope_scaling": None}),
    ("olmo2-bias", {"rms_norm_eps": ..., "head_dim": None}),
])
def test_what_missing_keys_mean(tmp_path, name, changes):
    truth = np.load(VARIANTS / name / "truth.npz")
    got = logits(edited(VARIANTS / name, tmp_path / name, **changes), truth["token_ids"])
    assert np.abs(got - truth["logits"]).max() <= 1e-4


@pytest.mark.parametrize(("name", "changes"), [
    ("qwen2-sliding", {"layer_types": ..., "max_window_layers": 3}), ("qwen2-sliding", {"layer_types": ..., "use_sliding_window": False}),
    ("qwen2-sliding", {"sliding_window": 7}), ("qwen3-layer-types", {"layer_types": ["full_attention"] * 3}),
    ("mixtral-sliding", {"sliding_window": None}), ("mistral-wide-heads", {"sliding_window": 8}), ("qwen3_moe-sparse", {"norm_topk_prob": True}),
    ("qwen3_moe-sparse", {"use_sliding_window": False}), ("smollm3-sliding", {"no_rope_layers": [1, 1, 1]}),
    ("smollm3-sliding", {"layer_types": ..., "use_sliding_window": False}), ("llama-biases", {"attention_bias": False}),
    ("llama-biases", {"mlp_bias": False}),
])
def test_every_key_counts(tmp_path, name, changes):
    """The same checkpoint with another config gives other logits: none of the keys above is read over."""
    truth = np.load(VARIANTS / name / "truth.npz")
    got = logits(edited(VARIANTS / name, tmp_path / name, **changes), truth["token_ids"])
    assert np.abs(got - truth["logits"]).max() >= 1e-3


def test_usual_values():
    """Those of the families' own configuration classes, for keys that are not there."""
    sizes = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 4, "num_attention_heads": 16, "hidden_act": None}
    found = {name: family(name).read(sizes) for name in ("mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3", "olmo2")}
    assert {n: c.num_key_value_heads for n, c in found.items()} == {
        "mistral": 8, "mixtral": 8, "qwen2": 32, "qwen3": 32, "qwen3_moe": 4, "smollm3": 4, "olmo2": 16}
    assert {n: c.windows for n, c in found.items() if any(c.windows)} == {"mistral": (4096,) * 4}
    assert {n: c.head_dim for n, c in found.items() if c.head_dim != 4} == {"qwen3": 128}
    thetas = {n: c.rope_parameters["rope_theta"] for n, c in found.items()}
    assert {n: theta for n, theta in thetas.items() if theta != 1e4} == {"mixtral": 1e6, "smollm3": 2e6}
    assert [n for n, c in found.items() if c.rms_norm_eps == 1e-5] == ["mixtral", "olmo2"]
    assert [n for n, c in found.items() if c.tie_word_embeddings] == ["smollm3"]
    assert found["smollm3"].uses_rope == (True, True, True, False) and found["qwen3_moe"].moe_layers == (0, 1, 2, 3)


@pytest.mark.parametrize(("name", "changes", "sentence"), [
    ("llama-biases", {"hidden_act": "gelu"}, "config.json: hidden_act is 'gelu', which no llama here takes; known: 'silu', 'swish'"),
    ("qwen2-sliding", {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
     "config.json: layer_types has 'linear_attention', but qwen2 is known with full_attention and sliding_attention only"),
    ("qwen2-sliding", {"layer_types": ["full_attention"]}, "config.json: layer_types has 1 entries for 3 layers"),
    ("qwen3-layer-types", {"use_sliding_window": False},
     "layer_types has 'sliding_attention', but use_sliding_window and sliding_window give no window"),
    ("smollm3-sliding", {"no_rope_layers": [1]}, "config.json: no_rope_layers has 1 entries for 3 layers"),
    ("mixtral-sliding", {"num_local_experts": 4}, "lacks 9 of the 32 tensors .* the first: model.layers.0.block_sparse_moe.experts.3.w1.weight"),
    ("mixtral-sliding", {"num_local_experts": 2}, r"gate.weight has the shape \[3, 32\] but the config asks for \[2, 32\]"),
    ("mistral-wide-heads", {"rope_parameters": {"rope_type": "spiral"}}, "unknown rope_type 'spiral'"),
    ("qwen3_moe-sparse", {"quantization_config": {"quant_method": "fp8"}}, "config.json: the weights are quantized by fp8, which is not read"),
    ("olmo2-bias", {"num_attention_heads": "four"}, "num_attention_heads is 'four', not a whole number above 0"),
    ("olmo2-bias", {"num_hidden_layers": 0}, "num_hidden_layers is 0, not a whole number above 0"),
])
def test_what_is_not_read(tmp_path, name, changes, sentence):
    with pytest.raises(CheckpointError, match=sentence) as error:
        tilewright.load(edited(VARIANTS / name, tmp_path / name, **changes), device="reference")
    assert "\n" not in str(error.value)


def test_experts_of_unlike_shapes(tmp_path):
    """A stack says which tensor does not fit, where the shape of the whole could not."""
    checkpoint = open_checkpoint(VARIANTS / "mixtral-sliding")
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    odd = replace(checkpoint.tensors[name], shape=(32, 48))
    with pytest.raises(CheckpointError, match=r"experts.2.w3.weight is bf16\[32, 48\], but it is stacked with .*experts.0.w3.weight, bf16\[48, 32\]"):
        lower(replace(checkpoint, tensors={**checkpoint.tensors, name: odd}), plan_for(checkpoint, REFERENCE, None, "f32", "f32"))


# ---- caches of windows

def small(path: Path, gpu) -> Model:
    """A model with prefill chunks of 4 and 8 rows, on a GPU or (None) in numpy."""
    device, checkpoint = record_of(gpu), open_checkpoint(path)
    low = lower(checkpoint, replace(plan_for(checkpoint, device, 120, "f32", "f32"), prefill=(4, 8)))
    package = build_package([Variant(compile_graphs(low.graphs, device, KERNELS if gpu else {}), device, low.model)], low.leaf)
    return Model(package, GpuPlayer(package, gpu) if gpu else ReferencePlayer(package), None)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "window"), [("mistral-sliding", 20), ("llama4", 24)])
def test_rings_that_wrap(name, window, device, gpu):
    """Windowed layers keep their window and the largest chunk, 90 tokens go round several times, in chunks and one by one."""
    truth = np.load(TRUTH / name / "truth.npz")
    ids = truth["token_ids"].astype(np.int32)
    model = small(TRUTH / name, gpu if device == "auto" else None)
    kept = {c["mask"]: (c["window"], c["positions"]) for c in caches(model.package)}
    assert kept.pop("full", (0, 120)) == (0, 120) and list(kept.values()) == [(window, window + 8)]
    assert np.abs(model.logits(ids) - truth["logits"]).max() <= 1e-3
    for _ in model.prefill_chunks(ids[:51]):
        pass
    assert np.abs(decoded(model, ids, 51) - truth["logits"][51:]).max() <= 1e-3
    model.close()


def test_inspect_tells_what_windows_save():
    def told(context: int) -> dict:
        return describe(tilewright.compile(DEMO, device="reference", context=context))
    short, long = told(1024), told(2048)
    assert [(c["layers"], c["mask"], c["window"], c["positions"]) for c in long["caches"]] == [
        ([0, 1, 2, 4, 5, 6], "chunked", 256, 768), ([3, 7], "full", 0, 2048)]
    assert [c["bytes"] for c in long["caches"]] == [6 * 2 * 4 * 2 * 768 * 32, 2 * 2 * 4 * 2 * 2048 * 32]
    assert [c["bytes"] for c in short["caches"]] == [6 * 2 * 4 * 2 * 768 * 32, 2 * 2 * 4 * 2 * 1024 * 32], "a longer context costs full layers alone"
    table = next(rows for title, _, rows in tables(long) if title == "caches")
    assert table == [("0-2, 4-6", "chunked, 256 keys", "768", "2.36 MB"), ("3, 7", "full", "2,048", "2.1 MB")]


def test_caches_in_pieces_and_in_split_attention(gpu):
    """Passes cut caches by heads and attention by keys; the layers stay the layers."""
    device = record_of(gpu)
    device = replace(device, limits={**device.limits, "max_storage_buffer_binding_size": 32768})
    checkpoint = open_checkpoint(TRUTH / "llama4")
    low = lower(checkpoint, replace(plan_for(checkpoint, device, 512, "f32", "f32"), prefill=(8, 16)))
    package = build_package([Variant(compile_graphs(low.graphs, device, KERNELS), device, low.model)], low.leaf)
    assert any(n.endswith(".keys.1") for n in package.manifest["states"])
    found = caches(package)
    assert sum(len(c["layers"]) for c in found) == low.model["layers"]
    assert sum(c["bytes"] for c in found) == sum(s["bytes"] for s in describe(package)["states"] if s["name"].startswith("layers."))


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 4, 6, 7], "0-2, 4, 6-7"), ([1, 3], "1, 3")])
def test_spans(numbers, text):
    assert spans(numbers) == text
