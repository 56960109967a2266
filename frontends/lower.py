"""Lower a checkpoint: the programs of a model as graphs, and where the elements of each weight come from."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from ..compiler import sampling
from ..compiler.builder import Builder
from ..compiler.formats import FORMATS
from ..compiler.ir import Graph
from ..compiler.layouts import LAYOUTS
from . import checkpoint as files
from .checkpoint import PLAIN_DTYPES, Checkpoint, CheckpointError
from .gguf_config import config_of
from .models import family
from .quantize import Quantize, Storage

# how keys and values may be stored: dtype and layout
CACHES = {"f32": ("f32", "row"), "f16": ("f16", "row"), "q8_0": ("f32", "q8_cache")}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
         "max_position_embeddings")
SAMPLE_BLOCK = 1024     # tokens of the vocabulary that one workgroup looks at


class Tensor(NamedTuple):
    """Where a weight comes from: its name in a Hugging Face folder, or the names of what is stacked to it, such as experts, and what is
    done to its array; and its name in a GGUF file, which holds it as it is used."""

    hf: str | tuple[str, ...]
    gguf: str = ""
    transform: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Plan:
    """Sizes that the programs are made for. context: positions a sequence may have; slots: sequences at once; prefill, decode, head:
    rows of a program of each kind; dtype, cache: how activations, and keys and values, are stored."""

    context: int
    slots: int = 1
    prefill: tuple[int, ...] = (16, 128)
    decode: tuple[int, ...] = (1,)
    head: tuple[int, ...] = (1, 16)
    dtype: str = "f32"
    cache: str = "f32"


class Decoder(Builder):
    """A Builder that knows a plan, the step inputs (token, position, slot, one a row), and how weights are stored.

    Model files write against it: `weight`s by their own names, `linear` projections, `attend`.
    """

    def __init__(self, plan: Plan, rows: int, sequence: bool, layouts: Mapping[str, str]):
        super().__init__()
        self.plan, self.rows, self.sequence, self.layouts = plan, rows, sequence, layouts
        self.constants: dict[str, np.ndarray] = {}

    def stored(self, name: str, *shape: int) -> str:
        """A weight of the checkpoint: a vector in f32, a matrix (or one an expert) as the checkpoint stores it."""
        return self.weight(name, shape, layout=self.layouts.get(name, "row") if len(shape) > 1 else "row")

    def constant(self, name: str, make: Callable[[], np.ndarray]) -> str:
        """A weight that the model computes, in float32."""
        if name not in self.constants:
            self.constants[name] = make()
        return self.weight(name, self.constants[name].shape)

    def linear(self, x: str, name: str, out: int, **attrs) -> str:
        """x W^T with the checkpoint's matrix `name`, [out, in]."""
        return self.matmul(x, self.stored(name, out, self.shape(x)[-1]), **attrs)

    def heads(self, x: str, head_dim: int) -> str:
        """[rows, heads * head_dim] to [rows, heads, head_dim]."""
        return self.split(x, sizes=(self.shape(x)[-1],), head_dim=head_dim)

    def part(self, name: str, whole: int, start: int, stop: int, columns: int) -> str:
        """Rows from `start` to `stop` of the checkpoint's matrix `name`, [whole, columns], as a weight."""
        of = self.stored(name, whole, columns)
        return self._declare(f"{of}.from{start}", replace(self.values[of], shape=(stop - start, columns), source=("rows", of, start, stop)))

    def attend(self, layer: int, q: str, k: str, v: str, *, scale: float, mask: str = "full", window: int = 0, sinks: str = "", **attrs) -> str:
        """Write keys and values to the layer's cache, then attention over it. A windowed layer keeps a ring: its window and the
        largest prefill chunk, so that no chunk overwrites keys that it still needs. sinks: a score for each head that no key has."""
        _, heads, dim = self.shape(k)
        rows = self.plan.context if mask == "full" else min(self.plan.context, window + max(self.plan.prefill))
        dtype, layout = CACHES[self.plan.cache]
        if dim % LAYOUTS[layout].group:
            raise CheckpointError(f"cache {self.plan.cache} needs head_dim to be a multiple of {LAYOUTS[layout].group}, and the model's is {dim}")
        rounding = {"rounding": layout} if layout != "row" else {}
        states = [self.state(f"layers.{layer}.{name}", (self.plan.slots, heads, rows, dim), dtype, layout) for name in ("keys", "values")]
        caches = [self.cache_write(state, x, "position", "slot", **rounding) for state, x in zip(states, (k, v), strict=True)]
        more = [sinks] if sinks else []
        return self.attention(q, *caches, "position", "slot", *more, scale=scale, mask=mask, window=window, sequence=self.sequence, **attrs)


@dataclass(frozen=True)
class Lowered:
    """graphs: by program name. leaf: the array of a source-less weight, or its stored rows (uint8) where it keeps the blocks of the
    checkpoint. model: what players need to know. notes: sentences on what could not be as asked for."""

    graphs: dict[str, Graph]
    leaf: Callable[[str], np.ndarray]
    model: dict[str, Any]
    notes: list[str]


class Weight(NamedTuple):
    """A tensor of the checkpoint, or several alike that are stacked, and its part in the model."""

    tensors: tuple[files.Tensor, ...]
    stacked: bool
    transform: Callable[[np.ndarray], np.ndarray] | None

    @property
    def format(self) -> str:
        return self.tensors[0].format

    @property
    def stored(self) -> tuple[int, ...]:
        """Its shape in the checkpoint."""
        return (len(self.tensors),) * self.stacked + self.tensors[0].shape

    @property
    def shape(self) -> tuple[int, ...]:
        """As the model uses it."""
        return self.transform(np.broadcast_to(np.zeros(1, np.float32), self.stored)).shape if self.transform else self.stored

    def array(self) -> np.ndarray:
        """The elements of one that is stored in a plain dtype."""
        found = np.stack([t.array() for t in self.tensors]) if self.stacked else self.tensors[0].array()
        return self.transform(found) if self.transform else found


def read_config(cls, config: Mapping[str, Any]):
    """A model file's Config from config.json: nested text_config flattened, unknown keys left out, null as missing.

    Raises CheckpointError naming the keys that are missing."""
    known = {f.name: f for f in fields(cls)}
    given = {k: v for k, v in config.items() if k in known and v is not None}
    if missing := [n for n, f in known.items() if n not in given and f.default is MISSING and f.default_factory is MISSING]:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}")
    return cls(**given)


def known_value(config: Mapping[str, Any], key: str, *known: Any) -> None:
    """Raise CheckpointError unless a key of config.json that is there has a value that a model file is written for."""
    if config.get(key) not in (None, *known):
        taken = ", ".join(map(repr, known))
        raise CheckpointError(f"config.json: {key} is {config[key]!r}, which no {config.get('model_type')} here takes; known: {taken}")


def unquantized(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a Hugging Face folder holds integers, or numbers that belong to scales, for weights."""
    if method := (config.get("quantization_config") or {}).get("quant_method"):
        raise CheckpointError(f"config.json: the weights are quantized by {method}, which is not read: give the folder in bfloat16, or a GGUF file")


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with what nests under text_config lifted to the top."""
    return {**config, **dict(config.get("text_config") or {})}


def raw_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of a checkpoint of any format in the terms of a flat config.json. Raises CheckpointError for sizes that are none."""
    raw = config_of(checkpoint) if checkpoint.format == "gguf" else flatten(checkpoint.config)
    if not raw.get("model_type"):
        raise CheckpointError(f"{checkpoint.path}: config.json names no model_type")
    for key in SIZES:
        if raw.get(key) is not None and (type(raw[key]) is not int or raw[key] < 1):
            raise CheckpointError(f"{checkpoint.path}: {key} is {raw[key]!r}, not a whole number above 0")
    return raw


def lower(checkpoint: Checkpoint, plan: Plan, quantize: Quantize = None) -> Lowered:
    """All programs of a model: prefill_N and head_N, decode_N, greedy_N and sample_N. Raises CheckpointError when they do not fit."""
    raw = raw_config(checkpoint)
    module = family(str(raw["model_type"]))
    config = module.read(raw)
    names = module.tensors(config)
    weights = {name: w for name, tensor in names.items() if (w := _find(checkpoint, tensor))}
    storage = Storage(quantize, list(names))
    layouts = {name: storage.layout(name, w.format, w.shape[-1]) for name, w in weights.items() if len(w.shape) > 1}
    constants: dict[str, np.ndarray] = {}
    graphs = {}
    for name, rows, build in _programs(plan, module, config):
        g = Decoder(plan, rows, name.startswith("prefill"), layouts)
        g.constants = constants
        graphs[name] = g.graph(*build(g))
    _check_tensors(checkpoint, names, weights, graphs, constants)
    return Lowered(graphs, _leaf(weights, layouts, constants), _describe(raw, config, plan), storage.notes)


def _programs(plan: Plan, module, config):
    """Name, rows and builder of every program."""
    most = max(*plan.head, *plan.decode)

    def inputs(g: Decoder) -> None:
        for name in ("token", "position", "slot"):
            g.input(name, (g.rows,))

    def hidden(g: Decoder) -> str:
        last = g.state("last", (plan.slots,), "i32")
        x = g.gather(module.embedding(g, config), "token", last, "slot", dtype=plan.dtype)
        return module.decoder(g, config, x)

    def prefill(g: Decoder) -> tuple[str, ...]:
        inputs(g)
        return (g.store(g.state("hidden", (max(plan.prefill), config.hidden_size), plan.dtype), hidden(g)),)

    def logits(g: Decoder, x: str) -> tuple[str, ...]:
        return (g.store(g.state("logits", (most, config.vocab_size)), module.head(g, config, x)),)

    def decode(g: Decoder) -> tuple[str, ...]:
        inputs(g)
        return logits(g, hidden(g))

    def head(g: Decoder) -> tuple[str, ...]:
        rows = g.input("row", (g.rows,))
        return logits(g, g.gather(g.state("hidden", (max(plan.prefill), config.hidden_size), plan.dtype), rows, dtype=plan.dtype))

    def sampler(kind: str):
        def build(g: Decoder) -> tuple[str, ...]:
            seen = g.state("seen", (plan.slots, config.vocab_size), "u32")
            params, found = g.input("params", (g.rows, sampling.RECORD)), g.state("logits", (most, config.vocab_size))
            blocks = g.op(f"{kind}_blocks", found, seen, params, block=SAMPLE_BLOCK)
            made = (params, *blocks, g.state("token", (max(plan.decode),), "i32"), g.state("last", (plan.slots,), "i32"), seen)
            return g.op(kind, *made, block=SAMPLE_BLOCK)
        return build
    return [*((f"prefill_{n}", n, prefill) for n in plan.prefill), *((f"decode_{n}", n, decode) for n in plan.decode),
            *((f"head_{n}", n, head) for n in plan.head), *((f"greedy_{n}", n, sampler("argmax")) for n in plan.decode),
            *((f"sample_{n}", n, sampler("sample")) for n in plan.decode)]


def _stored(checkpoint: Checkpoint, tensor: Tensor) -> tuple[str, ...]:
    """The names in the checkpoint."""
    if checkpoint.format == "gguf":
        return (tensor.gguf,)
    return tensor.hf if isinstance(tensor.hf, tuple) else (tensor.hf,)


def _find(checkpoint: Checkpoint, tensor: Tensor) -> Weight | None:
    """A weight in the checkpoint, if it is there."""
    names, folder = _stored(checkpoint, tensor), checkpoint.format != "gguf"
    if any(n not in checkpoint.tensors for n in names):
        return None
    found = tuple(checkpoint.tensors[n] for n in names)
    if other := next((t for t in found if (t.shape, t.format) != (found[0].shape, found[0].format)), None):
        raise CheckpointError(f"{checkpoint.path}: {other.name} is {other.format}{list(other.shape)}, but it is stacked with {found[0].name}, "
                              f"{found[0].format}{list(found[0].shape)}: convert the model again")
    return Weight(found, folder and isinstance(tensor.hf, tuple), tensor.transform if folder else None)


def _check_tensors(checkpoint: Checkpoint, names: Mapping[str, Tensor], weights: Mapping[str, Weight], graphs: Mapping[str, Graph],
                   constants: Mapping[str, np.ndarray]) -> None:
    needed = {n: v for g in graphs.values() for n, v in g.role("weight").items() if not v.source and n not in constants}
    if unnamed := [n for n in needed if n not in names]:
        raise CheckpointError(f"the model file reads the weight {unnamed[0]}, but its `tensors` does not say where it comes from")
    if missing := [n for n in needed if n not in weights]:
        first = next(s for s in _stored(checkpoint, names[missing[0]]) if s not in checkpoint.tensors)
        raise CheckpointError(f"{checkpoint.path} lacks {len(missing)} of the {len(needed)} tensors that the model needs, the first: {first}")
    for name, value in needed.items():
        stored, used = weights[name].stored, weights[name].shape
        if used != value.shape:
            raise CheckpointError(f"{checkpoint.path}: {weights[name].tensors[0].name} has the shape {list(stored)}"
                                  f"{f', {list(used)} as used,' if used != stored else ''} but the config asks for {list(value.shape)}")


def _leaf(weights: Mapping[str, Weight], layouts: Mapping[str, str], constants: Mapping[str, np.ndarray]) -> Callable[[str], np.ndarray]:
    def leaf(name: str) -> np.ndarray:
        if name in constants:
            return constants[name]
        weight, tensor = weights[name], weights[name].tensors[0]
        if tensor.format in PLAIN_DTYPES:
            return weight.array()
        rows = tensor.rows()
        return rows if layouts.get(name) == tensor.format else FORMATS[tensor.format].decode(rows, tensor.shape[-1])
    return leaf


def _describe(raw: Mapping[str, Any], config, plan: Plan) -> dict[str, Any]:
    return {"architecture": raw["model_type"], "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers, "context": plan.context, "slots": plan.slots, "dtype": plan.dtype, "cache": plan.cache,
            "prefill": list(plan.prefill), "decode": list(plan.decode), "head": list(plan.head)}


__all__ = ["Decoder", "Lowered", "Plan", "Tensor", "flatten", "known_value", "lower", "raw_config", "read_config", "unquantized"]
