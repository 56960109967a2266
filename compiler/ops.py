"""What every op means: the type it gives, the value it computes, and its WGSL where it works element by element.

Row `t` of an op's input is one token. `position[t]` is its place in its sequence (-1 marks a padding row, which writes nothing)
and `slot[t]` names the sequence's part of the caches. All references compute in float32.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .ir import Attr, Graph, Op, Value
from .sources import assemble

NUMPY = {"f32": np.float32, "f16": np.float16, "i32": np.int32, "u32": np.uint32}


@dataclass(frozen=True)
class OpDef:
    """One kind of op.

    operands: names by position, optional ones at the end with a `?`. infer: values and attributes to output values, raising
    ValueError with the reason when they do not fit. reference: arrays and attributes to an array, or a tuple of them.
    wgsl: an expression over {0}, {1}, … of f32 operands and {attribute}: only for element-wise ops, which broadcast as numpy does.
    inplace: output index to the input index whose buffer it continues. anchor: a body has at most one such op.
    chosen: {1} is not the second operand but what `chosen_rows` makes of the operands from the second on.
    """

    operands: tuple[str, ...]
    infer: Callable[..., Value | tuple[Value, ...]]
    reference: Callable[..., Any]
    wgsl: str | None = None
    inplace: Mapping[int, int] = field(default_factory=dict)
    anchor: bool = False
    chosen: bool = False

    @property
    def elementwise(self) -> bool:
        return self.wgsl is not None


OPS: dict[str, OpDef] = {}


def need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def define(kind: str, operands: str, infer, reference, **rest) -> None:
    OPS[kind] = OpDef(tuple(operands.split()), infer, reference, **rest)


# Element by element.

def broadcast(*v: Value, **_) -> Value:
    try:
        shape = np.broadcast_shapes(*(x.shape for x in v))
    except ValueError:
        raise ValueError(f"operands differ in shape: {', '.join(map(str, v))}") from None
    need(shape == v[0].shape, f"the first operand {v[0]} must have the shape of the result {list(shape)}")
    return Value(shape, v[0].dtype)


def _elementwise(kind: str, operands: str, wgsl: str, reference) -> None:
    define(kind, operands, broadcast, reference, wgsl=wgsl)


def sigmoid(a):
    return 1 / (1 + np.exp(-np.clip(a, -80, 80)))


def _gelu_tanh(a):
    return 0.5 * a * (1 + np.tanh(0.7978845608028654 * (a + 0.044715 * a * a * a)))


_elementwise("add", "a b", "({0} + {1})", lambda a, b: a + b)
_elementwise("mul", "a b", "({0} * {1})", lambda a, b: a * b)
_elementwise("scale", "a", "({0} * {by})", lambda a, by: a * np.float32(by))
_elementwise("silu", "a", "({0} / (1.0 + exp(-{0})))", lambda a: a * sigmoid(a))
_elementwise("sigmoid", "a", "(1.0 / (1.0 + exp(-{0})))", sigmoid)
# tanh overflows to NaN on some back ends, so its argument is clamped where it is 1 to the last bit anyway
_elementwise("gelu_tanh", "a", "(0.5 * {0} * (1.0 + tanh(clamp(0.7978845608 * ({0} + 0.044715 * {0} * {0} * {0}), -15.0, 15.0))))", _gelu_tanh)
# gpt-oss: SwiGLU of clamped operands, where the gate is bounded above only, and 1 is added to the other
_elementwise("clamped_swiglu", "gate up",
             "(min({0}, {limit}) / (1.0 + exp(-{alpha} * min({0}, {limit}))) * (clamp({1}, -{limit}, {limit}) + 1.0))",
             lambda gate, up, alpha, limit: np.minimum(gate, limit) * sigmoid(alpha * np.minimum(gate, limit)) * (np.clip(up, -limit, limit) + 1))
_elementwise("softcap", "a", "({cap} * tanh(clamp({0} / {cap}, -15.0, 15.0)))", lambda a, cap: np.float32(cap) * np.tanh(a / np.float32(cap)))


# Rearranging.

def _slice(x: Value, *, axis: int, start: int, stop: int) -> Value:
    need(0 <= axis < len(x.shape) and 0 <= start < stop <= x.shape[axis], f"{start} to {stop} on axis {axis} is not within {x}")
    return Value((*x.shape[:axis], stop - start, *x.shape[axis + 1:]), x.dtype)


def _concat(a: Value, b: Value, *, axis: int) -> Value:
    need(len(a.shape) == len(b.shape) and 0 <= axis < len(a.shape) and a.shape[:axis] + a.shape[axis + 1:] == b.shape[:axis] + b.shape[axis + 1:],
         f"{a} and {b} do not fit together on axis {axis}")
    return Value((*a.shape[:axis], a.shape[axis] + b.shape[axis], *a.shape[axis + 1:]), a.dtype)


define("slice", "x", _slice, lambda x, axis, start, stop: x.take(range(start, stop), axis))
define("concat", "a b", _concat, lambda a, b, axis: np.concatenate([a, b], axis))


# Rows: lookup, norms, projections.

def _store(state: Value, x: Value, *, at: int = 0, count: int = 0) -> Value:
    need(state.shape[1:] == x.shape[1:] and x.shape[0] <= state.shape[0], f"{x} does not fit {state}")
    return Value(state.shape, state.dtype)


def _store_reference(state, x, *, at=0, count=0):
    state, columns = state.copy(), slice(at, at + count if count else None)
    state[:len(x), ..., columns] = x[..., columns]
    return state


# writes the first rows of a state, or of the result of another op; with `count` only so many columns from `at` on
define("store", "state x", _store, _store_reference, wgsl="{1}", inplace={0: 0})


def _gather(table: Value, index: Value, last: Value | None = None, slot: Value | None = None, *, dtype: str = "f32",
            first: int = 0) -> Value:
    need(len(table.shape) == 2, f"the table must have rows and columns, not {table}")
    need(len(index.shape) == 1, f"the index must be a list, not {index}")
    return Value((*index.shape, table.shape[1]), dtype)


def _gather_reference(table, index, last=None, slot=None, *, dtype="f32", first=0):
    """first: the index of the table's first row; other rows' indices give zeros."""
    if last is not None:
        index = np.where(index < 0, last[slot], index)
    found = index - first
    return table[found.clip(0, len(table) - 1)] * ((found >= 0) & (found < len(table)))[:, None]


def _rms_norm(x: Value, weight: Value | None = None, *, eps: float) -> Value:
    need(weight is None or weight.shape == x.shape[-1:], f"the weight {weight} does not fit rows of {x}")
    return Value(x.shape, x.dtype)


def _rms_norm_reference(x, weight=None, *, eps):
    y = x / np.sqrt((x * x).mean(-1, keepdims=True, dtype=np.float32) + np.float32(eps))
    return y if weight is None else y * weight


def columns(width: int, at: int, result: np.ndarray) -> np.ndarray:
    """The result as the columns from `at` on of one that has `width`, zeros elsewhere; itself where width is 0."""
    if not width:
        return result
    whole = np.zeros((*result.shape[:-1], width), np.float32)
    whole[..., at:at + result.shape[-1]] = result
    return whole


def _matmul(x: Value, w: Value, *, dtype: str = "", width: int = 0, at: int = 0) -> Value:
    need(len(w.shape) == 2, f"w must be a matrix [out, in], not {w}")
    need(x.shape[-1] == w.shape[1], f"x has {x.shape[-1]} columns but w takes {w.shape[1]}")
    return Value((*x.shape[:-1], width or w.shape[0]), dtype or x.dtype)


def _matmul_reference(x, w, *, dtype="", width=0, at=0):
    return columns(width, at, x @ w.T)


def _split(x: Value, *, sizes: tuple[int, ...], head_dim: int = 0) -> tuple[Value, ...]:
    need(sum(sizes) == x.shape[-1], f"sizes {list(sizes)} do not add up to the {x.shape[-1]} columns of x")
    need(not head_dim or all(s % head_dim == 0 for s in sizes), f"sizes {list(sizes)} are no multiples of head_dim {head_dim}")
    return tuple(Value((*x.shape[:-1], *((s // head_dim, head_dim) if head_dim else (s,))), x.dtype) for s in sizes)


def _split_reference(x, *, sizes, head_dim=0):
    parts = np.split(x, np.cumsum(sizes)[:-1], axis=-1)
    return tuple(p.reshape(*p.shape[:-1], -1, head_dim) if head_dim else p for p in parts)


def _unzip(x: Value) -> tuple[Value, Value]:
    need(x.shape[-1] % 2 == 0, f"x has an odd number of columns: {x}")
    half = Value((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
    return half, half


define("gather", "table index last? slot?", _gather, _gather_reference, anchor=True)
define("rms_norm", "x weight?", _rms_norm, _rms_norm_reference)
define("matmul", "x w", _matmul, _matmul_reference, anchor=True)
define("split", "x", _split, _split_reference)
define("unzip", "x", _unzip, lambda x: (x[..., 0::2], x[..., 1::2]))


# Meanings of ops and graphs.

def infer(op: Op, values: Mapping[str, Value]) -> tuple[Value, ...]:
    """The output values that an op's operands give, as temporaries. Raises ValueError with the reason when they do not fit."""
    operands = [values[n] for n in op.inputs]
    return _inferred(op.kind, OPS[op.kind].infer, op.attrs, tuple([(v.shape, v.dtype, v.role, v.layout) for v in operands]))


@lru_cache(1 << 14)     # equal layers have equal types
def _inferred(kind: str, rule: Callable[..., Any], attrs: tuple[tuple[str, Attr], ...], types: tuple[tuple, ...]) -> tuple[Value, ...]:
    operands = OPS[kind].operands
    least = sum(not name.endswith("?") for name in operands)
    need(least <= len(types) <= len(operands), f"{kind} takes {', '.join(operands)} but got {len(types)} operands")
    result = rule(*(Value(*type) for type in types), **dict(attrs))
    return tuple(replace(v, role="temp", source=()) for v in (result if isinstance(result, tuple) else (result,)))


def evaluate_op(op: Op, values: Mapping[str, Value], env: dict[str, np.ndarray]) -> None:
    """Run one op, or the body of a fused one, in numpy: reads and writes `env` by name."""
    for part in op.parts:
        args = [a.astype(np.float32) if a.dtype == np.float16 else a for a in (_array(n, values, env) for n in part.inputs)]
        with np.errstate(over="ignore", under="ignore"):
            result = OPS[part.kind].reference(*args, **dict(part.attrs))
        for name, array in zip(part.outputs, result if isinstance(result, tuple) else (result,), strict=True):
            env[name] = np.asarray(array, NUMPY[values[name].dtype])


def _array(name: str, values: Mapping[str, Value], env: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a name stands for, which may be another's array in its own shape."""
    return env[name] if name in env else env[aliased(name, values)].reshape(values[name].shape)


def evaluate(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the graph in numpy: the meaning that every pass must keep.

    feeds: an array for every input, state and source-less weight. Returns the graph's outputs by name.
    """
    env = dict(feeds)
    for name, value in graph.values.items():
        if value.role == "weight" and name not in env and value.source:
            env[name] = assemble(name, graph.values, env.__getitem__)
    for op in graph.ops:
        evaluate_op(op, graph.values, env)
    return {name: env[name] for name in graph.outputs}


def step(graph: Graph, states: dict[str, np.ndarray], feeds: Mapping[str, np.ndarray]) -> None:
    """Run the graph in numpy and leave the new contents of its states in `states`. feeds: inputs and weights."""
    env = {**feeds, **{n: states[n] for n in graph.role("state")}}
    for op in graph.ops:
        evaluate_op(op, graph.values, env)
    home = buffers_of(graph)
    for name in (n for op in graph.ops for part in op.parts for n in part.outputs):
        if graph.values[home[name]].role == "state":
            states[home[name]] = env[name]      # the last name of a buffer stays


def buffers_of(graph: Graph) -> dict[str, str]:
    """Every name to the name whose buffer it is: a state that an op renames is one buffer, and so is an alias with what it stands for."""
    home = {n: n for n in graph.values}
    for op in (p for o in graph.ops for p in o.parts):
        for output, source in OPS[op.kind].inplace.items():
            home[op.outputs[output]] = home[op.inputs[source]]
    return home | {n: home[aliased(n, graph.values)] for n in graph.values if aliased(n, graph.values) != n}


def aliased(name: str, values: Mapping[str, Value]) -> str:
    """The name that an alias stands for in the end; any other name itself."""
    while values[name].source[:1] == ("alias",):
        name = str(values[name].source[1])
    return name


# these add their ops to the table
from . import attention_ops, elementwise_ops, expert_ops, rounded_ops, sampling_ops, tensor_ops  # noqa: E402, F401
