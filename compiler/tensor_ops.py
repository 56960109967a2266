"""Ops over tensors of any rank: rearrangements by index arithmetic, lookups, reductions, scans, sorting, scattering, batched products.

They join the table of ops.py. Elements count over the whole array, the last axis fastest. The rearrangements (`INDEXED`) have no kernel of
their own: they are index arithmetic in the kernel that reads their result.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from .ir import Value
from .ops import NUMPY, OPS, OpDef, need

INDEXED = ("view", "pad", "concat", "take", "take_along", "iota", "fill")
Shape = tuple[int, ...]


def _define(kind: str, operands: str, infer, reference, **rest) -> None:
    def quietly(*arrays, **attrs):
        with np.errstate(all="ignore"):
            return reference(*arrays, **attrs)
    OPS[kind] = OpDef(tuple(operands.split()), infer, quietly, **rest)


# Made of nothing.

def _fill(*, shape: Shape, dtype: str, value: float) -> Value:
    return Value(shape, dtype)


def _iota(*, shape: Shape, axis: int, start: int = 0, step: int = 1) -> Value:
    need(0 <= axis < len(shape), f"{list(shape)} has no axis {axis}")
    return Value(shape, "i32")


def _iota_reference(*, shape, axis, start=0, step=1):
    return np.broadcast_to((start + step * np.arange(shape[axis])).reshape(-1, *[1] * (len(shape) - axis - 1)), shape)


_define("fill", "", _fill, lambda shape, dtype, value: np.full(shape, value, NUMPY[dtype]))
_define("iota", "", _iota, _iota_reference)


# Rearranged.

def _view(x: Value, *, shape: Shape, strides: Shape, offset: int = 0) -> Value:
    need(len(shape) == len(strides), f"{list(shape)} and strides {list(strides)} differ in rank")
    ends = [(d - 1) * s for d, s in zip(shape, strides, strict=True)]
    low, high = offset + sum(e for e in ends if e < 0), offset + sum(e for e in ends if e > 0)
    need(low >= 0 and high < x.size, f"elements {low} to {high} are not within {x}")
    return Value(shape, x.dtype)


def _view_reference(x, *, shape, strides, offset=0):
    flat = np.ascontiguousarray(x).reshape(-1)
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, [s * flat.itemsize for s in strides]).copy()


def _pad(x: Value, *, shape: Shape, before: Shape, step: Shape, value: float) -> Value:
    need(len(shape) == len(before) == len(step) == len(x.shape), f"{list(shape)} does not have the rank of {x}")
    need(all(b >= 0 and b + (d - 1) * k < n for b, d, k, n in zip(before, x.shape, step, shape, strict=True)), f"{x} does not fit {list(shape)}")
    return Value(shape, x.dtype)


def _pad_reference(x, *, shape, before, step, value):
    """x from `before` on, its elements `step` apart, `value` elsewhere."""
    whole = np.full(shape, value, x.dtype)
    whole[tuple(slice(b, b + (d - 1) * k + 1, k) for b, d, k in zip(before, x.shape, step, strict=True))] = x
    return whole


_define("view", "x", _view, _view_reference)
_define("pad", "x", _pad, _pad_reference)


# Looked up. Indices below 0 count from the end; those beyond either end are moved to it.

def _take(x: Value, index: Value, *, shape: Shape, count: int, inner: int) -> Value:
    """x [outer, count, inner] at index [indices] gives [outer, indices, inner], in any shape of as many elements."""
    need(x.size % (count * inner) == 0, f"{x} does not divide into {count} times {inner}")
    need(index.dtype == "i32" and math.prod(shape) == x.size // count * index.size, f"{list(shape)} is not what {index} takes from {x}")
    return Value(shape, x.dtype)


def _wrapped(index, count):
    return np.clip(np.where(index < 0, index + count, index), 0, count - 1)


def _take_along(x: Value, index: Value, *, axis: int) -> Value:
    fits = all(i <= d for k, (i, d) in enumerate(zip(index.shape, x.shape, strict=False)) if k != axis)
    need(index.dtype == "i32" and len(index.shape) == len(x.shape) and fits, f"the index {index} does not fit {x}")
    return Value(index.shape, x.dtype)


def _take_along_reference(x, index, *, axis):
    x = x[tuple(slice(None) if k == axis else slice(d) for k, d in enumerate(index.shape))]
    return np.take_along_axis(x, _wrapped(index, x.shape[axis]), axis)


_define("take", "x index", _take, lambda x, index, shape, count, inner:
        x.reshape(-1, count, inner)[:, _wrapped(index.reshape(-1), count)].reshape(shape))
_define("take_along", "x index", _take_along, _take_along_reference)


# Reduced over axes.

REDUCTIONS: dict[str, Any] = {"sum": np.sum, "product": np.prod, "maximum": np.max, "minimum": np.min}
ARGUMENTS = ("argmax", "argmin", "argmax_last", "argmin_last")


def _reduce(x: Value, *, axes: Shape, how: str, keep: bool) -> Value:
    need(all(0 <= a < len(x.shape) for a in axes) and list(axes) == sorted(set(axes)), f"{x} has no axes {list(axes)}")
    need(how in (*REDUCTIONS, *ARGUMENTS), f"unknown reduction {how}; known: {', '.join((*REDUCTIONS, *ARGUMENTS))}")
    need(how in REDUCTIONS or len(axes) == 1, f"{how} takes one axis, not {list(axes)}")
    shape = tuple(1 if k in axes else d for k, d in enumerate(x.shape) if keep or k not in axes)
    return Value(shape, "i32" if how in ARGUMENTS else x.dtype)


def _reduce_reference(x, *, axes, how, keep):
    if how in REDUCTIONS:
        return REDUCTIONS[how](x, axis=axes, keepdims=keep)
    find: Any = np.argmax if "max" in how else np.argmin
    found = x.shape[axes[0]] - 1 - find(np.flip(x, axes[0]), axes[0]) if how.endswith("last") else find(x, axes[0])
    return np.expand_dims(found, axes[0]) if keep else found


_define("reduce", "x", _reduce, _reduce_reference, anchor=True)


# Running results, ranks.

def _scan(x: Value, *, axis: int, how: str, exclusive: bool, reverse: bool) -> Value:
    need(0 <= axis < len(x.shape), f"{x} has no axis {axis}")
    need(how in ("sum", "product"), f"unknown scan {how}; known: sum, product")
    return Value(x.shape, x.dtype)


def _scan_reference(x, *, axis, how, exclusive, reverse):
    x = np.flip(x, axis) if reverse else x
    y = (np.cumsum if how == "sum" else np.cumprod)(x, axis, dtype=x.dtype)
    if exclusive:
        y = np.roll(y, 1, axis)
        y[(slice(None),) * axis + (0,)] = how == "product"
    return np.flip(y, axis) if reverse else y


def _rank(x: Value, *, axis: int, count: int, largest: bool) -> tuple[Value, Value]:
    need(0 <= axis < len(x.shape) and 1 <= count <= x.shape[axis], f"{x} has not {count} elements on axis {axis}")
    shape = (*x.shape[:axis], count, *x.shape[axis + 1:])
    return Value(shape, x.dtype), Value(shape, "i32")


def _rank_reference(x, *, axis, count, largest):
    """The first `count` elements by size and their places; of equal ones the first comes first."""
    keys = np.flip(x.shape[axis] - 1 - np.argsort(np.flip(x, axis), axis, kind="stable"), axis) if largest else np.argsort(x, axis, kind="stable")
    at = keys.take(range(count), axis)
    return np.take_along_axis(x, at, axis), at


_define("scan", "x", _scan, _scan_reference, anchor=True)
_define("rank", "x", _rank, _rank_reference, anchor=True)


# Scattered. Every element has one writer that goes through its updates in order, so the result is the same every time.

SCATTERED: dict[str, Any] = {"replace": lambda a, b: b, "sum": np.add, "product": np.multiply, "maximum": np.maximum, "minimum": np.minimum}


def _scatter(data: Value, target: Value, updates: Value, *, lines: int, how: str) -> Value:
    need(target.dtype == "i32" and target.size == updates.size and target.size % lines == 0,
         f"targets {target} do not fit updates {updates} in {lines} lines")
    need(data.dtype == updates.dtype, f"{updates} does not fit {data}")
    need(how in SCATTERED, f"unknown reduction {how}; known: {', '.join(SCATTERED)}")
    return Value(data.shape, data.dtype)


def _scatter_reference(data, target, updates, *, lines, how):
    """target: where in data (by elements of the whole) each update goes; lines: targets [lines, steps], of which no two lines share a place."""
    flat = data.reshape(-1).copy()
    for at, update in zip(target.reshape(-1), updates.reshape(-1), strict=True):
        if 0 <= at < flat.size:
            flat[at] = SCATTERED[how](flat[at], update)
    return flat.reshape(data.shape)


_define("scatter", "data target updates", _scatter, _scatter_reference, inplace={0: 0}, anchor=True)


# Products.

def _batch_matmul(a: Value, b: Value) -> Value:
    need(len(a.shape) == len(b.shape) == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1] and a.dtype == b.dtype,
         f"{a} and {b} are not [batch, m, k] and [batch, k, n] of one dtype")
    return Value((a.shape[0], a.shape[1], b.shape[2]), a.dtype)


_define("batch_matmul", "a b", _batch_matmul, lambda a, b: a @ b, anchor=True)
