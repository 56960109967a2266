"""What cannot be used gets one clear sentence, and loses nothing."""
import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tilewright
from tilewright import CheckpointError, DeviceError, PackageError
from tilewright.api import compile_for
from tilewright.compiler.device import shipped_devices
from tilewright.compiler.ir import GraphError
from tilewright.frontends.checkpoint import open_checkpoint
from tilewright.runtime.requirements import check_requirements

TRUTH = Path(__file__).parent / "data" / "truth"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint to break."""
    return Path(shutil.copytree(TRUTH / "llama", tmp_path / "model"))


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in {**config, **changes}.items() if v is not ...}))


def rename_tensor(folder: Path, old: str, new: str) -> None:
    raw = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + length])
    header[new] = header.pop(old)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length:])


BREAK = {
    r"no model family 'mamba'; known: .*llama, llama4": lambda f: edit(f, model_type="mamba"),
    r"names no model_type": lambda f: edit(f, model_type=...),
    r"config.json lacks num_hidden_layers": lambda f: edit(f, num_hidden_layers=...),
    r"lacks 1 of the \d+ tensors that the model needs, the first: model.layers.0.mlp.up_proj.weight":
        lambda f: rename_tensor(f, "model.layers.0.mlp.up_proj.weight", "other"),
    r"down_proj.weight has the shape \[64, 128\] but the config asks for \[64, 100\]|has the shape .* but the config asks for":
        lambda f: edit(f, intermediate_size=100),
    r"unknown rope_type 'spiral'; known: default": lambda f: edit(f, rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
    r"config.json": lambda f: (f / "config.json").write_text("{"),
    r"model.safetensors": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1000]),
    r"safetensors": lambda f: (f / "model.safetensors").unlink(),
}


@pytest.mark.parametrize("sentence", BREAK, ids=range(len(BREAK)))
def test_broken_checkpoints(folder, sentence):
    BREAK[sentence](folder)
    with pytest.raises(CheckpointError, match=sentence) as error:
        tilewright.load(folder, device="reference")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("context", [0, 513, -4])
def test_a_context_that_the_model_has_not(context):
    with pytest.raises(CheckpointError, match=f"a context of {context} is not possible: the model's own is 512"):
        tilewright.load(TRUTH / "llama", device="reference", context=context)


def test_unknown_dtypes():
    with pytest.raises(CheckpointError, match="unknown dtype 'f8'; known: f32, f16"):
        tilewright.load(TRUTH / "llama", device="reference", dtype="f8")


def test_an_adapter_that_is_not_there(gpu):
    with pytest.raises(DeviceError, match="no adapter named 'Voodoo 2'"):
        tilewright.load(TRUTH / "llama", device="Voodoo 2")


def test_a_feature_that_the_adapter_lacks():
    plain = next(d for d in shipped_devices() if d.name == "web-default")
    with pytest.raises(GraphError, match=r"no kernel runs .* on web-default: .*needs shader-f16"):
        compile_for(open_checkpoint(TRUTH / "llama"), plain, dtype="f16")


def test_a_package_asks_for_what_a_device_lacks(gpu):
    needs = {"name": "Imaginary 9000", "features": ["warp-drive"], "limits": {"max_buffer_size": 1 << 60}, "subgroup_size": 0}
    with pytest.raises(DeviceError, match=r"compiled for Imaginary 9000 and .* lacks the feature warp-drive; buffer size of 1,152,921,504"):
        check_requirements(needs, gpu)


def test_a_row_above_the_binding_limit():
    device = replace(next(d for d in shipped_devices() if d.name == "llvmpipe"))
    device = replace(device, limits={**device.limits, "max_storage_buffer_binding_size": 100})
    with pytest.raises(GraphError, match="binds at most 100"):
        compile_for(open_checkpoint(TRUTH / "llama"), device)


def test_too_little_memory(gpu):
    with pytest.raises(DeviceError, match=r"needs .* bytes"):
        gpu.buffer(1 << 50, "weights.0")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    file = tmp_path_factory.mktemp("packages") / "good.wgpu-llama"
    tilewright.compile(TRUTH / "llama", device="reference", context=64).save(file)
    return file.read_bytes()


def flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1:]


DAMAGE = {
    "is no .wgpu-llama file": lambda raw: b"not a package at all",
    "is no .wgpu-llama file, or only a piece of one": lambda raw: raw[:100],
    "is truncated: 'weights.0' ends at byte": lambda raw: raw[:-4096],
    "the checksum of 'weights.0' does not match": lambda raw: flip(raw, len(raw) - 300),
    "its header is damaged": lambda raw: flip(raw, 4),
    "is a 'gguf' file": lambda raw: raw.replace(b'"wgpu-llama"', b'"gguf"      '),
    "is version 9 of the format": lambda raw: raw.replace(b'"version": 1', b'"version": 9', 1),
    "its header lacks programs": lambda raw: raw.replace(b'"programs"', b'"programz"', 1),
    "is no .wgpu-llama file, or": lambda raw: b"",
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damaged_packages(package, tmp_path, sentence):
    file = tmp_path / "bad.wgpu-llama"
    file.write_bytes(DAMAGE[sentence](package))
    with pytest.raises(PackageError, match=sentence) as error:
        tilewright.load(file, device="reference")
    assert "\n" not in str(error.value)


def test_any_flipped_byte_is_noticed_or_harmless(package, tmp_path):
    """A header may be damaged anywhere; never a crash, and never other numbers."""
    good = tmp_path / "good.wgpu-llama"
    good.write_bytes(package)
    want = tilewright.load(good, device="reference").logits([1, 2, 3])
    rng, file = np.random.default_rng(0), tmp_path / "flipped.wgpu-llama"
    length = struct.unpack("<I", package[:4])[0] + 4
    for at in rng.integers(length, len(package), 20):
        file.write_bytes(flip(package, int(at)))
        try:
            got = tilewright.load(file, device="reference").logits([1, 2, 3])
        except PackageError:
            continue
        np.testing.assert_array_equal(got, want, err_msg="only padding between blobs may change unnoticed")


def test_other_options_than_the_package_was_compiled_with(package, tmp_path):
    file = tmp_path / "good.wgpu-llama"
    file.write_bytes(package)
    with pytest.raises(PackageError, match="was compiled with context 64, not 128: compile the model again"):
        tilewright.load(file, device="reference", context=128)


def test_a_package_that_cannot_be_written(tmp_path):
    made = tilewright.compile(TRUTH / "llama", device="reference", context=64)
    with pytest.raises(PackageError, match="cannot be written"):
        made.save(tmp_path / "no" / "such" / "folder" / "file.wgpu-llama")
    (tmp_path / "old.wgpu-llama").write_bytes(b"precious")
    with pytest.raises(ZeroDivisionError):
        replace(made, blob=lambda name: 1 // 0).save(tmp_path / "old.wgpu-llama")
    assert (tmp_path / "old.wgpu-llama").read_bytes() == b"precious", "a failed save leaves the old file"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old.wgpu-llama"]


def test_no_such_file(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere"):
        tilewright.load(tmp_path / "nowhere", device="reference")
