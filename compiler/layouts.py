"""How a value's elements sit in GPU buffers, and the WGSL that reads them.

A layout stores a value in one or more planes (arrays bound apart, such as quants and scales). Kernels read weights by the *block*:
`fetch` gives statements that load one block, `quad(j)` its j-th group of four elements as a `vec4<f32>` expression.

Quantized weights have a layout for each format of formats.py, over blocks of 32 elements. Blocks count over the whole value, and 16-bit
and 8-bit scales share words. Of codes of 4 bits or more, word w of a block's 16 bytes holds quad w in its low nibbles and quad w + 4 in
its high ones; a fifth or sixth bit of element k of quad j stands in byte k of a word of its own, from bit j or 2 (j % 4) on.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import prod

import ml_dtypes
import numpy as np

from .formats import CHUNK, FORMATS, NIBBLES, Codes, Format, in_parts, read_records, record_of, write_record

COPIED = 1 << 23    # elements of stored blocks that a thread takes apart at once


@dataclass(frozen=True)
class Plane:
    """One array of a layout: the WGSL type of its elements, and the bytes that `group` elements of the value take in it."""

    type: str
    bytes_per_group: int


@dataclass(frozen=True)
class Layout:
    """name; group: a row is a multiple of so many elements; block: elements a fetch gives; pack(array of numbers, or uint8 rows as the
    format stores them) to one array a plane, unpack(planes, shape) to float32; fetch(planes, block index, name) to WGSL statements;
    quad(name, j) to an expression. Of what kernels write: store(planes, i, v, most) to statements that store the i-th four elements v of
    a group whose largest magnitude is `most`."""

    name: str
    group: int
    block: int
    planes: tuple[Plane, ...]
    pack: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    unpack: Callable[[tuple[np.ndarray, ...], tuple[int, ...]], np.ndarray]
    fetch: Callable[[list[str], str, str], str]
    quad: Callable[[str, int], str]
    store: Callable[[list[str], str, str, str], str] | None = None
    # dot(name, low, high, x): the product of a block with 32 rounded numbers, whose integers are the bytes of low and high (vec4<u32>) and
    # whose scale, scale * sum of the first half's integers, and scale * sum of the second half's are x.x, x.y and x.z
    dot: Callable[[str, str, str, str], str] | None = None
    # for blocks that meet many tokens: word(name, j), the codes of quad j as signed bytes, and scaling(name), a vec4<f32> of the scales of a
    # block's halves and of what each code is shifted by in them; whether the halves differ, and whether these codes are shifted at all
    word: Callable[[str, int], str] | None = None
    scaling: Callable[[str], str] | None = None
    halves: bool = False
    shifted: bool = False
    # rows(planes, shape): the uint8 rows that pack took apart
    rows: Callable[[tuple[np.ndarray, ...], tuple[int, ...]], np.ndarray] | None = None
    # of a format of formats.py: what the planes hold of each stored block, and the fields among that which hold codes
    records: tuple[np.dtype, ...] = ()
    codes: Mapping[str, Codes] = field(default_factory=dict)

    def plane_bytes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Bytes of every plane of a value of this shape, in whole words."""
        n = prod(shape)
        return tuple(whole_words(n // self.group * p.bytes_per_group) for p in self.planes)


def whole_words(count: int) -> int:
    """Bytes rounded up to what buffers are made of."""
    return -(-count // 4) * 4


def _halves(name: str, dtype, low: str, high: str) -> Layout:
    """Two 16-bit numbers in a u32, eight in a 16-byte load; needs no f16 feature."""
    def quad(var: str, j: int) -> str:
        words = [f"{var}.{'xyzw'[2 * j + k]}" for k in (0, 1)]
        return f"vec4<f32>({', '.join(part.format(w) for w in words for part in (low, high))})"
    return Layout(name, 8, 8, (Plane("vec4<u32>", 16),),
                  pack=lambda a: (a.astype(dtype),),
                  unpack=lambda planes, shape: planes[0].view(dtype).reshape(shape).astype(np.float32),
                  fetch=lambda planes, i, var: f"let {var} = {planes[0]}[{i}];", quad=quad)


# Quantized weights. A fetch leaves codes in registers, and `NAME_d` and mostly `NAME_b` of code * d + b.

@dataclass(frozen=True)
class Scales:
    """How a layout keeps a format's scales: planes of words; the statements that read them, given the name v, its block v_i, its group v_g
    and the planes p and p2; whether they leave a b; whether d and b are pairs, for the two halves of a block; and what b is of -d, if that
    is always the same."""

    records: tuple[np.dtype, ...]
    fetch: str
    shifted: bool = True
    paired: bool = False
    centre: int = 0


def _one(centre: int) -> Scales:
    """An f16 for a group whose codes lie around a number."""
    read = "let {v}_d = unpack2x16float({p}[{v}_g >> 1u] >> (({v}_g & 1u) << 4u)).x;"
    return Scales((record_of(d="<f2"),), read + (f" let {{v}}_b = -{centre}.0 * {{v}}_d;" if centre else ""), shifted=bool(centre), centre=centre)


PAIR = Scales((record_of(d="<f2", m="<f2"),), "let {v}_s = unpack2x16float({p}[{v}_i]); let {v}_d = {v}_s.x; let {v}_b = {v}_s.y;")
ZERO = Scales((record_of(d="<f2"), record_of(z="i1")), _one(0).fetch +
              " let {v}_b = -{v}_d * f32(extractBits(bitcast<i32>({p2}[{v}_g >> 2u]), ({v}_g & 3u) << 3u, 8u));")
# half of the power of two: codes become twice their numbers
POWER = Scales((record_of(e="u1"),), "let {v}_e = extractBits({p}[{v}_i >> 2u], ({v}_i & 3u) << 3u, 8u); "
               "let {v}_d = bitcast<f32>((max({v}_e, 1u) - 1u) << 23u);", shifted=False)
# 256 elements have five words: two bytes for every 32 elements, then what these are multiples of
SHARED = ("let {v}_k = ({v}_i >> 3u) * 5u; let {v}_m = unpack2x16float({p}[{v}_k + 4u]); "
          "let {v}_s = {p}[{v}_k + (({v}_i >> 1u) & 3u)] >> (({v}_i & 1u) << 4u); ")
K_RANGED = Scales((record_of(s="(8,2)u1", d="<f2", m="<f2"),), SHARED +
                  "let {v}_d = {v}_m.x * f32({v}_s & 255u); let {v}_b = -{v}_m.y * f32(({v}_s >> 8u) & 255u);")
K_CENTRED = Scales((record_of(s="16i1", d="<f2", unused="V2"),), SHARED +
                   "let {v}_d = {v}_m.x * vec2<f32>(unpack4xI8({v}_s).xy); let {v}_b = -32.0 * {v}_d;", paired=True)


def _minifloats(var: str, codes: str) -> str:
    """Statements that turn nibbles of e2m1 into bytes of twice their numbers, all at once; 0 to 7 mean 0, 1, 2, 3, 4, 6, 8, 12."""
    n, t, high, sign = (f"{var}_{part}" for part in ("n", "t", "high", "sign"))
    return (f"let {n} = {codes}; let {t} = {n} & vec4<u32>(0x07070707u); "
            f"let {high} = ({t} >> vec4<u32>(2u)) & vec4<u32>(0x01010101u); let {sign} = ({n} >> vec4<u32>(3u)) & vec4<u32>(0x01010101u); "
            f"let {var} = (({t} + ({t} & ({high} * 3u)) + ({t} & ({t} >> vec4<u32>(1u)) & {high}) * 2u) ^ ({sign} * 255u)) + {sign};")


def _fetch_codes(form: Format, bits: int, planes: list[str], var: str) -> str:
    """Statements that load a block's codes: the bytes of its halves into q and r where they are whole bytes."""
    if bits == 8:
        return f"let {var}_q = {planes[0]}[2u * {var}_i]; let {var}_r = {planes[0]}[2u * {var}_i + 1u];"
    if form.levels:
        load = f"let {var}_w = {planes[0]}[{var}_i]; "
        return load + _minifloats(f"{var}_q", f"{var}_w") + " " + _minifloats(f"{var}_r", f"{var}_w >> vec4<u32>(4u)")
    return f"let {var}_q = {planes[0]}[{var}_i];" + (f" let {var}_h = {planes[1]}[{var}_i];" if bits > 4 else "")


def _word(form: Format, bits: int, var: str, j: int) -> str:
    """The codes of quad j as the bytes of a word."""
    word = "xyzw"[j % 4]
    if bits == 8 or form.levels:
        return f"{var}_{'qr'[j // 4]}.{word}"
    low = f"({var}_q.{word} & 0x0f0f0f0fu)" if j < 4 else f"(({var}_q.{word} >> 4u) & 0x0f0f0f0fu)"
    if bits == 4:
        return low
    at, high, mask = (j, f"{var}_h", "0x10101010u") if bits == 5 else (2 * (j % 4), f"{var}_h.{'xy'[j // 4]}", "0x30303030u")
    moved = f"({high} << {4 - at}u)" if at < 4 else f"({high} >> {at - 4}u)"
    return f"({low} | ({moved} & {mask}))"


def _centred_word(var: str, j: int) -> str:
    """Sixteen times the numbers of quad j, of codes of 4 bits around 8, as signed bytes: nothing is left to shift, where each is used often."""
    word = f"{var}_q.{'xyzw'[j % 4]}" if j >= 4 else f"({var}_q.{'xyzw'[j]} << 4u)"
    return f"(({word} ^ 0x88888888u) & 0xf0f0f0f0u)"


def _quantized(form: Format, scales: Scales) -> Layout:
    """Stored blocks taken apart into planes, and read 32 elements at a time."""
    bits, n = sum(c.bits for c in form.codes.values()), form.elements
    centred = bits == 4 and scales.centre == 8
    word = _centred_word if centred else partial(_word, form, bits)
    shifted, factor = scales.shifted and not centred, " * 0.0625" if centred else ""
    codes = {"q": Codes(8, 32)} if bits == 8 else {"q": NIBBLES} | ({"h": Codes(bits - 4, 4)} if bits > 4 else {})
    records = [*(record_of(**{name: f"{n * c.bits // 8}u1"}) for name, c in codes.items()), *scales.records]
    types = ["vec4<u32>", *{5: ["u32"], 6: ["vec2<u32>"]}.get(bits, []), *["u32"] * len(scales.records)]

    def fetch(planes: list[str], i: str, var: str) -> str:
        p, p2 = [*planes[len(codes):], ""][:2]
        group = f"let {var}_g = {var}_i{f' / {n // 32}u' if n > 32 else ''}; " if "{v}_g" in scales.fetch else ""
        return f"let {var}_i = {i}; {_fetch_codes(form, bits, planes, var)} {group}{scales.fetch.format(v=var, p=p, p2=p2)}"

    def quad(var: str, j: int) -> str:
        numbers = f"vec4<f32>(unpack4x{'I' if bits == 8 or form.levels else 'U'}8({_word(form, bits, var, j)}))"
        half = f".{'xy'[j // 4]}" if scales.paired else ""
        return f"fma({numbers}, vec4<f32>({var}_d{half}), vec4<f32>({var}_b{half}))" if scales.shifted else f"{numbers} * {var}_d"

    def scaling(var: str) -> str:
        scale, shift = (f"{var}_{n}" if scales.paired else f"{var}_{n}{factor}, {var}_{n}{factor}" for n in "db")
        return f"vec4<f32>({scale}, {shift if shifted else '0.0, 0.0'})"

    def dot(var: str, low: str, high: str, x: str) -> str:
        halves = [" + ".join(f"dot4I8Packed({_word(form, bits, var, 4 * h + j)}, {half}.{'xyzw'[j]})" for j in range(4))
                  for h, half in enumerate((low, high))]
        if scales.paired:
            return " + ".join(f"{x}.x * {var}_d.{c} * f32({sum}) + {var}_b.{c} * {x}.{s}" for c, sum, s in zip("xy", halves, "yz", strict=True))
        return f"{x}.x * {var}_d * f32({' + '.join(halves)})" + (f" + {var}_b * ({x}.y + {x}.z)" if scales.shifted else "")

    return Layout(form.name, n, 32, tuple(Plane(t, r.itemsize) for t, r in zip(types, records, strict=True)),
                  partial(_pack, form, records, codes), partial(_unpack, form, records, codes), fetch, quad, dot=dot,
                  word=word, scaling=scaling, halves=scales.paired, shifted=shifted,
                  rows=partial(_rows, form, records, codes), records=tuple(records), codes=codes)


def _pack(form: Format, records: list[np.dtype], codes: dict[str, Codes], array: np.ndarray) -> tuple[np.ndarray, ...]:
    blocks = np.ascontiguousarray(array if array.dtype == np.uint8 else form.encode(array)).reshape(-1, form.bytes)
    planes = tuple(np.zeros(whole_words(len(blocks) * r.itemsize), np.uint8) for r in records)

    stored = dict(zip(codes, form.codes, strict=False)) if list(codes.values()) == list(form.codes.values()) else {}
    names = {name: stored.get(name, name) for r in records for name in r.names or ()}
    as_stored = bool(stored) and set(names.values()) <= set(form.record.names or ())

    def work(part: slice) -> None:
        record = blocks[part].view(form.record)[:, 0]
        fields = {} if as_stored else form.fields(blocks[part])
        for piece in _pieces(planes, records, part):
            if as_stored:       # the same bits in the same order: only apart
                for name in piece.dtype.names or ():
                    piece[name] = record[names[name]]
            else:
                write_record(piece, fields, codes)
    in_parts(len(blocks), form.elements, work, COPIED if as_stored else CHUNK)
    return planes


def _unpack(form: Format, records: list[np.dtype], codes: dict[str, Codes], planes: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty((int(np.prod(shape, dtype=np.int64)) // form.elements, form.elements), np.float32)

    def work(part: slice) -> None:
        out[part] = form.numbers(read_records(_pieces(planes, records, part), codes))
    in_parts(len(out), form.elements, work)
    return out.reshape(shape)


def _rows(form: Format, records: list[np.dtype], codes: dict[str, Codes], planes: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros((int(np.prod(shape, dtype=np.int64)) // form.elements, form.bytes), np.uint8)

    def work(part: slice) -> None:
        write_record(out[part].view(form.record)[:, 0], form.closed(read_records(_pieces(planes, records, part), codes)), form.codes)
    in_parts(len(out), form.elements, work)
    return out.reshape(*shape[:-1], -1)


def _pieces(planes: tuple[np.ndarray, ...], records: list[np.dtype], part: slice) -> list[np.ndarray]:
    """What the planes, in bytes, hold of some blocks."""
    return [plane.view(np.uint8)[part.start * r.itemsize:part.stop * r.itemsize].view(r) for plane, r in zip(planes, records, strict=True)]


def _scales(form: Format) -> Scales:
    """By the fields of the format's blocks."""
    fields = form.record.names or ()
    if "packed" in fields:
        return K_RANGED
    for name, scales in (("s", K_CENTRED), ("e", POWER), ("m", PAIR), ("z", ZERO)):
        if name in fields:
            return scales
    bits = sum(c.bits for c in form.codes.values())
    return _one(2 ** (bits - 1) if bits < 8 else 0)


def _cache() -> Layout:
    """Keys and values: 8-bit integers of at most 127 and an f32 scale for every 32 elements, so 9 bits an element. A scale has a word of
    its own because different invocations write neighbouring head vectors."""
    def pack(array: np.ndarray) -> tuple[np.ndarray, ...]:
        groups = array.astype(np.float32, copy=False).reshape(-1, 32)
        most = np.abs(groups).max(-1, keepdims=True)
        inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
        return np.rint(groups * inverse).astype(np.int8), most / np.float32(127)

    def unpack(planes: tuple[np.ndarray, ...], shape: tuple[int, ...]) -> np.ndarray:
        q, d = (np.ascontiguousarray(p).reshape(-1).view(dtype) for p, dtype in zip(planes, (np.int8, np.float32), strict=True))
        return (q.reshape(-1, 32) * d[:, None]).reshape(shape)

    def fetch(planes: list[str], i: str, var: str) -> str:
        return f"let {var} = vec4<f32>(unpack4xI8({planes[0]}[{i}])) * {planes[1]}[({i}) >> 3u];"

    def store(planes: list[str], i: str, v: str, most: str) -> str:
        return (f"{planes[0]}[{i}] = pack4xI8(vec4<i32>(round({v} * select(0.0, 127.0 / {most}, {most} > 0.0)))); "
                f"if (({i}) % 8u == 0u) {{ {planes[1]}[({i}) >> 3u] = {most} / 127.0; }}")
    return Layout("q8_cache", 32, 4, (Plane("u32", 32), Plane("f32", 4)), pack, unpack, fetch, lambda var, j: var, store)


LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (
    # plain elements of the value's own dtype; codegen reads these itself
    Layout("row", 1, 4, (Plane("f32", 4),), pack=lambda a: (a,), unpack=lambda planes, shape: planes[0].reshape(shape),
           fetch=lambda planes, i, var: f"let {var} = vec4<f32>({planes[0]}[{i}]);", quad=lambda var, j: var),
    _halves("bf16", ml_dtypes.bfloat16, "bitcast<f32>({0} << 16u)", "bitcast<f32>({0} & 0xffff0000u)"),
    _halves("f16", np.float16, "unpack2x16float({0}).x", "unpack2x16float({0}).y"),
    *(_quantized(form, _scales(form)) for form in FORMATS.values()),
    _cache(),
)}

ITEM_BYTES = {"f32": 4, "f16": 2, "i32": 4, "u32": 4}


@lru_cache(1 << 14)
def plane_bytes(shape: tuple[int, ...], dtype: str, layout: str) -> tuple[int, ...]:
    """Bytes of every plane of a stored value."""
    if layout == "row":
        return (prod(shape) * ITEM_BYTES[dtype],)
    return LAYOUTS[layout].plane_bytes(shape)
