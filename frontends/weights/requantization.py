"""Quantize weights on the GPU, to the bit as the formats' own encoders do: floats go up piece by piece, a kernel writes a layout's planes."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ...compiler.codegen import template_environment
from ...compiler.layouts import LAYOUTS, plane_bytes
from ...compiler.quantizers import STEPS, TINY
from ...runtime.gpu import Gpu
from ...runtime.submission import Buffer, Dispatch
from ...runtime.upload import Upload

Range = tuple[Buffer, int, int]

SOURCES = {np.dtype(np.float32): "f32", np.dtype(ml_dtypes.bfloat16): "bf16", np.dtype(np.float16): "f16"}
PIECE = 1 << 22     # numbers encoded at once: planes of all formats divide there at offsets that a binding may have
LANES = 64      # invocations of a workgroup, 32 numbers each


def _f32(number: float | np.float32) -> int:
    return int(np.float32(number).view(np.uint32))


def _signed(half: int) -> dict[str, Any]:
    return {"kind": "signed", "bits": 4 if half == 8 else 5, "most": _f32(-half), "offset": _f32(half + 0.5), "top": 2 * half - 1}


def _ranged(top: int) -> dict[str, Any]:
    return {"kind": "ranged", "bits": 4 if top == 15 else 5, "most": _f32(top), "offset": _f32(0.5), "top": top}


def _symmetric(bits: int) -> dict[str, Any]:
    top = 2 ** (bits - 1) - 1
    return {"kind": "symmetric", "bits": bits, "most": _f32(top), "top": top, "centre": 8 if bits == 4 else 0}


def _zero_pointed(bits: int) -> dict[str, Any]:
    top = 2**bits - 1
    return {"kind": "zero_pointed", "bits": bits, "most": _f32(top), "top": top, "centre": 128 if bits == 8 else 0}


def _shared(kind: str, bits: int, most: float) -> dict[str, Any]:
    return {"kind": kind, "bits": bits, "most": _f32(most), "top": 2**bits - 1, "tiny": _f32(TINY), "steps": _f32(STEPS), "step": _f32(1 / STEPS),
            "part": _f32(1 / 32)}


def _rounded_up() -> list[int]:
    """For 2^-149, 2^-148, …, 2^128: how many of the floats right below have it as their log2, which rounds; four a word."""
    counts = []
    for power in range(-149, 129):
        pattern = (power + 127) << 23 if power >= -126 else 1 << (power + 149)
        below = np.arange(pattern - 1, max(pattern - 128, 0), -1).astype(np.uint32).view(np.float32)
        counts.append(int((np.log2(below) >= power).sum()))
    return np.array([*counts, 0, 0], np.uint8).view(np.uint32).tolist()


# What the template is specialised for, by layout.
ENCODERS: dict[str, dict[str, Any]] = {
    "q8_0": {"kind": "rounded", "bits": 8, "most": _f32(127)},
    "q4_0": _signed(8), "q4_1": _ranged(15), "q5_0": _signed(16), "q5_1": _ranged(31),
    "mxfp4": {"kind": "minifloat", "bits": 4, "middles": [_f32(m) for m in (0.5, 1.5, 2.5, 3.5, 5, 7, 10)]},
    "q4_k": _shared("k_ranged", 4, 63), "q5_k": _shared("k_ranged", 5, 63), "q6_k": _shared("k_centred", 6, -128),
    **{f"i{bits}{z}_g{group}": _zero_pointed(bits) if z else _symmetric(bits) for bits in (4, 8) for z in ("", "z") for group in (32, 64, 128)},
}


@cache
def shader(layout: str, source: str) -> str:
    """The WGSL that encodes numbers of a type; bindings: they, then the layout's planes."""
    spec = ENCODERS[layout]
    planes = ["codes", *(["more_bits"] if spec["bits"] in (5, 6) else []), "scales", *(["zero_points"] if spec["kind"] == "zero_pointed" else [])]
    table = {"rounded_up": _rounded_up()} if spec["kind"] == "minifloat" else {}
    template = template_environment(Path(__file__).parent).get_template("requantization.wgsl")
    return template.render(source=source, group=LAYOUTS[layout].group, planes=planes, lanes=LANES, shared=spec["kind"].startswith("k_"),
                           **spec, **table)


def encodes(array: np.ndarray, layout: str) -> bool:
    """Whether the GPU can encode such an array to the layout."""
    return layout in ENCODERS and array.dtype in SOURCES


def dispatch(gpu: Gpu, array: np.ndarray, layout: str, ranges: Sequence[Range]) -> Dispatch:
    """Encode such an array; ranges: it and the planes."""
    bindings = ("read", *["write"] * (len(ranges) - 1))
    pipeline = gpu.pipeline(shader(layout, SOURCES[array.dtype]), bindings, f"encode {layout}")
    return pipeline, gpu.bind(pipeline, ranges), (-(-array.size // (32 * LANES)), 1, 1)


def encode(upload: Upload, array: np.ndarray, layout: str, planes: Sequence[Range]) -> None:
    """Write the planes of an array of finite numbers to their places (offsets in multiples of 256). A least number of zero is the negative
    one of a block that has both, while numpy's may be either."""
    numbers, group = array.reshape(-1), LAYOUTS[layout].group
    for start in range(0, numbers.size, PIECE):
        piece = numbers[start:start + PIECE]
        parts = [(buffer, at + start // group * plane.bytes_per_group, size) for (buffer, at, _), plane, size in
                 zip(planes, LAYOUTS[layout].planes, plane_bytes((piece.size,), "f32", layout), strict=True)]
        upload.work([piece], lambda source, at, size, piece=piece, parts=parts:  # type: ignore[misc]
                    [dispatch(upload.gpu, piece, layout, [(source, at, size), *parts])])
