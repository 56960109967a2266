"""Hugging Face folders: what is read, and the sentence for everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tilewright.frontends.checkpoint import CheckpointError, Tensor, open_checkpoint, read_tokenizer
from tilewright.frontends.safetensors import read_file

TOKENIZER = Path(__file__).parent / "data" / "tales-tokenizer.json"
WEIGHTS: dict[str, np.ndarray] = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=np.float16),
    "c": np.array([1, 2], np.int32),
    "scalar": np.array(2.5, np.float64),
    "empty": np.zeros((0, 4), np.float32),
}


def write_folder(folder: Path, weights: dict[str, np.ndarray] | None = None, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    safetensors.numpy.save_file(WEIGHTS if weights is None else weights, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> Path:
    write_folder(folder)
    (folder / "model.safetensors").unlink()
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for name, file in names.items():
        safetensors.numpy.save_file({name: WEIGHTS[name]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def file_bytes(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_folder(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "model", hidden_size=8))
    assert checkpoint.format == "huggingface" and checkpoint.config == {"model_type": "llama", "hidden_size": 8}
    assert checkpoint.tokenizer is None
    assert checkpoint.tensors.keys() == WEIGHTS.keys()
    for name, expected in WEIGHTS.items():
        array = checkpoint.tensors[name].array()
        assert array.dtype == expected.dtype and array.shape == expected.shape
        np.testing.assert_array_equal(array, expected)
    assert checkpoint.tensors["a"].data.base is not None, "a tensor is a view of the mapped file"
    assert not checkpoint.tensors["a"].data.flags.writeable


def test_bfloat16(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 3e38], ml_dtypes.bfloat16)
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_bytes({"x": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}, values.tobytes()))
    tensor = read_file(path)["x"]
    assert tensor.format == "bf16" and tensor.array().dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(tensor.array(), values)


def test_blocks_are_no_array() -> None:
    with pytest.raises(CheckpointError, match="tensor w is stored in q4_0 blocks"):
        Tensor("w", (32,), "q4_0", np.zeros(18, np.uint8)).array()


def test_sharded_folder(tmp_path: Path) -> None:
    tensors = open_checkpoint(write_sharded(tmp_path)).tensors
    assert list(tensors) == ["a", "b"]
    np.testing.assert_array_equal(tensors["b"].array(), WEIGHTS["b"])


def test_several_files_without_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert open_checkpoint(tmp_path).tensors.keys() == {"a", "b"}
    shutil.copy(tmp_path / "model-1.safetensors", tmp_path / "model-3.safetensors")
    with pytest.raises(CheckpointError, match="repeats tensor a"):
        open_checkpoint(tmp_path)


def test_missing_pieces(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        read_tokenizer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"give the file model\.gguf in it instead"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors file"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json does not exist"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(("text", "reason"), [("{", "not valid JSON"), ("[]", "holds a list"), ("[" * 100_000, "not valid JSON")])
def test_broken_config(tmp_path: Path, text: str, reason: str) -> None:
    (write_folder(tmp_path) / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(tmp_path)


def test_broken_shards(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "z": "model-2.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"places tensor z in model-2\.safetensors"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": {"a": "model-9.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"the shard .*model-9\.safetensors"):
        open_checkpoint(folder)
    for weight_map in ({"a": "../model-1.safetensors"}, {"a": 1}, None):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match="no weight_map"):
            open_checkpoint(folder)


def test_truncated_weights(tmp_path: Path) -> None:
    path = write_folder(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="truncated"):
            read_file(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="1 bytes after the last tensor"):
        read_file(path)


GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "corrupt header"),
        (b"[1]", "it is not a JSON object"),
        (b'{"x": 1}', "not described by an object"),
        (b'{"x": {}, "x": {}}', "a name occurs twice"),
        (b"[" * 100_000, "corrupt header"),
        ({"x": GOOD | {"dtype": "Q7"}}, "the dtype 'Q7'"),
        ({"x": GOOD | {"shape": [-1]}}, "has shape"),
        ({"x": GOOD | {"shape": [2]}}, "which needs 8"),
        ({"x": GOOD | {"shape": [2**62, 2**62]}}, "which needs"),
        ({"x": GOOD | {"data_offsets": [4, 0]}}, "which needs 4"),
        ({"x": GOOD | {"data_offsets": [0]}}, "data_offsets"),
        ({"x": GOOD | {"data_offsets": [4, 8]}}, "lies at bytes 4 to 8 of 4"),
        ({"x": GOOD, "y": GOOD}, "where byte 4 is next"),
    ],
)
def test_broken_headers(tmp_path: Path, header: object, reason: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(file_bytes(header, bytes(4)))
    with pytest.raises(CheckpointError, match=reason):
        read_file(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_weights_are_read_or_refused(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(safetensors.numpy.save(WEIGHTS))
    for position, byte in edits:
        data[position % len(data)] = byte
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    try:
        tensors = read_file(path)
    except CheckpointError:
        return
    assert all(tensor.array().nbytes == len(tensor.data) for tensor in tensors.values())


def test_tokenizer_of_a_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, text_config={"bos_token_id": 0, "eos_token_id": [1]})
    shutil.copy(TOKENIZER, folder / "tokenizer.json")
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer is not None and tokenizer == read_tokenizer(folder)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos, tokenizer.chat_template) == (0, (1,), True, None)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin_of_text|>", "<|end_of_text|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    templates = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "!"}, "chat_template": templates}))
    tokenizer = read_tokenizer(folder)
    assert tokenizer.eos == (1, 7, 2) and tokenizer.eos_token == "!" and tokenizer.chat_template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert read_tokenizer(folder).chat_template == "J"


def test_bos_without_a_post_processor(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, bos_token_id=0)
    (folder / "tokenizer.json").write_text(json.dumps(json.loads(TOKENIZER.read_text()) | {"post_processor": None}))
    assert not read_tokenizer(folder).add_bos
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    assert read_tokenizer(folder).add_bos


def test_bare_tokenizer(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(TOKENIZER)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (0, (), True)
    broken = tmp_path / "tokenizer.json"
    broken.write_text('{"model": {}}')
    with pytest.raises(CheckpointError, match=r"not a usable tokenizer\.json"):
        read_tokenizer(broken)
