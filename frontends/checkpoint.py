"""Checkpoints: their configuration, memory-mapped tensors and tokenizer, whatever file format holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import Tokenizer

PLAIN_DTYPES: dict[str, np.dtype] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "f8_e8m0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "i16": np.dtype(np.int16),
    "i8": np.dtype(np.int8),
    "u64": np.dtype(np.uint64),
    "u32": np.dtype(np.uint32),
    "u16": np.dtype(np.uint16),
    "u8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
}


# where models that see images keep their decoder, by the age of the file, and where models of text alone do
TEXT_PREFIXES = (("language_model.model.", "model."), ("model.language_model.", "model."), ("language_model.lm_head.", "lm_head."))


class CheckpointError(Exception):
    """One sentence that says what is wrong with a checkpoint and what to do about it."""


@dataclass(frozen=True)
class Tensor:
    """A named tensor whose bytes stay in the memory-mapped file until somebody reads them."""

    name: str
    shape: tuple[int, ...]  # numpy order, outermost first
    format: str  # a key of PLAIN_DTYPES, or a GGUF block type in lower case such as "q4_0"
    data: np.ndarray  # uint8, the raw bytes

    def array(self) -> np.ndarray:
        """Return the elements as a typed view, without a copy."""
        dtype = PLAIN_DTYPES.get(self.format)
        if dtype is None:
            raise CheckpointError(f"tensor {self.name} is stored in {self.format} blocks; decode them before reading it as an array")
        return self.data.view(dtype).reshape(self.shape)

    def rows(self) -> np.ndarray:
        """Return the blocks of every row as GGUF stores them, uint8 [..., bytes]."""
        return self.data.reshape(*self.shape[:-1], -1)


@dataclass(frozen=True)
class TokenizerData:
    """Everything that a player needs to turn text into ids and back."""

    json: bytes  # a Hugging Face tokenizer.json
    bos: int | None
    eos: tuple[int, ...]  # every id that ends a generation
    add_bos: bool  # whether a prompt begins with bos
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    parsed: Tokenizer | None = field(default=None, compare=False, repr=False)  # the json as whoever made this parsed it: half a second

    @property
    def settings(self) -> dict[str, Any]:
        """All but the vocabulary."""
        return {name: value for name, value in vars(self).items() if name not in ("json", "parsed")}


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    format: str  # "huggingface" | "gguf"
    config: dict[str, Any]  # config.json as is, or the GGUF metadata without the arrays of its tokenizer
    tensors: Mapping[str, Tensor]
    tokenizer: TokenizerData | None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a Hugging Face folder or a GGUF file (any part of a split one) without reading its tensors."""
    from . import gguf, gguf_tokenizer, mxfp4, safetensors  # here, because the formats are written in terms of the records above

    path = Path(path)
    if path.is_dir():
        config = read_json(path / "config.json", missing=f"{path} holds no config.json{_gguf_hint(path)}")
        tokenizer = _folder_tokenizer(path) if (path / "tokenizer.json").exists() else None
        return Checkpoint(path, "huggingface", config, mxfp4.join_pairs(_text_names(safetensors.read_folder(path))), tokenizer)
    metadata, tensors = gguf.read_model(_existing(path))
    tokenizer = gguf_tokenizer.build_tokenizer(metadata) if gguf_tokenizer.has_tokenizer(metadata) else None
    config = {key: value for key, value in metadata.items() if not (key.startswith("tokenizer.") and isinstance(value, list))}
    return Checkpoint(path, "gguf", config, tensors, tokenizer)


def _text_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give the decoder's tensors in the folder of a model that sees images the names that they have in one of text alone."""
    return {next((text + name[len(prefix) :] for prefix, text in TEXT_PREFIXES if name.startswith(prefix)), name): t for name, t in tensors.items()}


def read_tokenizer(path: str | Path) -> TokenizerData:
    """Read only the tokenizer of a folder, of a GGUF file (which may hold nothing else), or of a bare tokenizer.json."""
    from . import gguf, gguf_tokenizer

    path = Path(path)
    if path.is_dir():
        return _folder_tokenizer(path)
    if _existing(path).suffix == ".json":
        return _huggingface_tokenizer(path, {}, {}, {}, None)
    metadata, _ = gguf.read_file(path)
    if not gguf_tokenizer.has_tokenizer(metadata):
        raise CheckpointError(f"{path} holds no tokenizer; give the tokenizer.json of its model instead")
    return gguf_tokenizer.build_tokenizer(metadata)


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """Read a JSON object; `missing` is the sentence for a file that does not exist."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(missing) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object but holds a {type(value).__name__}; download it again")
    return value


def map_bytes(path: Path) -> np.ndarray:
    """Map a file into memory, read-only, as bytes."""
    try:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a Hugging Face folder or a .gguf file")
    return path


def _gguf_hint(folder: Path) -> str:
    files = sorted(folder.glob("*.gguf"))
    return f"; give the file {files[0].name} in it instead" if files else "; give the folder that config.json is in"


def _folder_tokenizer(folder: Path) -> TokenizerData:
    model, generation, settings = (
        read_json(path, missing="") if path.exists() else {}
        for path in (folder / "config.json", folder / "generation_config.json", folder / "tokenizer_config.json")
    )
    template_path = folder / "chat_template.jinja"
    try:
        template = template_path.read_text(encoding="utf-8") if template_path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{template_path} cannot be read as text: {error}") from None
    return _huggingface_tokenizer(folder / "tokenizer.json", model, generation, settings, template)


def _huggingface_tokenizer(
    path: Path, model: dict[str, Any], generation: dict[str, Any], settings: dict[str, Any], template: str | None
) -> TokenizerData:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; a tokenizer in another form can be saved as tokenizer.json with transformers")
    text = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(text)
    except Exception as error:  # the library has no narrower class
        raise CheckpointError(f"{path} is not a usable tokenizer.json ({error}); download it again") from None
    configs = [config for config in (model, model.get("text_config"), generation) if isinstance(config, dict)]
    bos_token, eos_token = _token_text(settings.get("bos_token")), _token_text(settings.get("eos_token"))
    prefix = tokenizer.encode("", add_special_tokens=True).ids  # what the tokenizer's own post-processor adds
    bos_ids = [*(i for config in configs for i in _ids(config.get("bos_token_id"))), *_token_ids(tokenizer, bos_token), *prefix[:1]]
    eos_ids = [*(i for config in configs for i in _ids(config.get("eos_token_id"))), *_token_ids(tokenizer, eos_token)]
    bos, eos = next(iter(bos_ids), None), tuple(dict.fromkeys(eos_ids))
    return TokenizerData(
        json=text,
        bos=bos,
        eos=eos,
        add_bos=bos is not None and (bos in prefix[:1] or bool(not prefix and settings.get("add_bos_token"))),
        chat_template=_default_template(settings.get("chat_template")) if template is None else template,
        bos_token=bos_token or (None if bos is None else tokenizer.id_to_token(bos)),
        eos_token=eos_token or (tokenizer.id_to_token(eos[0]) if eos else None),
        parsed=tokenizer,
    )


def _ids(value: object) -> list[int]:
    """Read a *_token_id entry: absent, null, one id or a list of ids."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**32]


def _token_text(value: object) -> str | None:
    """Read a token entry of tokenizer_config.json: a string, or an object with its settings."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _token_ids(tokenizer: Tokenizer, token: str | None) -> list[int]:
    found = None if token is None else tokenizer.token_to_id(token)
    return [] if found is None else [found]


def _default_template(value: object) -> str | None:
    """Read the chat_template entry: a string, or a list of {name, template} of which "default" is the chat."""
    if isinstance(value, str):
        return value
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    named = {str(entry.get("name")): entry.get("template") for entry in entries}
    template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None
