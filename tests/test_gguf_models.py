"""Models from GGUF files and in quantized formats, against the Hugging Face folders that they come from and against llama.cpp."""
from __future__ import annotations

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import tilewright
from gguf import GGMLQuantizationType as Kind
from gguf_files import write_gguf
from tilewright import CheckpointError, PackageError
from tilewright.__main__ import main
from tilewright.compiler.layouts import LAYOUTS
from tilewright.frontends.checkpoint import Checkpoint, Tensor, open_checkpoint
from tilewright.frontends.gguf_config import config_of
from tilewright.frontends.lower import Plan, lower
from tilewright.frontends.models import family, llama4
from tilewright.frontends.quantize import Storage, rules_of

ROOT = Path(__file__).parent.parent
TRUTH = ROOT / "tests" / "data" / "truth"
TALES = {"tales-llama4": ROOT / "frontends" / "demo" / "tales-llama4", "tales-llama": ROOT / "tests" / "data" / "models" / "tales-llama"}
FILES = Path(os.environ["TILEWRIGHT_MODELS"]) if "TILEWRIGHT_MODELS" in os.environ else None
IDS = np.load(ROOT / "tests" / "data" / "models" / "tales-llama4.npz")["token_ids"]


def logits(path: Path, ids: np.ndarray, device: str = "reference", **options) -> np.ndarray:
    model = tilewright.load(path, device=device, **options)
    try:
        return model.logits(ids)
    finally:
        model.close()


def difference(got: np.ndarray, want: np.ndarray) -> float:
    """Mean square error over mean square."""
    return float(((got.astype(np.float64) - want) ** 2).mean() / (want.astype(np.float64) ** 2).mean())


FAMILIES = ("mistral-sliding", "mixtral", "qwen2", "qwen3", "qwen3_moe", "smollm3", "olmo2")


# The no-qk-norm one cannot be written: GGUF says so by a number of experts.
@pytest.mark.parametrize(("name", "kind"), [*((n, k) for n in ("llama", "llama3-scaled-tied", "llama4", "llama4-top2-dense-mix")
                                              for k in (Kind.F32, Kind.BF16)), *((n, Kind.F32) for n in FAMILIES)])
def test_a_file_of_floats_gives_the_logits_of_its_folder(tmp_path, name, kind):
    truth = np.load(TRUTH / name / "truth.npz")
    path = write_gguf(TRUTH / name, tmp_path / "model.gguf", kind)
    got = logits(path, truth["token_ids"])
    np.testing.assert_allclose(got, logits(TRUTH / name, truth["token_ids"]), atol=1e-4)
    assert np.abs(got - truth["logits"]).max() <= 1e-3


@pytest.mark.parametrize("name", ["llama-biases", "mistral-wide-heads", "mixtral-sliding", "olmo2-bias"])
def test_a_file_of_the_less_usual_ways(tmp_path, name):
    """Of what GGUF has keys or tensors for: biases, whose rows are permuted too, wide heads, tied embeddings, windows of all layers."""
    folder = ROOT / "tests" / "data" / "variants" / name
    truth = np.load(folder / "truth.npz")
    assert np.abs(logits(write_gguf(folder, tmp_path / "model.gguf", Kind.F32), truth["token_ids"]) - truth["logits"]).max() <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_file_of_every_family(tmp_path, gpu, name):
    path, ids = write_gguf(TRUTH / name, tmp_path / "model.gguf", Kind.Q8_0), np.load(TRUTH / name / "truth.npz")["token_ids"]
    got = logits(path, ids)
    assert difference(logits(TRUTH / name, ids, quantize="q8_0"), got) <= 1e-9
    assert difference(logits(TRUTH / name, ids), got) >= 1e-6, "quantizing changed nothing"
    assert difference(logits(path, ids, "auto"), got) <= 1e-9


@pytest.mark.parametrize("name", TALES)
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0])
def test_a_quantized_file_gives_the_logits_of_the_folder_quantized(tmp_path, name, kind):
    path = write_gguf(TALES[name], tmp_path / "model.gguf", kind)
    options = {"context": 512}
    got = logits(path, IDS[:32], **options)
    assert difference(logits(TALES[name], IDS[:32], quantize=kind.name.lower(), **options), got) <= 1e-9
    assert difference(logits(TALES[name], IDS[:32], **options), got) >= 1e-6, "quantizing changed nothing"


def test_a_quantized_file_on_a_gpu(tmp_path, gpu):
    path = write_gguf(TRUTH / "llama4", tmp_path / "model.gguf", Kind.Q4_0)
    ids = np.load(TRUTH / "llama4" / "truth.npz")["token_ids"]
    package = tilewright.compile(path)
    assert {w["layout"] for n, w in package.manifest["weights"].items() if "experts" in n or n in ("embedding", "head")} == {"q4_0"}
    assert difference(logits(path, ids, "auto"), logits(path, ids)) <= 1e-9


def test_formats_that_only_files_have(tmp_path, monkeypatch):
    """A format without a layout is decoded; one that nothing decodes is named."""
    path = write_gguf(TRUTH / "llama", tmp_path / "model.gguf", Kind.Q5_0)
    want = logits(path, IDS[:8] % 256)
    monkeypatch.setattr("tilewright.frontends.quantize.LAYOUTS", {})
    np.testing.assert_allclose(logits(path, IDS[:8] % 256), want, atol=1e-5)
    monkeypatch.setattr("tilewright.frontends.quantize.FORMATS", {"q8_0": None})
    with pytest.raises(CheckpointError, match=r"embedding is stored in q5_0, which is not read \(q8_0 are\)"):
        tilewright.load(path, device="reference")


def test_a_converted_model_keeps_its_blocks_when_it_is_compiled(tmp_path, gpu):
    """The numbers of q5_k would not become the same blocks again."""
    package = tilewright.compile(TALES["tales-llama"], device="reference", context=512, quantize="q5_k,*.down=q4_0,*.v=mxfp4")
    package.save(tmp_path / "model.wgpu-llama")
    assert difference(logits(tmp_path / "model.wgpu-llama", IDS[:16], "auto"), logits(tmp_path / "model.wgpu-llama", IDS[:16])) <= 1e-9
    for name, weight in package.manifest["weights"].items():
        if weight["layout"] not in ("row", "bf16"):
            layout = LAYOUTS[weight["layout"]]
            again = layout.pack(package.stored(name))
            np.testing.assert_array_equal(layout.unpack(again, tuple(weight["shape"])), package.weight(name))


# ---- files that llama.cpp has read

@pytest.mark.parametrize("name", TALES)
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_files_that_llama_cpp_accepts(tmp_path, gpu, name, kind):
    """Activations are f32 here, so the logits are those of the decoded weights; llama.cpp's own carry its int8 activations' error."""
    if FILES is None:
        pytest.skip("TILEWRIGHT_MODELS names no folder of GGUF files that llama.cpp has read")
    path, truth = FILES / f"{name}-{kind}.gguf", np.load(FILES / f"{name}-llamacpp.npz")
    ids = truth["token_ids"][:96]
    at = truth["positions"] < len(ids)
    decoded = logits(_decoded(path, tmp_path / "decoded.gguf"), ids, context=512)
    got = logits(path, ids, "auto", context=512)
    assert difference(got, decoded) <= 1e-6
    theirs, got = truth[f"logits_{kind}"][at], got[truth["positions"][at]]
    assert difference(got, theirs) <= {"q8_0": 1e-4, "q4_0": 1e-3}[kind]
    assert difference(got, theirs) < difference(truth["logits_f32"][at], theirs) or kind == "q8_0"


def _decoded(path: Path, to: Path) -> Path:
    """The file with its matrices decoded by the public library."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(to, str(reader.fields["general.architecture"].contents()))
    for key, value in reader.fields.items():
        if not key.startswith(("GGUF.", "general.", "tokenizer.")):
            writer.add_key_value(key, value.contents(), value.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


# ---- metadata

def metadata(arch: str, **changes) -> dict:
    """What config_of gives for metadata of 12 layers."""
    given = {"block_count": 12, "context_length": 4096, "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2,
             "attention.layer_norm_rms_epsilon": 1e-5, "feed_forward_length": 256}
    if arch == "llama4":
        given |= {"expert_feed_forward_length": 128, "expert_count": 16, "expert_used_count": 1, "interleave_moe_layer_step": 2}
    given |= {k.replace("__", "."): v for k, v in changes.items()}
    tensors = {n: Tensor(n, shape, "f32", np.ones(np.prod(shape), np.float32).view(np.uint8))
               for n, shape in (("token_embd.weight", (100, 64)), ("output.weight", (100, 64)), ("rope_freqs.weight", (8,)))}
    full = {k if k.startswith(("general.", "tilewright.")) else f"{arch}.{k}": v for k, v in given.items() if v is not None}
    return config_of(Checkpoint(Path("model.gguf"), "gguf", {"general.architecture": arch, **full}, tensors, None))


def test_llama_metadata():
    config = metadata("llama", attention__head_count_kv=[2] * 12, rope__freq_base=5e5)
    assert (config["vocab_size"], config["head_dim"], config["num_key_value_heads"], config["tie_word_embeddings"]) == (100, 16, 2, False)
    assert config["rope_interleaved"] and config["rope_parameters"]["rope_theta"] == 5e5 and config["rope_parameters"]["divisors"] == [1.0] * 8
    assert metadata("llama", attention__head_count_kv=None)["num_key_value_heads"] == 4
    assert metadata("llama", rope__scaling__type="linear", rope__scaling__factor=4.0)["rope_parameters"]["factor"] == 4
    assert metadata("llama", rope__scaling__type="none")["rope_parameters"]["rope_type"] == "default"


def test_metadata_of_relatives():
    """What goes by llama's name, what other architectures name, and what llama.cpp has as constants."""
    mixtral = metadata("llama", expert_count=8, expert_used_count=2)
    assert (mixtral["model_type"], mixtral["num_local_experts"], mixtral["num_experts_per_tok"], mixtral["sliding_window"]) == ("mixtral", 8, 2, None)
    mistral = metadata("llama", attention__sliding_window=64)
    assert (mistral["model_type"], mistral["sliding_window"]) == ("mistral", 64)
    moe = metadata("qwen3moe", expert_count=16, expert_used_count=4, expert_feed_forward_length=32)
    assert (moe["moe_intermediate_size"], moe["norm_topk_prob"], moe["mlp_only_layers"], moe.get("rope_interleaved")) == (32, True, [], None)
    smollm = family("smollm3").read(metadata("smollm3"))
    assert smollm.rope_interleaved and [i for i in range(12) if not smollm.uses_rope[i]] == [3, 7, 11]
    with pytest.raises(CheckpointError, match="an olmo2 with a sliding window of 4096 is OLMo 3, which is not read"):
        metadata("olmo2", attention__sliding_window=4096)


def test_llama4_metadata_without_our_keys_has_the_constants_of_llama_cpp():
    config = llama4.read(metadata("llama4"))
    assert (config.intermediate_size, config.intermediate_size_mlp) == (128, 256)
    assert (config.attention_chunk_size, config.floor_scale, config.attn_scale) == (8192, 8192, 0.1)
    assert [i for i in range(12) if not config.uses_rope[i]] == [3, 7, 11] and config.moe_layers == (1, 3, 5, 7, 9, 11)
    assert config.layer_types[2:4] == ("chunked_attention", "full_attention") and config.use_qk_norm
    assert not llama4.read(metadata("llama4", expert_count=128)).use_qk_norm
    assert llama4.read(metadata("llama4", tilewright__attention__chunk_size=256)).attention_chunk_size == 256
    plain = llama4.read(metadata("llama4", attention__sliding_window=0, interleave_moe_layer_step=0, expert_count=0, expert_used_count=0))
    assert all(plain.uses_rope) and set(plain.layer_types) == {"full_attention"} and plain.moe_layers == ()


@pytest.mark.parametrize(("arch", "changes", "sentence"), [
    ("llama", {"attention__head_count_kv": [2, 1] * 6}, r"head_count_kv differs between layers \(\[2, 1, 2, 1\] and on\)"),
    ("llama", {"block_count": None}, "model.gguf lacks the key llama.block_count; convert the model again"),
    ("llama", {"block_count": 0}, "llama.block_count is 0, not a whole number above 0"),
    ("llama", {"feed_forward_length": "wide"}, "llama.feed_forward_length is 'wide', not a number"),
    ("llama", {"rope__dimension_count": 24}, "rope.dimension_count is 24 where heads have 16 elements"),
    ("llama", {"attention__key_length": 32}, "rope_freqs.weight has the shape .* but heads of 32 rotating elements need 16 divisors"),
    ("llama", {"expert_count": 8}, "model.gguf lacks the key llama.expert_used_count; convert the model again"),
    ("llama4", {"interleave_moe_layer_step": None}, "lacks the key llama4.interleave_moe_layer_step"),
    ("qwen9", {}, "no model family 'qwen9'; known: gemma2, .*llama, llama4"),
])
def test_metadata_that_is_not_read(arch, changes, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        metadata(arch, **changes)


def test_files_that_are_no_models(tmp_path):
    checkpoint = open_checkpoint(write_gguf(TRUTH / "llama", tmp_path / "model.gguf", Kind.F32, llama__rope__scaling__type="ntk"))
    with pytest.raises(CheckpointError, match="unknown rope_type 'ntk'"):
        lower(checkpoint, Plan(64))
    bare = Checkpoint(Path("x.gguf"), "gguf", checkpoint.config, {}, None)
    with pytest.raises(CheckpointError, match=r"x\.gguf holds no token_embd\.weight, so it is no whole model"):
        lower(bare, Plan(64))
    with pytest.raises(CheckpointError, match=r"names no general\.architecture"):
        lower(Checkpoint(Path("x.gguf"), "gguf", {}, {}, None), Plan(64))
    few = {n: t for n, t in checkpoint.tensors.items() if "ffn_up" not in n}
    with pytest.raises(CheckpointError, match=r"lacks 4 of the \d+ tensors that the model needs, the first: blk\.0\.ffn_up\.weight"):
        lower(Checkpoint(Path("x.gguf"), "gguf", {k: v for k, v in checkpoint.config.items() if "ntk" not in str(v)}, few, None), Plan(64))


# ---- quantize

def layouts(quantize, path: Path = TRUTH / "llama4") -> dict[str, str]:
    weights = tilewright.compile(path, device="reference", quantize=quantize).manifest["weights"]
    return {name: w["layout"] if w["layout"] != "row" else w["dtype"] for name, w in weights.items()}


def test_a_format_for_everything_but_routers_and_vectors():
    found = layouts("q8_0")
    assert found["embedding"] == found["head"] == found["layers.0.q_k_v"] == found["layers.0.experts.gate_up"] == found["layers.0.down"] == "q8_0"
    assert found["layers.0.router"] == found["layers.0.attn_norm"] == found["rope"] == found["norm"] == "f32"


@pytest.mark.parametrize("rules", ["q4_0,embedding=q8_0,*.1.*=f16", {"embedding": "q8_0", "*.1.*": "f16", "*": "q4_0"}])
def test_rules_for_some_names(rules):
    found = layouts(rules)
    assert (found["embedding"], found["layers.0.o"], found["layers.1.o"], found["layers.0.router"]) == ("q8_0", "q4_0", "f16", "f32")
    assert found["layers.1.router"] == "f16", "a pattern that means it may have the router"


def test_only_some_names():
    found = layouts("head=q8_0")
    assert (found["head"], found["embedding"], found["layers.0.o"]) == ("q8_0", "bf16", "bf16")
    assert rules_of(None) == []


def test_unlike_formats_are_not_joined():
    found = layouts("q4_0,*.v=q8_0")
    assert (found["layers.0.q_k"], found["layers.0.v"]) == ("q4_0", "q8_0")


def test_rows_that_do_not_divide_take_another_format(capsys):
    assert layouts("q4_k", TRUTH / "llama")["layers.0.q_k_v"] == "q5_0" and layouts("q6_k", TRUTH / "llama")["head"] == "q8_0"
    told = capsys.readouterr().err.splitlines()
    assert told == [f"tilewright: {count} weights are stored in {kind}, since their rows of {columns} do not divide into {asked}'s groups of 256"
                    for asked, kind in (("q4_k", "q5_0"), ("q6_k", "q8_0")) for count, columns in ((26, 64), (4, 128))]
    storage = Storage("mxfp4", ["w"])
    assert storage.layout("w", "f32", 40) == "row" and storage.notes == [
        "1 weights are stored in f32, since their rows of 40 do not divide into mxfp4's groups of 32"]


@pytest.mark.parametrize(("rules", "sentence"), [
    ("q9_0", "unknown weight format 'q9_0'; known: f32, bf16, f16, q8_0, q4_0"),
    ({"head": "int3"}, "unknown weight format 'int3'"),
    ("q8_0,embeding=f16", r"no weight is named 'embeding'; the weights are embedding, norm, head, layers\.\*\.attn_norm"),
])
def test_rules_that_make_no_sense(rules, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        layouts(rules)


def test_quantizing_twice(tmp_path):
    path = write_gguf(TRUTH / "llama", tmp_path / "model.gguf", Kind.Q8_0)
    with pytest.raises(CheckpointError, match="embedding is stored in q8_0 already"):
        tilewright.load(path, device="reference", quantize="q4_0")
    tilewright.compile(path, device="reference").save(tmp_path / "model.wgpu-llama")
    with pytest.raises(PackageError, match="whose weights have their formats: compile the model again with quantize"):
        tilewright.load(tmp_path / "model.wgpu-llama", device="reference", quantize="q4_0")


def test_the_commands(tmp_path, capsys):
    """convert packs without compiling, and inspect tells formats, bits and bytes."""
    def run(*arguments: object) -> tuple[str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        assert left.value.code == 0
        return capsys.readouterr()
    path = tmp_path / "model.wgpu-llama"
    assert "not compiled" in run("convert", TRUTH / "llama", "-o", path, "--quantize", "q4_0,embedding=q8_0")[1]
    told = {t["name"]: (t["format"], t["bits"], t["bytes"]) for t in json.loads(run("inspect", path, "--json")[0])["tensors"]}
    assert (told["embedding"], told["layers.0.o"], told["norm"]) == (("q8_0", 8.5, 17408), ("q4_0", 4.5, 2304), ("f32", 32, 256))
    shown = run("inspect", path, "--tensors")[0]
    assert "bits a weight" in shown and "256 x 64" in shown
    model = write_gguf(TRUTH / "llama", tmp_path / "model.gguf", Kind.Q8_0)
    run("compile", model, "-o", path, "--device", "web-default")
    assert "matvec" in run("inspect", path)[0]
