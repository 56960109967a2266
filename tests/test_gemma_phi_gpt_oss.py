"""Gemma 2 and 3, Phi-3 and gpt-oss: step by step with caches, from GGUF files and MXFP4 folders, and what their truth files leave out."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import tilewright
from gguf import GGMLQuantizationType as Kind
from gguf_gemma_phi_gpt_oss import write_family
from tilewright import CheckpointError
from tilewright.api import plan_for, record_of
from tilewright.compiler.assembly import Variant, build_package
from tilewright.compiler.pipeline import compile_graphs
from tilewright.frontends.checkpoint import Tensor, open_checkpoint
from tilewright.frontends.gguf_config import config_of
from tilewright.frontends.lower import Plan, lower
from tilewright.frontends.models import gemma2, gemma3, gpt_oss, phi3
from tilewright.frontends.mxfp4 import join_pairs
from tilewright.frontends.rope import rope_table
from tilewright.runtime.generate import Model
from tilewright.runtime.player import GpuPlayer
from tilewright.templates import KERNELS

DATA = Path(__file__).parent / "data"
FAMILIES = ("gemma2", "gemma3", "phi3", "gpt_oss")
VARIANTS = sorted(p.stem for p in (DATA / "configs").iterdir())
IDS = {name: np.load(DATA / "truth" / name / "truth.npz")["token_ids"].astype(np.int32) for name in FAMILIES}


def copy(name: str, to: Path, **changes: Any) -> Path:
    """The folder with exact frequencies, and other changes to its config (None leaves a key out)."""
    shutil.copytree(DATA / "truth" / name, to)
    config = {**json.loads((to / "config.json").read_text()), **changes}
    if config["rope_parameters"]:
        config["rope_parameters"] = {k: v for k, v in config["rope_parameters"].items() if k != "inv_freq_dtype"}
    (to / "config.json").write_text(json.dumps(config))
    return to


def logits(path: Path, ids: np.ndarray, device: str = "reference", **options: Any) -> np.ndarray:
    model = tilewright.load(path, device=device, **options)
    try:
        return model.logits(ids)
    finally:
        model.close()


# ---- with caches

def stepwise(model: Model, ids: np.ndarray, prompt: int) -> np.ndarray:
    """Logits from the prompt's last token on, the rest token by token."""
    for _, size in model.prefill_chunks(ids[:prompt]):
        pass
    model.player.play([("head_1", {"row": np.array([size - 1], np.int32)})])
    found = [model.player.read("logits", 1)[0].copy()]
    for at in range(prompt, len(ids)):
        model.player.play([("decode_1", {"token": ids[at:at + 1], "position": np.array([at], np.int32), "slot": np.zeros(1, np.int32)})])
        found.append(model.player.read("logits", 1)[0].copy())
    return np.stack(found)


@pytest.mark.parametrize("device", ["auto", "reference"])
@pytest.mark.parametrize("name", FAMILIES)
def test_token_by_token(name, device, gpu):
    """Windows of 20 in rings: 90 tokens wrap them. The first prompt is a single token."""
    truth = np.load(DATA / "truth" / name / "truth.npz")["logits"]
    model = tilewright.load(DATA / "truth" / name, device=device)
    for prompt in (1, 41) if device == "auto" else (1,):
        assert np.abs(stepwise(model, IDS[name], prompt) - truth[prompt - 1:]).max() <= 1e-3
    model.close()


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt_oss"])
def test_sliding_layers_keep_their_window_and_a_chunk(name):
    checkpoint = open_checkpoint(DATA / "truth" / name)
    states = lower(checkpoint, Plan(512, prefill=(16, 64))).graphs["decode_1"].role("state")
    for i, kind in enumerate(checkpoint.config["layer_types"]):
        assert states[f"layers.{i}.keys"].shape[2] == (512 if kind == "full_attention" else 20 + 64)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_a_batch_of_sequences(name, gpu):
    """Slots have caches of their own; prompts of different lengths, some longer than the window."""
    model = tilewright.load(DATA / "truth" / name, context=160, batch=3)
    prompts = [IDS[name][:n].tolist() for n in (3, 40, 27, 61)]
    found: list[list[int]] = [[] for _ in prompts]
    for index, token, _ in model.stream_many(prompts, max_tokens=12):
        found[index].append(token)
    for prompt, tokens in zip(prompts, found, strict=True):
        after = model.logits(prompt + tokens)[len(prompt) - 1:-1]
        best = np.sort(after, -1)
        clear = best[:, -1] - best[:, -2] > 1e-3
        assert clear.sum() >= 6
        np.testing.assert_array_equal(np.array(tokens)[clear], after.argmax(-1)[clear])
    model.close()


def wide(name: str, to: Path) -> Path:
    """The model with half as many heads of twice the size, since rounded caches take groups of 32."""
    copy(name, to, num_attention_heads=2, num_key_value_heads=1, head_dim=32)
    weights = {n: np.array(t.array()) for n, t in open_checkpoint(to).tensors.items()}
    save({n: a[:2] if n.endswith("sinks") else a for n, a in weights.items()}, to)
    return to


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Mean square error over mean square."""
    return float(((got - want) ** 2).sum() / (want**2).sum())


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_rounded_caches(name, tmp_path, gpu):
    path = wide(name, tmp_path / "wide")
    want = logits(path, IDS[name], cache="q8_0")
    assert 1e-5 <= difference(want, logits(path, IDS[name])) <= 3e-3
    model = tilewright.load(path, cache="q8_0")
    # a number within float error of the middle between two codes may be rounded either way: one such key changes what follows by 1e-6
    assert difference(model.logits(IDS[name]), want) <= 5e-6
    assert difference(stepwise(model, IDS[name], 30), want[29:]) <= 5e-6
    model.close()


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_half_precision(name, gpu):
    if "shader-f16" not in gpu.features:
        pytest.skip(f"{gpu.info.name} has no shader-f16")
    assert difference(logits(DATA / "truth" / name, IDS[name], "auto", dtype="f16"), np.load(DATA / "truth" / name / "truth.npz")["logits"]) <= 1e-4


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_weights_and_caches_in_pieces(name, gpu):
    device = record_of(gpu)
    device = replace(device, limits={**device.limits, "max_storage_buffer_binding_size": 16384})
    checkpoint = open_checkpoint(DATA / "truth" / name)
    low = lower(checkpoint, replace(plan_for(checkpoint, device, 256, "f32", "f32"), prefill=(8, 16)))
    package = build_package([Variant(compile_graphs(low.graphs, device, KERNELS), device, low.model)], low.leaf)
    assert any(s.endswith(".keys.1") for s in package.manifest["states"]) and any(".rows" in w for w in package.manifest["weights"])
    model = Model(package, GpuPlayer(package, gpu), None)
    assert np.abs(model.logits(IDS[name]) - np.load(DATA / "truth" / name / "truth.npz")["logits"]).max() <= 1e-3
    model.close()


# ---- what the truth files leave out

@pytest.mark.parametrize("device", ["auto", "reference"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(variant, device, tmp_path, gpu):
    """Every third row of what transformers computes in float32 for a truth folder with other values in its config: caps and clamps that
    bite, layers with another RoPE, LongRoPE beyond and within the old context on a part of every head."""
    saved, name = np.load(DATA / "configs" / f"{variant}.npz"), variant.split("-")[0]
    path = copy(name, tmp_path / name, **json.loads(str(saved["config"])))
    got = logits(path, IDS[name], device, context=128)
    assert np.abs(got[::3] - saved["logits"]).max() <= 1e-4


def test_gemma3_reads_old_configs(tmp_path):
    saved = np.load(DATA / "configs" / "gemma3-two-tables.npz")
    path = copy("gemma3", tmp_path / "old", rope_parameters=None, layer_types=None, sliding_window_pattern=2, final_logit_softcapping=3.0,
                rope_theta=1000000.0, rope_local_base_freq=10000.0, rope_scaling={"type": "linear", "factor": 8.0})
    assert np.abs(logits(path, IDS["gemma3"])[::3] - saved["logits"]).max() <= 1e-4


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_decoder_of_a_gemma3_that_sees_images(prefix, tmp_path):
    """Its config nests the decoder's, its tensors have a prefix, and there are others beside them."""
    path = copy("gemma3", tmp_path / "both")
    want, config = logits(path, IDS["gemma3"]), json.loads((path / "config.json").read_text())
    weights = {n.replace("model.", prefix, 1): np.array(t.array()) for n, t in open_checkpoint(path).tensors.items()}
    save({**weights, "vision_tower.vision_model.embeddings.patch_embedding.bias": np.zeros(3, np.float32)}, path)
    (path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config, "vision_config": {"hidden_size": 8}}))
    np.testing.assert_array_equal(logits(path, IDS["gemma3"]), want)


def test_the_context_decides_between_long_and_short_factors():
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0], "max_position_embeddings": 256,
               "original_max_position_embeddings": 64}
    short, long = (rope_table(factors, 4, n) for n in (64, 65))
    scale = (1 + np.log(4) / np.log(64)) ** 0.5
    np.testing.assert_allclose(short[1, :, 1], scale * np.sin([1.0, 0.01 / 2]), rtol=1e-6)
    np.testing.assert_allclose(long[1, :, 1], scale * np.sin([1 / 3, 0.01 / 4]), rtol=1e-6)


# ---- GGUF

def without_rounding(name: str, path: Path, **changes: Any) -> tuple[Path, np.ndarray]:
    """A folder with exact frequencies, and its logits."""
    folder = copy(name, path, **changes)
    return folder, logits(folder, IDS[name])


@pytest.mark.parametrize("kind", [Kind.F32, Kind.BF16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_gives_the_logits_of_its_folder(name, kind, tmp_path):
    folder, want = without_rounding(name, tmp_path / "folder")
    got = logits(write_family(folder, tmp_path / "model.gguf", kind), IDS[name])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(got[::3] - np.load(DATA / "truth" / name / "exact.npz")["logits"]).max() <= 1e-4


@pytest.mark.parametrize("variant", ["phi3-longrope", "gemma2-capped"])
def test_a_gguf_file_of_a_variant(variant, tmp_path):
    name, changes = variant.split("-")[0], json.loads(str(np.load(DATA / "configs" / f"{variant}.npz")["config"]))
    changes.pop("query_pre_attn_scalar", None)
    folder, want = without_rounding(name, tmp_path / "folder", **changes)
    np.testing.assert_allclose(logits(write_family(folder, tmp_path / "model.gguf", Kind.F32), IDS[name]), want, atol=1e-5)


def test_a_gguf_file_of_gemma3_with_layers_of_both_kinds(tmp_path):
    """Every second layer sees all positions, by a key; every sixth without it."""
    changes = json.loads(str(np.load(DATA / "configs" / "gemma3-two-tables.npz")["config"]))
    folder, want = without_rounding("gemma3", tmp_path / "folder", **changes)
    path = write_family(folder, tmp_path / "model.gguf", Kind.F32, attention__sliding_window_pattern=2)
    np.testing.assert_allclose(logits(path, IDS["gemma3"]), want, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_gguf_file(name, tmp_path, gpu):
    """Phi-3's fused rows are parts of a matrix of blocks."""
    folder = copy(name, tmp_path / "folder")
    path = write_family(folder, tmp_path / "model.gguf", Kind.Q8_0)
    want = logits(path, IDS[name][:40])
    rounded = logits(folder, IDS[name][:40], quantize="q8_0")
    assert difference(rounded, want) <= 1e-9
    np.testing.assert_allclose(logits(path, IDS[name][:40], "auto"), want, atol=1e-3)


def test_gguf_metadata_of_the_largest_gemmas(tmp_path):
    """The scale of scores is that of the hidden size over the heads in the 27B models alone."""
    for name, module, layers in (("gemma2", gemma2, 46), ("gemma3", gemma3, 62)):
        for count, scalar in ((layers, 16), (26, 24)):
            path = write_family(DATA / "truth" / name, tmp_path / "model.gguf", Kind.F32, block_count=count, attention__key_length=24,
                                attention__value_length=24)
            assert module.read(config_of(open_checkpoint(path))).query_pre_attn_scalar == scalar


# ---- MXFP4

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def pairs_of(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks, scales and the numbers that they stand for, of [..., n], by the specification."""
    groups = array.astype(np.float32).reshape(*array.shape[:-1], -1, 32)
    exponent = np.floor(np.log2(np.maximum(np.abs(groups).max(-1), 1e-30))) - 2
    codes = np.abs(groups[..., None] / 2.0 ** exponent[..., None, None] - FP4).argmin(-1).astype(np.uint8)
    numbers = (FP4[codes] * 2.0 ** exponent[..., None]).reshape(array.shape).astype(np.float32)
    return codes[..., 0::2] | codes[..., 1::2] << 4, (exponent + 127).astype(np.uint8), numbers


def save(tensors: dict[str, np.ndarray], folder: Path) -> None:
    """The writer takes arrays in order of memory."""
    safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, folder / "model.safetensors")


def packed_folder(to: Path) -> tuple[Path, Path]:
    """gpt-oss with its experts in MXFP4 pairs, as it is published, and with the numbers that these stand for."""
    plain, packed = copy("gpt_oss", to / "plain"), copy("gpt_oss", to / "packed", quantization_config={"quant_method": "mxfp4"})
    one, two = {}, {}
    for name, tensor in open_checkpoint(plain).tensors.items():
        array = np.array(tensor.array())
        if name.endswith("_proj") and ".experts." in name:
            blocks, scales, numbers = pairs_of(array.swapaxes(1, 2))
            one[name] = numbers.swapaxes(1, 2)
            two |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            one[name] = two[name] = array
    save(one, plain)
    save(two, packed)
    return plain, packed


def test_mxfp4_folders_are_read_as_they_are_stored(tmp_path, gpu):
    plain, packed = packed_folder(tmp_path)
    want = logits(plain, IDS["gpt_oss"])
    np.testing.assert_allclose(logits(packed, IDS["gpt_oss"]), want, atol=1e-5)
    model = tilewright.load(packed)
    stored = {n: w["layout"] for n, w in model.package.manifest["weights"].items() if ".experts." in n and "bias" not in n}
    assert set(stored) == {f"layers.{i}.experts.{n}" for i in range(4) for n in ("gate_up", "down")} and set(stored.values()) == {"mxfp4"}
    assert np.abs(model.logits(IDS["gpt_oss"]) - want).max() <= 1e-3
    assert np.abs(stepwise(model, IDS["gpt_oss"], 1) - want).max() <= 1e-3
    model.close()
    rounded = logits(packed, IDS["gpt_oss"], "auto", activations="q8")
    assert 0 < difference(rounded, want) <= 1e-3
    path = write_family(packed, tmp_path / "model.gguf", Kind.BF16)
    np.testing.assert_allclose(logits(path, IDS["gpt_oss"]), want, atol=1e-5)
    assert np.abs(logits(path, IDS["gpt_oss"], "auto") - want).max() <= 1e-3


def test_mxfp4_pairs_that_do_not_fit(tmp_path):
    _, packed = packed_folder(tmp_path)
    tensors = open_checkpoint(packed).tensors
    name = "model.layers.0.mlp.experts.down_proj"
    assert tensors[name].shape == (4, 64, 128) and tensors[name].format == "mxfp4" and f"{name}_blocks" not in tensors
    blocks, scales = (np.zeros(shape, np.uint8) for shape in ((2, 3, 16), (2, 4)))
    pair = {f"w_{n}": Tensor(f"w_{n}", a.shape, "u8", a.reshape(-1)) for n, a in (("blocks", blocks), ("scales", scales))}
    with pytest.raises(CheckpointError, match=r"w_blocks is u8\[2, 3, 16\] and w_scales u8\[2, 4\], but MXFP4 keeps"):
        join_pairs(pair)
    assert join_pairs({"w_scales": pair["w_scales"]}) == {"w_scales": pair["w_scales"]}, "half a pair is a tensor like others"
    with pytest.raises(CheckpointError, match=r"layers\.0\.experts\.gate_up is stored in mxfp4 already"):
        tilewright.load(packed, device="reference", quantize="q4_0")


# ---- values that no model file is written for

@pytest.mark.parametrize(("name", "changes", "sentence"), [
    ("gemma2", {"hidden_activation": "relu"}, "config.json: hidden_activation is 'relu', which no gemma2 here takes; known: 'gelu_pytorch_tanh'"),
    ("gemma2", {"layer_types": ["full_attention", "chunked_attention"] * 2}, "layer_types is 'chunked_attention', which no gemma2 here takes; known"),
    ("gemma2", {"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries for 4 layers"),
    ("gemma3", {"attention_bias": True}, "attention_bias is True, which no gemma3_text here takes; known: False"),
    ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("phi3", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("phi3", {"rope_parameters": {"rope_type": "dynamic"}}, "unknown rope_type 'dynamic'; known: default, linear, llama3, yarn, longrope"),
    ("phi3", {"rope_parameters": {"rope_type": "longrope", "long_factor": [1.0] * 8}}, "rope_type 'longrope' needs short_factor among the rope_par"),
    ("phi3", {"rope_parameters": {"rope_type": "su", "short_factor": [1.0] * 3, "long_factor": [1.0] * 3}},
     "rope_type 'longrope' has 3 factors where 16 rotating elements need 8"),
    ("gpt_oss", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' needs original_max_position_embeddings"),
    ("gpt_oss", {"quantization_config": {"quant_method": "fp8"}}, "quant_method is 'fp8', which no gpt_oss here takes; known: 'mxfp4'"),
    ("gpt_oss", {"num_local_experts": 8}, r"router.weight has the shape \[4, 64\] but the config asks for \[8, 64\]"),
])
def test_configs_that_are_not_read(name, changes, sentence, tmp_path):
    with pytest.raises(CheckpointError, match=sentence):
        lower(open_checkpoint(copy(name, tmp_path / name, **changes)), Plan(64))


def test_defaults():
    least = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8, "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2,
             "num_local_experts": 4, "num_experts_per_tok": 2}
    two, three, phi, oss = (module.read(least) for module in (gemma2, gemma3, phi3, gpt_oss))
    full = [[i for i, kind in enumerate(c.layer_types) if kind == "full_attention"] for c in (two, three, oss)]
    assert full == [[1, 3, 5], [5], [1, 3, 5]]
    assert (two.attn_logit_softcapping, two.final_logit_softcapping, three.attn_logit_softcapping) == (50, 30, 0)
    assert gemma2.read({**least, "attn_logit_softcapping": None}).attn_logit_softcapping == 0
    assert (three.rope_parameters["rope_theta"], three.sliding_rope_parameters["rope_theta"]) == (1e6, 1e4)
    assert gemma3.read({k: v for k, v in least.items() if k not in gemma3.USUAL}).num_attention_heads == 8
    assert phi.sliding_window == 0 and phi.rms_norm_eps == 1e-5
    assert oss.rope_parameters["factor"] == 32 and not oss.rope_parameters["truncate"] and oss.sliding_window == 128
