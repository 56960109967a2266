"""The block formats of quantized weights as data: what a stored block holds, the numbers that it means, and how numbers become blocks.

A block is a record of fields: scales, and the elements' codes, whose bits may lie in several fields. GGUF's formats are byte for byte
GGUF's. The group-wise integers are `i4_g64` (4 bits, a scale for 64 elements) and `i4z_g64` (and a zero point).
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .quantizers import k_centred, k_ranged, minifloat, ranged, rounded, signed, symmetric, zero_pointed

Fields = dict[str, np.ndarray]      # of n blocks: the codes q, uint8 [n, elements]; d, m, e, z: [n]; s: [n, ...]
Affine = tuple[np.ndarray, np.ndarray | int, np.ndarray | None]

CHUNK = 1 << 18     # elements worked on at once: what a core's cache holds


@dataclass(frozen=True)
class Codes:
    """How a field keeps some bits of the codes: every `width` bytes hold the elements of `width * 8 / bits`, byte by byte in their lowest
    `bits`, then again in the next ones."""

    bits: int
    width: int

    def spread(self, data: np.ndarray) -> np.ndarray:
        """[n, bytes] to one element a byte."""
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)[:, None]
        return ((data.reshape(len(data), -1, 1, self.width) >> shifts) & np.uint8(2**self.bits - 1)).reshape(len(data), -1)

    def press(self, codes: np.ndarray) -> np.ndarray:
        """The inverse of spread, of codes that may have more bits above."""
        parts = (codes & np.uint8(2**self.bits - 1)).reshape(len(codes), -1, 8 // self.bits, self.width)
        data = parts[:, :, 0].copy()
        for k in range(1, 8 // self.bits):
            data |= parts[:, :, k] << np.uint8(k * self.bits)
        return data.reshape(len(codes), -1)


def read_records(records: list[np.ndarray], codes: Mapping[str, Codes]) -> Fields:
    """The fields of records, whose parts of the codes become q. codes: the fields that hold them, lowest bits first."""
    fields = {name: record[name] for record in records for name in record.dtype.names or ()}
    q, shift = None, 0
    for name, part in codes.items():
        bits = part.spread(np.ascontiguousarray(fields.pop(name)))
        q = bits if q is None else q | bits << np.uint8(shift)
        shift += part.bits
    return {**fields, "q": q} if q is not None else fields


def write_record(record: np.ndarray, fields: Fields, codes: Mapping[str, Codes]) -> None:
    """Fill the record's fields."""
    names, shift = record.dtype.names or (), 0
    for name, part in codes.items():
        if name in names:
            record[name] = part.press(fields["q"] >> np.uint8(shift) if shift else fields["q"])
        shift += part.bits
    for name in names:
        if name not in codes and name in fields:
            record[name] = fields[name]


@dataclass(frozen=True)
class Format:
    """elements: of a block; record: its bytes; codes: the record's fields that hold them; quantize(float32 [n, elements]) to fields;
    affine(fields): scale, centre and shift of (code - centre) * scale + shift, each [n, equal parts of the block]; levels: what codes
    stand for, where that is not a number of their own (of 8 bits: a signed one); opened, closed: fields between the record and q, d, s."""

    name: str
    elements: int
    record: np.dtype
    codes: Mapping[str, Codes]
    quantize: Callable[[np.ndarray], Fields]
    affine: Callable[[Fields], Affine]
    levels: tuple[int, ...] = ()
    opened: Callable[[Fields], Fields] = lambda fields: fields
    closed: Callable[[Fields], Fields] = lambda fields: fields

    @property
    def bytes(self) -> int:
        """Bytes of a block."""
        return self.record.itemsize

    def encode(self, array: np.ndarray) -> np.ndarray:
        """Numbers [..., n] as stored rows, uint8 [..., bytes]."""
        if array.shape[-1] % self.elements:
            raise ValueError(f"rows of {array.shape[-1]} elements are no multiple of {self.name}'s {self.elements}")
        blocks = array.reshape(-1, self.elements)
        out = np.empty((len(blocks), self.bytes), np.uint8)

        def work(part: slice) -> None:
            with np.errstate(all="ignore"):
                fields = self.quantize(np.ascontiguousarray(blocks[part], np.float32))
            write_record(out[part].view(self.record)[:, 0], self.closed(fields), self.codes)
        in_parts(len(blocks), self.elements, work)
        return out.reshape(*array.shape[:-1], -1)

    def decode(self, rows: np.ndarray, n: int) -> np.ndarray:
        """Stored rows as numbers, float32 [..., n]."""
        if n % self.elements or rows.shape[-1] != n // self.elements * self.bytes:
            raise ValueError(f"{rows.shape[-1]} bytes are no row of {n} elements of {self.name}, which keeps {self.elements} in {self.bytes}")
        blocks = np.ascontiguousarray(rows).reshape(-1, self.bytes)
        out = np.empty((len(blocks), self.elements), np.float32)

        def work(part: slice) -> None:
            out[part] = self.numbers(self.fields(blocks[part]))
        in_parts(len(blocks), self.elements, work)
        return out.reshape(*rows.shape[:-1], n)

    def fields(self, blocks: np.ndarray) -> Fields:
        """What stored blocks, uint8 [n, bytes], hold."""
        return self.opened(read_records([blocks.view(self.record)[:, 0]], self.codes))

    def numbers(self, fields: Fields) -> np.ndarray:
        """What the fields mean, float32 [n, elements]."""
        q = np.array(self.levels, np.float32)[fields["q"]] if self.levels else fields["q"].view(np.int8).astype(np.float32)
        with np.errstate(all="ignore"):     # stored scales may be infinite
            scale, centre, shift = self.affine(fields)
            q = q.reshape(*scale.shape, -1)
            q -= centre[..., None] if isinstance(centre, np.ndarray) else np.float32(centre)
            q *= scale[..., None]
            if shift is not None:
                q += shift[..., None]
        return q.reshape(len(q), -1)


def in_parts(blocks: int, elements: int, work: Callable[[slice], None], chunk: int = CHUNK) -> None:
    """Do the work on slices of so many blocks, in threads: numpy releases the interpreter lock."""
    size = max(1, chunk // elements)
    parts = [slice(start, min(start + size, blocks)) for start in range(0, blocks, size)]
    if len(parts) < 3:
        for part in parts:
            work(part)
    else:
        with ThreadPoolExecutor() as pool:
            list(pool.map(work, parts))


def _wide(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.float32).reshape(len(numbers), -1)


def _centred(centre: int) -> Callable[[Fields], Affine]:
    return lambda f: (_wide(f["d"]), centre, None)


def _shifted(f: Fields) -> Affine:
    return _wide(f["d"]), 0, _wide(f["m"])


def _zeroed(f: Fields) -> Affine:
    return _wide(f["d"]), _wide(f["z"]), None


def _k_shifted(f: Fields) -> Affine:
    return _wide(f["d"]) * _wide(f["s"][..., 0]), 0, -(_wide(f["m"]) * _wide(f["s"][..., 1]))


def _k_scaled(f: Fields) -> Affine:
    return _wide(f["d"]) * _wide(f["s"]), 32, None


def _power(f: Fields) -> Affine:
    """Half of 2 ** (e - 127): the levels are twice the format's own."""
    e = f["e"].astype(np.uint32)
    return np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23)).astype(np.uint32).view(np.float32)[:, None], 0, None


def _one_zero(f: Fields) -> Fields:
    """Codes without the second zero."""
    return {**f, "q": f["q"] * (f["q"] != 8)}


def _open_scales(f: Fields) -> Fields:
    """Eight scales and eight minima of 6 bits in 12 bytes, to s [n, 8, scale and minimum]."""
    low, high, mixed = np.moveaxis(f["packed"].reshape(-1, 3, 4), 1, 0)
    scale = np.concatenate([low & 63, (mixed & 15) | ((low >> 2) & 48)], axis=-1)
    least = np.concatenate([high & 63, (mixed >> 4) | ((high >> 2) & 48)], axis=-1)
    return {**f, "s": np.stack([scale, least], axis=-1)}


def _close_scales(f: Fields) -> Fields:
    (scale, scale2), (least, least2) = np.moveaxis(f["s"], -1, 0).reshape(2, -1, 2, 4).swapaxes(1, 2)
    packed = [scale | ((scale2 >> 4) << 6), least | ((least2 >> 4) << 6), (scale2 & 15) | ((least2 & 15) << 4)]
    return {**f, "packed": np.concatenate(packed, axis=-1)}


def record_of(**fields: str) -> np.dtype:
    """The fields' numpy types, in the order of their bytes."""
    return np.dtype(list(fields.items()))


NIBBLES = Codes(4, 16)      # of 32 elements, the first 16 in the low halves of 16 bytes


def _grouped(bits: int, group: int, zero: bool) -> Format:
    """Integers with an f16 scale for each group, rounded to nearest. zero: and an i8 zero point."""
    scales = {"d": "<f2", "z": "i1"} if zero else {"d": "<f2"}
    quantize = zero_pointed(bits) if zero else symmetric(bits)
    return Format(f"i{bits}{'z' if zero else ''}_g{group}", group, record_of(**scales, q=f"{group * bits // 8}u1"),
                  {"q": NIBBLES if bits == 4 else Codes(8, 32)}, quantize, _zeroed if zero else _centred(8 if bits == 4 else 0))


FORMATS: dict[str, Format] = {f.name: f for f in (
    Format("q8_0", 32, record_of(d="<f2", q="32u1"), {"q": Codes(8, 32)}, rounded, _centred(0)),
    Format("q4_0", 32, record_of(d="<f2", q="16u1"), {"q": NIBBLES}, signed(8), _centred(8)),
    Format("q4_1", 32, record_of(d="<f2", m="<f2", q="16u1"), {"q": NIBBLES}, ranged(15), _shifted),
    Format("q5_0", 32, record_of(d="<f2", h="4u1", q="16u1"), {"q": NIBBLES, "h": Codes(1, 1)}, signed(16), _centred(16)),
    Format("q5_1", 32, record_of(d="<f2", m="<f2", h="4u1", q="16u1"), {"q": NIBBLES, "h": Codes(1, 1)}, ranged(31), _shifted),
    Format("q4_k", 256, record_of(d="<f2", m="<f2", packed="12u1", q="128u1"), {"q": Codes(4, 32)},
           k_ranged(15), _k_shifted, opened=_open_scales, closed=_close_scales),
    Format("q5_k", 256, record_of(d="<f2", m="<f2", packed="12u1", h="32u1", q="128u1"), {"q": Codes(4, 32), "h": Codes(1, 32)},
           k_ranged(31), _k_shifted, opened=_open_scales, closed=_close_scales),
    Format("q6_k", 256, record_of(q="128u1", h="64u1", s="16i1", d="<f2"), {"q": Codes(4, 64), "h": Codes(2, 32)}, k_centred, _k_scaled),
    Format("mxfp4", 32, record_of(e="u1", q="16u1"), {"q": NIBBLES}, minifloat, _power,
           levels=(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), opened=_one_zero),
    *(_grouped(bits, group, zero) for bits in (4, 8) for group in (32, 64, 128) for zero in (False, True)),
)}
