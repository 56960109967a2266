"""ONNX operators that sample images between their elements, and transforms that are products with known matrices."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .checkpoint import CheckpointError
from .onnx_graph import Lowering, Node, operator
from .onnx_products import product
from .onnx_tensors import Tensor, known

# Resize: a matrix an axis, whose rows say what an element of the result is made of.


def along(g: Lowering, x: Tensor, matrix: np.ndarray, axis: int) -> Tensor:
    """x with the matrix [out, in] applied on one axis; where rows only pick, elements are taken."""
    if matrix.shape[0] == matrix.shape[1] and (matrix == np.eye(len(matrix))).all():
        return x
    if ((matrix == 1).sum(1) == 1).all() and ((matrix != 0).sum(1) == 1).all():
        return g.take(x, known(matrix.argmax(1).astype(np.int32)), axis)
    order = [k for k in range(len(x.shape)) if k != axis] + [axis]
    made = product(g, g.transpose(x, order), known(matrix.T.astype(np.float32)))
    return g.transpose(made, [order.index(k) for k in range(len(order))])


def origin(mode: str, i: np.ndarray, scale: float, size: int, out: int, roi: tuple[float, float]) -> np.ndarray:
    """Where elements of the result lie in the input, by the coordinate transformation's name. Scales count, which `out` is rounded from."""
    made = scale * size
    if mode == "half_pixel":
        return (i + 0.5) / scale - 0.5
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - out / made) + (i + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if out > 1 else np.full(i.shape, -0.5)
    if mode == "align_corners":
        return i * (size - 1) / (made - 1) if out > 1 else np.zeros(i.shape)
    if mode == "asymmetric":
        return i / scale
    if mode == "tf_crop_and_resize":
        start, end = roi
        return start * (size - 1) + i * (end - start) * (size - 1) / (out - 1) if out > 1 else np.full(i.shape, 0.5 * (start + end) * (size - 1))
    raise CheckpointError(f"unknown coordinate transformation {mode}")


def nearest(x: np.ndarray, mode: str) -> np.ndarray:
    if mode == "floor":
        return np.floor(x)
    if mode == "ceil":
        return np.ceil(x)
    return np.ceil(x - 0.5) if mode == "round_prefer_floor" else np.floor(x + 0.5)


def kernel(mode: str, a: float) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """How far a filter reaches, and its weight at a distance."""
    if mode == "linear":
        return 1, lambda d: np.maximum(0, 1 - np.abs(d))

    def cubic(d: np.ndarray) -> np.ndarray:
        d = np.abs(d)
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, a * (((d - 5) * d + 8) * d - 4)
        return np.where(d <= 1, near, np.where(d < 2, far, 0))
    return 2, cubic


def matrix_of(n: Node, size: int, out: int, scale: float, roi: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The matrix [out, in] of one axis, and which results lie outside the input."""
    transform = n.attr("coordinate_transformation_mode", "half_pixel")
    mode = n.attr("mode", "nearest")
    x = origin(transform, np.arange(out), scale, size, out, roi)
    outside = (x < 0) | (x > size - 1) if transform == "tf_crop_and_resize" else np.zeros(out, bool)
    matrix, rows = np.zeros((out, size)), np.arange(out)
    if mode == "nearest":
        matrix[rows, nearest(x, n.attr("nearest_mode", "round_prefer_floor")).astype(int).clip(0, size - 1)] = 1
        return matrix, outside
    reach, weight = kernel(mode, n.attr("cubic_coeff_a", -0.75))
    shrink = min(scale, 1.0) if n.attr("antialias", 0) else 1.0
    far = math.ceil(reach / shrink)
    base = np.floor(x).astype(int)
    places = base[:, None] + np.arange(1 - far, far + 1)
    weights = weight((places - x[:, None]) * shrink)
    if n.attr("exclude_outside", 0):
        weights = np.where((places >= 0) & (places < size), weights, 0)
    weights = weights / weights.sum(1, keepdims=True)
    np.add.at(matrix, (rows[:, None], places.clip(0, size - 1)), weights)
    return matrix, outside


def resized_sizes(g: Lowering, n: Node, x: Tensor, axes: list[int]) -> tuple[list[int], list[float]]:
    """Sizes and scales of these axes, by whichever is given."""
    given = n.optional(2) if len(n.inputs) > 2 or (n.op == "Resize" and n.opset >= 11) else n.optional(1)
    given = n.optional(1) if n.op == "Upsample" else given
    asked = n.optional(3)
    if asked is not None and asked.size:
        sizes = g.numbers(asked, "the sizes of a Resize")
        scales = [s / x.shape[a] for s, a in zip(sizes, axes, strict=True)]
        policy = n.attr("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            one = min(scales) if policy == "not_larger" else max(scales)
            scales = [one] * len(axes)
            sizes = [math.floor(one * x.shape[a] + 0.5) for a in axes]
        return sizes, scales
    assert given is not None
    scales = [float(s) for s in g.value_of(given, "the scales of a Resize").reshape(-1)]
    return [math.floor(x.shape[a] * s) for a, s in zip(axes, scales, strict=True)], scales


@operator("Resize", "Upsample")
def resize(g: Lowering, n: Node):
    x = n.input(0)
    if n.op == "Upsample" or n.opset < 11:
        older = {"mode": n.attr("mode", "nearest"), "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        n = replace(n, attributes=older)
    axes = [a % len(x.shape) for a in n.attr("axes") or range(len(x.shape))]
    sizes, scales = resized_sizes(g, n, x, axes)
    region = n.optional(1) if n.attr("coordinate_transformation_mode") == "tf_crop_and_resize" else None
    roi = [float(r) for r in g.value_of(region, "the region of a Resize").reshape(-1)] if region is not None else []
    outside = np.zeros(x.shape[:0], bool)
    dtype = x.dtype
    for k, (axis, size, scale) in enumerate(zip(axes, sizes, scales, strict=True)):
        ends = (roi[k], roi[k + len(axes)]) if roi else (0.0, 1.0)
        if size != x.shape[axis] or scale != 1 or roi:
            matrix, beyond = matrix_of(n, x.shape[axis], size, scale, ends)
            x = along(g, x, matrix, axis)
            outside = outside | beyond.reshape(-1, *[1] * (len(x.shape) - axis - 1))
    if outside.any():
        fill = g.scalar(n.attr("extrapolation_value", 0.0), x)
        x = g.each("where", known(np.broadcast_to(outside, x.shape).copy()), fill, x, dtype=dtype)
    return g.cast(x, dtype)


# GridSample: the weights of the neighbours are computed, and the neighbours taken.

@operator("GridSample")
def grid_sample(g: Lowering, n: Node):
    x, grid = n.input(0), n.input(1)
    rank, mode, aligned = len(x.shape) - 2, n.attr("mode", "linear"), n.attr("align_corners", 0)
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    places = grid.shape[1:-1]
    points = [_unnormalized(g, _column(g, grid, rank - 1 - k), x.shape[2 + k], aligned) for k in range(rank)]
    if mode == "nearest":
        return _sampled(g, n, x, [[(g.each("round", p), None)] for p in points], places)
    reach = 1 if mode == "linear" else 2
    taps: list[list[tuple[Tensor, Tensor | None]]] = []
    for p in points:
        base = g.each("floor", p)
        row: list[tuple[Tensor, Tensor | None]] = []
        for offset in range(1 - reach, reach + 1):
            at = g.each("add", base, g.scalar(offset, base))
            row.append((at, _weight(g, g.each("absolute", g.each("sub", p, at)), mode)))
        taps.append(row)
    return _sampled(g, n, x, taps, places)


def _column(g: Lowering, grid: Tensor, k: int) -> Tensor:
    return g.reshape(g.slice(grid, len(grid.shape) - 1, k, 1), grid.shape[:-1])


def _unnormalized(g: Lowering, c: Tensor, size: int, aligned: int) -> Tensor:
    """From -1 to 1 to elements."""
    moved = g.each("add", c, g.scalar(1, c))
    if aligned:
        return g.each("scale", moved, by=(size - 1) / 2)
    return g.each("scale", g.each("sub", g.each("scale", moved, by=float(size)), g.scalar(1, c)), by=0.5)


def _weight(g: Lowering, d: Tensor, mode: str) -> Tensor:
    one = g.scalar(1, d)
    if mode == "linear":
        return g.each("sub", one, d)
    a = -0.75

    def polynomial(*factors: float) -> Tensor:
        total = g.scalar(factors[0], d)
        for f in factors[1:]:
            total = g.each("add", g.each("mul", d, total), g.scalar(f, d))
        return total
    near, far = polynomial(a + 2, -(a + 3), 0, 1), polynomial(a, -5 * a, 8 * a, -4 * a)
    return g.each("where", g.each("less_equal", d, one, dtype="bool"), near, far, dtype=d.dtype)


def _sampled(g: Lowering, n: Node, x: Tensor, taps: list[list[tuple[Tensor, Tensor | None]]], places: tuple[int, ...]) -> Tensor:
    """The sum over all combinations of taps of an axis each: (where, weight)."""
    sizes, mode = x.shape[2:], n.attr("padding_mode", "zeros")
    total: Tensor | None = None
    for choice in np.ndindex(*map(len, taps)):
        at: Tensor | None = None
        factor: Tensor | None = None
        for k, c in enumerate(choice):
            where, weight = taps[k][c]
            inside, where = _inside(g, where, sizes[k], mode, n.attr("align_corners", 0))
            step = g.each("mul", where, known(np.int32(math.prod(sizes[k + 1:]))))
            at = step if at is None else g.each("add", at, step)
            for f in (weight, inside):
                if f is not None:
                    factor = f if factor is None else g.each("mul", factor, f)
        assert at is not None
        count = math.prod(places)
        index = g.expand(g.reshape(at, (x.shape[0], 1, count)), (x.shape[0], x.shape[1], count))
        found = g.make("take_along", g.reshape(x, (*x.shape[:2], math.prod(sizes))), index, axis=2)
        if factor is not None:
            found = g.each("mul", found, g.reshape(factor, (x.shape[0], 1, count)))
        total = found if total is None else g.each("add", total, found)
    assert total is not None
    return g.reshape(total, (*x.shape[:2], *places))


def _inside(g: Lowering, at: Tensor, size: int, mode: str, aligned: int) -> tuple[Tensor | None, Tensor]:
    """1 where a place is in the image (None where it always is), and the place moved into it."""
    if mode == "reflection":
        low, span = (0.0, float(size - 1)) if aligned else (-0.5, float(size))
        if span > 0:
            away = g.each("absolute", g.each("sub", at, g.scalar(low, at)))
            turned = g.each("float_modulo", away, g.scalar(2 * span, at))
            back = g.each("minimum", turned, g.each("sub", g.scalar(2 * span, at), turned))
            at = g.each("round", g.each("add", back, g.scalar(low, at)))
    place = g.cast(g.each("clamp", at, low=0.0, high=float(size - 1)), "int32")
    if mode != "zeros":
        return None, place
    inside = g.each("equal", g.cast(place, "float32"), at, dtype="bool")
    return g.cast(inside, "float32"), place


# Transforms that are products with known matrices.

@operator("DFT")
def dft(g: Lowering, n: Node):
    """The discrete Fourier transform of real ([..., 1]) or complex ([..., 2]) numbers along an axis."""
    x, length = n.input(0), n.optional(1)
    rank = len(x.shape)
    given = n.optional(2)
    axis = int(g.value_of(given, "the axis of a DFT").item()) if given is not None else n.attr("axis", -2 if n.opset >= 20 else 1)
    axis %= rank
    count = int(g.value_of(length, "the length of a DFT").item()) if length is not None else x.shape[axis]
    inverse, onesided = n.attr("inverse", 0), n.attr("onesided", 0)
    if inverse and onesided:
        return real_inverse(g, x, axis, count if length is not None else 2 * (count - 1))
    if count < x.shape[axis]:
        x = g.slice(x, axis, 0, count)
    elif count > x.shape[axis]:
        x = g.pad(x, [0] * rank, [count - x.shape[axis] if k == axis else 0 for k in range(rank)])
    out = count // 2 + 1 if onesided else count
    angle = 2 * np.pi * np.outer(np.arange(out), np.arange(count)) / count * (-1 if not inverse else 1)
    factor = 1 / count if inverse else 1
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor

    def part(k: int) -> Tensor:
        return g.slice(x, rank - 1, k, 1)
    real, imaginary = along(g, part(0), cos, axis), along(g, part(0), sin, axis)
    if x.shape[-1] == 2:
        real = g.each("sub", real, along(g, part(1), sin, axis))
        imaginary = g.each("add", imaginary, along(g, part(1), cos, axis))
    return g.concat([real, imaginary], rank - 1)


def real_inverse(g: Lowering, x: Tensor, axis: int, count: int) -> Tensor:
    """The `count` real numbers whose transform has x [..., 2] as its first half."""
    kept = np.arange(count // 2 + 1)
    x = g.slice(x, axis, 0, len(kept)) if x.shape[axis] > len(kept) else x
    angle = 2 * np.pi * np.outer(np.arange(count), kept[:x.shape[axis]]) / count
    twice = np.where((kept == 0) | (2 * kept == count), 1, 2)[:x.shape[axis]] / count
    real, imaginary = (g.slice(x, len(x.shape) - 1, k, 1) for k in (0, 1))
    return g.each("sub", along(g, real, np.cos(angle) * twice, axis), along(g, imaginary, np.sin(angle) * twice, axis))


@operator("STFT")
def stft(g: Lowering, n: Node):
    signal, step = n.input(0), int(g.value_of(n.input(1), "the step of an STFT").item())
    window, given = n.optional(2), n.optional(3)
    length = int(g.value_of(given, "the length of an STFT").item()) if given is not None else window.size if window else 0
    batch, size = signal.shape[:2]
    frames, depth = (size - length) // step + 1, signal.shape[2] if len(signal.shape) == 3 else 1
    seen = g.view(signal, (batch, frames, length, depth), (size * depth, step * depth, depth, 1))
    if window is not None:
        seen = g.each("mul", seen, g.reshape(window, (length, 1)))
    attributes = {"axis": 2, "onesided": n.attr("onesided", 1)}
    return dft(g, Node("DFT", (seen,), n.outputs, attributes, 17, n.scope, n.proto))


__all__ = ["along", "dft", "matrix_of"]
