"""Models of the shapes that matter, with made-up weights: checkpoints as GGUF files would give them, whose equal tensors share their bytes."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.formats import FORMATS
from ..frontends.checkpoint import PLAIN_DTYPES, Checkpoint, Tensor
from ..frontends.gguf_config import config_of
from ..frontends.lower import Decoder, Plan
from ..frontends.models import family


def _metadata(arch: str, layers: int, hidden: int, ffn: int, heads: tuple[int, int, int], **more: Any) -> dict[str, Any]:
    keys = {"block_count": layers, "embedding_length": hidden, "feed_forward_length": ffn, "attention.head_count": heads[0],
            "attention.head_count_kv": heads[1], "attention.key_length": heads[2], "attention.value_length": heads[2],
            "rope.dimension_count": heads[2], "rope.freq_base": 500000.0, "attention.layer_norm_rms_epsilon": 1e-5, "context_length": 131072, **more}
    return {"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}}


SCOUT = {"expert_count": 16, "expert_used_count": 1, "expert_feed_forward_length": 8192, "interleave_moe_layer_step": 1}
# metadata, vocabulary, whether the head is the embedding
SHAPES: dict[str, tuple[dict[str, Any], int, bool]] = {
    "tiny": (_metadata("llama", 4, 256, 768, (8, 2, 32)), 2048, True),      # for machines without a GPU
    "1b": (_metadata("llama", 16, 2048, 8192, (32, 8, 64)), 128256, True),
    "8b": (_metadata("llama", 32, 4096, 14336, (32, 8, 128)), 128256, False),
    "scout12": (_metadata("llama4", 12, 5120, 16384, (40, 8, 128), **SCOUT), 128256, False),
    "scout": (_metadata("llama4", 48, 5120, 16384, (40, 8, 128), **SCOUT), 202048, False),
}


def synthetic(shape: str, stored: str = "bf16", layers: int = 0, empty: bool = False) -> Checkpoint:
    """A checkpoint of a shape with its matrices in a format (bf16, f16, q4_0, q8_0, …). empty: no bytes, for compiling only."""
    metadata, vocabulary, tied = SHAPES[shape]
    metadata = {k: layers if layers and k.endswith("block_count") else v for k, v in metadata.items()}
    arch, hidden = metadata["general.architecture"], metadata[f"{metadata['general.architecture']}.embedding_length"]
    first = {"token_embd.weight": (vocabulary, hidden)} | ({} if tied else {"output.weight": (vocabulary, hidden)})
    bytes_of: dict[tuple[str, tuple[int, ...]], np.ndarray] = {}

    def tensor(name: str, dims: tuple[int, ...]) -> Tensor:
        kind = "f32" if len(dims) == 1 or "gate_inp" in name else stored
        if (kind, dims) not in bytes_of:
            bytes_of[kind, dims] = np.zeros(1, np.uint8) if empty else _bytes(kind, dims)
        return Tensor(name, dims, kind, bytes_of[kind, dims])

    named = Checkpoint(Path(shape), "gguf", metadata, {n: Tensor(n, s, stored, np.zeros(1, np.uint8)) for n, s in first.items()}, None)
    return Checkpoint(Path(shape), "gguf", metadata, {n: tensor(n, s) for n, s in _shapes(named, arch).items()}, None)


def write_gguf(path: Path, shape: str, stored: str) -> None:
    """A GGUF file of a shape, without a tokenizer."""
    import gguf
    checkpoint = synthetic(shape, stored)
    writer = gguf.GGUFWriter(str(path), checkpoint.config["general.architecture"])
    for key, value in checkpoint.config.items():
        if key != "general.architecture":
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(checkpoint.tensors["token_embd.weight"].shape[0])
    for t in checkpoint.tensors.values():
        writer.add_tensor(t.name, t.data.reshape(*t.shape[:-1], -1), raw_dtype=gguf.GGMLQuantizationType[t.format.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(checkpoint: Checkpoint, arch: str) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model's graph reads."""
    module = family(arch)
    config = module.read(config_of(checkpoint))
    g, names = Decoder(Plan(64), 1, False, {}), module.tensors(config)
    for name in ("token", "position", "slot"):
        g.input(name, (1,))
    module.head(g, config, module.decoder(g, config, g.gather(module.embedding(g, config), "token", dtype="f32")))
    return {names[n].gguf: v.shape for n, v in g.values.items() if v.role == "weight" and n not in g.constants}


def _bytes(kind: str, dims: tuple[int, ...]) -> np.ndarray:
    """Small random numbers in a stored format; a piece of them over and over."""
    rng, piece = np.random.default_rng(0), 1 << 18
    numbers = (rng.standard_normal(piece) * 0.02 + (len(dims) == 1)).astype(np.float32)
    raw = numbers.astype(PLAIN_DTYPES[kind]).view(np.uint8) if kind in PLAIN_DTYPES else FORMATS[kind].encode(numbers[None])
    total = int(np.prod(dims, dtype=np.int64)) * raw.size // piece
    return np.resize(raw.reshape(-1), total)
