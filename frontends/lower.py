"""Lower a checkpoint: the programs of a model as graphs, and where the elements of each weight come from."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from ..compiler import sampling
from ..compiler.builder import Builder
from ..compiler.ir import Graph
from .checkpoint import Checkpoint, CheckpointError
from .models import family

SAMPLE_BLOCK = 1024     # tokens of the vocabulary that one workgroup looks at
MATRIX_LAYOUTS = {"bf16": "bf16", "f16": "f16"}     # how a stored format is kept on the GPU; others become plain f32


class Tensor(NamedTuple):
    """Where a weight comes from: the checkpoint's name (of each format that has one) and what is done to its array."""

    hf: str
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

    def attend(self, layer: int, q: str, k: str, v: str, *, scale: float, mask: str = "full", window: int = 0, **attrs) -> str:
        """Write keys and values to the layer's cache, then attention over it. A windowed layer keeps a ring: its window and the
        largest prefill chunk, so that no chunk overwrites keys that it still needs."""
        _, heads, dim = self.shape(k)
        rows = self.plan.context if mask == "full" else min(self.plan.context, window + max(self.plan.prefill))
        caches = [self.cache_write(self.state(f"layers.{layer}.{name}", (self.plan.slots, heads, rows, dim), self.plan.cache), x, "position", "slot")
                  for name, x in (("keys", k), ("values", v))]
        return self.attention(q, *caches, "position", "slot", scale=scale, mask=mask, window=window, sequence=self.sequence, **attrs)


@dataclass(frozen=True)
class Lowered:
    """graphs: by program name. leaf: the array of a source-less weight. model: what players need to know."""

    graphs: dict[str, Graph]
    leaf: Callable[[str], np.ndarray]
    model: dict[str, Any]


def read_config(cls, config: Mapping[str, Any]):
    """A model file's Config from config.json: nested text_config flattened, unknown keys left out, null as missing.

    Raises CheckpointError naming the keys that are missing."""
    known = {f.name: f for f in fields(cls)}
    given = {k: v for k, v in config.items() if k in known and v is not None}
    if missing := [n for n, f in known.items() if n not in given and f.default is MISSING and f.default_factory is MISSING]:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}")
    return cls(**given)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with what nests under text_config lifted to the top."""
    return {**config, **dict(config.get("text_config") or {})}


def lower(checkpoint: Checkpoint, plan: Plan) -> Lowered:
    """All programs of a model: prefill_N and head_N, decode_N, greedy_N and sample_N. Raises CheckpointError when they do not fit."""
    raw = flatten(checkpoint.config)
    if not raw.get("model_type"):
        raise CheckpointError(f"{checkpoint.path}: config.json names no model_type")
    module = family(str(raw["model_type"]))
    config = module.read(raw)
    table = module.tensors(config)
    layouts = {name: MATRIX_LAYOUTS.get(checkpoint.tensors[t.hf].format, "row") for name, t in table.items() if t.hf in checkpoint.tensors}
    constants: dict[str, np.ndarray] = {}
    graphs = {}
    for name, rows, build in _programs(plan, module, config):
        g = Decoder(plan, rows, name.startswith("prefill"), layouts)
        g.constants = constants
        graphs[name] = g.graph(*build(g))
    _check_tensors(checkpoint, table, graphs, constants)
    return Lowered(graphs, _leaf(checkpoint, table, constants), _describe(raw, config, plan))


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


def _check_tensors(checkpoint: Checkpoint, table: Mapping[str, Tensor], graphs: Mapping[str, Graph], constants) -> None:
    needed = {n: v for g in graphs.values() for n, v in g.role("weight").items() if not v.source and n not in constants}
    if missing := [table[n].hf for n in needed if table[n].hf not in checkpoint.tensors]:
        raise CheckpointError(f"{checkpoint.path} lacks {len(missing)} of the {len(needed)} tensors that the model needs, the first: {missing[0]}")
    for name, value in needed.items():
        tensor = checkpoint.tensors[table[name].hf]
        transform = table[name].transform
        shape = transform(np.broadcast_to(np.zeros(1, np.float32), tensor.shape)).shape if transform else tensor.shape
        if shape != value.shape:
            raise CheckpointError(f"{checkpoint.path}: {tensor.name} has the shape {list(tensor.shape)}"
                                  f"{f', {list(shape)} as used,' if shape != tensor.shape else ''} but the config asks for {list(value.shape)}")


def _leaf(checkpoint: Checkpoint, table: Mapping[str, Tensor], constants: Mapping[str, np.ndarray]) -> Callable[[str], np.ndarray]:
    def leaf(name: str) -> np.ndarray:
        if name in constants:
            return constants[name]
        source = table[name]
        array = checkpoint.tensors[source.hf].array()
        return source.transform(array) if source.transform else array
    return leaf


def _describe(raw: Mapping[str, Any], config, plan: Plan) -> dict[str, Any]:
    return {"architecture": raw["model_type"], "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers, "context": plan.context, "slots": plan.slots, "dtype": plan.dtype, "cache": plan.cache,
            "prefill": list(plan.prefill), "decode": list(plan.decode), "head": list(plan.head)}


__all__ = ["Decoder", "Lowered", "Plan", "Tensor", "flatten", "lower", "read_config"]
