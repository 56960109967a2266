"""How a value's elements sit in GPU buffers, and the WGSL that reads them.

A layout stores a value in one or more planes (arrays bound apart, such as quants and scales). Kernels read weights by the *block*:
`fetch` gives statements that load one block, `quad(j)` its j-th group of four elements as a `vec4<f32>` expression.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np


@dataclass(frozen=True)
class Plane:
    """One array of a layout: the WGSL type of its elements, and the bytes that `group` elements of the value take in it."""

    type: str
    bytes_per_group: int


@dataclass(frozen=True)
class Layout:
    """name; group: a row is a multiple of so many elements; block: elements a fetch gives; pack(array float32) to one array a plane,
    unpack(planes, shape) back to float32; fetch(planes, block index, name) to WGSL statements; quad(name, j) to an expression."""

    name: str
    group: int
    block: int
    planes: tuple[Plane, ...]
    pack: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    unpack: Callable[[tuple[np.ndarray, ...], tuple[int, ...]], np.ndarray]
    fetch: Callable[[list[str], str, str], str]
    quad: Callable[[str, int], str]

    def plane_bytes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Bytes of every plane of a value of this shape."""
        n = int(np.prod(shape, dtype=np.int64))
        return tuple(n // self.group * p.bytes_per_group for p in self.planes)


def _halves(name: str, dtype, low: str, high: str) -> Layout:
    """Two 16-bit numbers in a u32, eight in a 16-byte load; needs no f16 feature."""
    def quad(var: str, j: int) -> str:
        words = [f"{var}.{'xyzw'[2 * j + k]}" for k in (0, 1)]
        return f"vec4<f32>({', '.join(part.format(w) for w in words for part in (low, high))})"
    return Layout(name, 8, 8, (Plane("vec4<u32>", 16),),
                  pack=lambda a: (a.astype(dtype),),
                  unpack=lambda planes, shape: planes[0].view(dtype).reshape(shape).astype(np.float32),
                  fetch=lambda planes, i, var: f"let {var} = {planes[0]}[{i}];", quad=quad)


LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (
    # plain elements of the value's own dtype; codegen reads these itself
    Layout("row", 1, 4, (Plane("f32", 4),), pack=lambda a: (a,), unpack=lambda planes, shape: planes[0].reshape(shape),
           fetch=lambda planes, i, var: f"let {var} = vec4<f32>({planes[0]}[{i}]);", quad=lambda var, j: var),
    _halves("bf16", ml_dtypes.bfloat16, "bitcast<f32>({0} << 16u)", "bitcast<f32>({0} & 0xffff0000u)"),
    _halves("f16", np.float16, "unpack2x16float({0}).x", "unpack2x16float({0}).y"),
)}

ITEM_BYTES = {"f32": 4, "f16": 2, "i32": 4, "u32": 4}


def plane_bytes(shape: tuple[int, ...], dtype: str, layout: str) -> tuple[int, ...]:
    """Bytes of every plane of a stored value."""
    if layout == "row":
        return (int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype],)
    return LAYOUTS[layout].plane_bytes(shape)
