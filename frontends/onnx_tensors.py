"""The tensors that an ONNX graph is lowered to, and the rearrangements and element-wise ops that operators are written in.

A tensor is an array that is known when the graph is compiled, or a value of the op graph. Whatever has known operands only is computed at
once, in numpy; so shapes that are computed in the graph end as numbers. Floats compute as f32; integers and truths as i32.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..compiler.builder import Builder
from ..compiler.elementwise_ops import INTEGERS
from ..compiler.indexing import row_major
from ..compiler.ir import Attr
from ..compiler.ops import OPS
from .checkpoint import CheckpointError

Shape = tuple[int, ...]
NARROW = {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int4": 4, "uint4": 4}
WIDE = ("int64", "uint64", "uint32")       # known numbers of these are computed with as they are
SWAPPED = ("add", "mul", "maximum", "minimum", "equal", "bit_and", "bit_or", "bit_xor")


@dataclass(frozen=True, eq=False)
class Tensor:
    """dtype: by numpy's name, as ONNX sees it. name: the op graph's value; or else array: what is known already. origins: the graph's
    inputs that it depends on."""

    shape: Shape
    dtype: str
    name: str = ""
    array: np.ndarray | None = None
    origins: frozenset[str] = field(default_factory=frozenset)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        return is_float(self.dtype)

    @property
    def known(self) -> bool:
        return self.array is not None


class NeedsValue(Exception):
    """A shape depends on the contents of these inputs of the graph."""

    def __init__(self, origins: frozenset[str], why: str):
        super().__init__(why)
        self.origins = origins


def is_float(dtype: str) -> bool:
    return "float" in dtype


def known(array: Any, dtype: str = "") -> Tensor:
    """A tensor of numbers: an array, or what numpy makes one of."""
    array = np.asarray(array) if not dtype else np.asarray(array).astype(dtype)
    return Tensor(array.shape, array.dtype.name, array=array)


class Tensors(Builder):
    """A Builder over tensors: every method takes and gives them, and computes at once what it can."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: dict[str, np.ndarray] = {}
        self._shared: dict[object, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._declared: dict[int, tuple[np.ndarray, str]] = {}

    def shared(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        """What was made for a key before, or is made now."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def count(self, what: str) -> int:
        """0, 1, 2, …"""
        self._counts[what] += 1
        return self._counts[what] - 1

    def value_of(self, x: Tensor, why: str) -> np.ndarray:
        """The elements of a tensor that decides a shape. Raises NeedsValue where they are not known."""
        if x.array is None:
            raise NeedsValue(x.origins, why)
        return x.array

    def numbers(self, x: Tensor, why: str) -> list[int]:
        return [int(n) for n in self.value_of(x, why).reshape(-1)]

    def named(self, x: Tensor) -> str:
        """The op graph's name of a tensor; numbers become weights, one number an expression."""
        if x.array is None:
            return x.name
        dtype = "f32" if x.floating else "i32"
        if x.size == 1 or not any(x.array.strides):
            only = stored_array(x.array.reshape(-1)[:1])
            return str(self.op("fill", shape=x.shape, dtype=dtype, value=only[0].item())[0])
        if id(x.array) not in self._declared:
            name = f"w.{len(self.leaves)}"
            self.leaves[name] = stored_array(x.array)
            self._declared[id(x.array)] = x.array, self.weight(name, x.shape, dtype)
        return self._declared[id(x.array)][1]

    def make(self, kind: str, *operands: Tensor, dtype: str = "", **attrs: Attr) -> Tensor:
        """The only result of an op."""
        return self.several(kind, *operands, dtypes=(dtype or operands[0].dtype,), **attrs)[0]

    def several(self, kind: str, *operands: Tensor, dtypes: Sequence[str], **attrs: Attr) -> list[Tensor]:
        """An op's results, of these dtypes."""
        if operands and all(x.array is not None for x in operands):
            arrays = [x.array if x.dtype in WIDE else stored_array(x.array) for x in operands if x.array is not None]
            made = OPS[kind].reference(*arrays, **attrs)
            made = made if isinstance(made, tuple) else (made,)
            return [known(np.asarray(array), dtype) for array, dtype in zip(made, dtypes, strict=True)]
        names = self.op(kind, *map(self.named, operands), **attrs)
        origins = frozenset().union(*(x.origins for x in operands)) if operands else frozenset()
        return [Tensor(self.shape(n), dtype, n, origins=origins) for n, dtype in zip(names, dtypes, strict=True)]

    # Rearranged.

    def view(self, x: Tensor, shape: Sequence[int], strides: Sequence[int], offset: int = 0) -> Tensor:
        shape = tuple(shape)
        if 0 in shape:
            return known(np.zeros(shape), x.dtype)
        if shape == x.shape and tuple(strides) == row_major(shape) and not offset:
            return x
        return self.make("view", x, shape=shape, strides=tuple(strides), offset=offset)

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        if x.array is not None:
            return replace(x, shape=tuple(shape), array=x.array.reshape(tuple(shape)))
        return self.view(x, shape, row_major(tuple(shape)))

    def transpose(self, x: Tensor, order: Sequence[int]) -> Tensor:
        strides = row_major(x.shape)
        return self.view(x, [x.shape[k] for k in order], [strides[k] for k in order])

    def slice(self, x: Tensor, axis: int, start: int, count: int, step: int = 1) -> Tensor:
        """`count` elements of an axis from `start` on, `step` apart, which may be negative."""
        strides, shape = list(row_major(x.shape)), list(x.shape)
        offset, strides[axis], shape[axis] = start * strides[axis], strides[axis] * step, count
        return self.view(x, shape, strides, offset)

    def expand(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Broadcast as numpy does."""
        shape = tuple(shape)
        if x.array is not None:
            return replace(x, shape=shape, array=np.broadcast_to(x.array, shape))
        padded = (1,) * (len(shape) - len(x.shape)) + x.shape
        return self.view(x, shape, [0 if d == 1 else s for d, s in zip(padded, row_major(padded), strict=True)])

    def concat(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        axis, some = axis % max(1, len(parts[0].shape)), [p for p in parts if p.size]
        if not some:
            return known(np.concatenate([np.zeros(p.shape) for p in parts], axis), parts[0].dtype)
        made = some[0]
        for part in some[1:]:
            made = self.make("concat", made, part, axis=axis)
        return made

    def pad(self, x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0, step: Sequence[int] = ()) -> Tensor:
        """`value` around x, and between its elements where they are more than one step apart; negative numbers cut off."""
        step = tuple(step) or (1,) * len(x.shape)
        shape = tuple(b + a + (d - 1) * k + 1 for b, a, d, k in zip(before, after, x.shape, step, strict=True))
        if not x.size:
            return known(np.full([max(0, b + a) if d == 0 else n for b, a, d, n in zip(before, after, x.shape, shape, strict=True)], value), x.dtype)
        if any(n > 0 for n in (*before, *after)) or any(k > 1 for k in step):
            value = value if x.floating else int(value)
            grown = tuple(max(b, 0) + max(a, 0) + (d - 1) * k + 1 for b, a, d, k in zip(before, after, x.shape, step, strict=True))
            x = self.make("pad", x, shape=grown, before=tuple(max(b, 0) for b in before), step=step, value=value)
        for axis, (b, a) in enumerate(zip(before, after, strict=True)):
            if b < 0 or a < 0:
                x = self.slice(x, axis, max(0, -b), x.shape[axis] - max(0, -b) - max(0, -a))
        return x

    def take(self, x: Tensor, index: Tensor, axis: int) -> Tensor:
        shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1:])
        if 0 in shape:
            return known(np.zeros(shape), x.dtype)
        return self.make("take", x, index, shape=shape, count=x.shape[axis], inner=math.prod(x.shape[axis + 1:]))

    def iota(self, shape: Sequence[int], axis: int) -> Tensor:
        """The place on an axis, of every element."""
        return known(OPS["iota"].reference(shape=tuple(shape), axis=axis), "int32")

    # Element by element.

    def each(self, kind: str, *operands: Tensor, dtype: str = "", **attrs: Attr) -> Tensor:
        """An element-wise op over operands that broadcast to each other; integers narrower than 32 bits wrap."""
        try:
            shape = np.broadcast_shapes(*(x.shape for x in operands))
        except ValueError:
            raise CheckpointError(f"operands of the shapes {', '.join(str(list(x.shape)) for x in operands)} do not broadcast") from None
        dtype = dtype or operands[0].dtype
        if 0 in shape:
            return known(np.zeros(shape), dtype)
        if kind in SWAPPED and operands[0].shape != shape and operands[1].shape == shape:
            operands = operands[1], operands[0]
        fitted = [x if x.shape == shape or (k and x.known and x.size > 1) else self.expand(x, shape) for k, x in enumerate(operands)]
        made = self.make(kind, *fitted, dtype=dtype, **attrs)
        return self.wrapped(made) if kind in ("add", "sub", "mul", "negate", "shift_left", "int_power", "bit_not", "to_integer") else made

    def wrapped(self, x: Tensor) -> Tensor:
        """Integers of 4, 8 or 16 bits brought back into their range."""
        if x.dtype not in NARROW or x.known:
            return x
        return self.make("wrap_unsigned" if x.dtype[0] == "u" else "wrap_signed", x, bits=NARROW[x.dtype])

    def scalar(self, value: float, like: Tensor) -> Tensor:
        return known(np.array(value), like.dtype)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        if x.dtype == dtype:
            return x
        if x.array is not None:
            return known(x.array.astype(dtype) if not (x.floating and dtype == "bool") else x.array != 0, dtype)
        if not x.size:
            return known(np.zeros(x.shape), dtype)
        if dtype == "bool":
            return self.each("sub", known(np.int32(1)), self.each("equal", x, self.scalar(0, x), dtype="int32"), dtype="bool")
        if is_float(dtype):
            return replace(x, dtype=dtype) if x.floating else self.each("to_float", x, dtype=dtype, to="f32")
        if x.floating:
            return self.each("to_integer", x, dtype=dtype, to="i32")
        return self.wrapped(replace(x, dtype=dtype))

    def reduce(self, x: Tensor, axes: Sequence[int], how: str, keep: bool = False) -> Tensor:
        axes = tuple(sorted(axes))
        dtype = "int64" if how.startswith("arg") else x.dtype
        if not x.size:
            start = {"sum": 0, "product": 1, "maximum": -np.inf, "minimum": np.inf}[how]
            if not x.floating and not np.isfinite(start):
                start = (np.iinfo(x.dtype) if x.dtype != "bool" else np.iinfo("uint8")).__getattribute__("min" if how == "maximum" else "max")
            return known(np.full([1 if k in axes else d for k, d in enumerate(x.shape) if keep or k not in axes], start), dtype)
        if not axes:
            return x
        return self.make("reduce", x, dtype=dtype, axes=axes, how=how, keep=keep)


def stored_array(array: np.ndarray) -> np.ndarray:
    """As the op graph holds it: float32, or int32. Raises CheckpointError for an integer that does not fit."""
    if is_float(array.dtype.name):
        with np.errstate(over="ignore"):
            return array.astype(np.float32)
    if array.dtype.name in ("int64", "uint32", "uint64") and array.size:
        low, high = INTEGERS[32]
        least, most = int(array.min()), int(array.max())
        if least < low or most > high:
            raise CheckpointError(f"the integer {most if most > high else least:,} does not fit 32 bits, in which integers are computed")
    return array.astype(np.int32)
