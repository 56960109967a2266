"""Take stored rows of weights apart on the GPU: blocks go up as the file has them, a kernel writes a layout's planes, row by row in place."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from ...compiler.codegen import template_environment
from ...compiler.formats import FORMATS, Codes, Format
from ...compiler.layouts import LAYOUTS, Layout, plane_bytes
from ...compiler.sources import Piece
from ...runtime.submission import Buffer, Dispatch
from ...runtime.upload import SLOT, Upload

LANES = 64
HEADER = 64         # words before the rows
MOST_ROWS = 65535   # workgroups in a dimension
PLAIN = {"bf16": np.dtype(ml_dtypes.bfloat16), "f16": np.dtype(np.float16), "row": np.dtype(np.float32)}      # layouts of numbers as they are


def unpacks(layout: str, pieces: Sequence[Piece], columns: int) -> bool:
    """Whether the GPU can take such pieces apart: rows as the format stores them (or the layout's own numbers), that end with whole words
    in every plane, so that no two share one."""
    if any(not p.array.flags.c_contiguous or p.array.ndim < 2 or p.array.shape[-1] * p.array.itemsize > SLOT - 4 * HEADER for p in pieces):
        return False
    if layout in PLAIN:
        return all(p.array.dtype == PLAIN[layout] for p in pieces) and columns * PLAIN[layout].itemsize % 4 == 0
    fits = layout in FORMATS and all(p.array.dtype == np.uint8 for p in pieces)
    return fits and all(size % 4 == 0 for size in _row_bytes(layout, columns))


def unpack(upload: Upload, pieces: Sequence[Piece], layout: str, shape: tuple[int, ...], planes: Sequence[tuple[Buffer, int, int]]) -> None:
    """Write the planes of a weight of a shape to their places (offsets in multiples of 256)."""
    rows, columns = shape[-2:]
    for piece in pieces:
        matrices = piece.array.reshape(-1, *piece.array.shape[-2:])
        for first, run in _runs(piece, matrices):
            most = min(MOST_ROWS, (SLOT - 4 * HEADER) // run[0].nbytes)
            for start in range(0, len(run), most):
                part = run[start:start + most]
                header = np.zeros(HEADER, np.uint32)
                header[:5] = first + start, piece.count, rows, piece.start, piece.step
                upload.work([header, part], partial(_dispatches, upload, layout, columns, len(part), planes))


def _runs(piece: Piece, matrices: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Rows that lie behind each other: the number of the first among all that the piece takes, and they."""
    if piece.whole:
        return [(0, matrices.reshape(-1, matrices.shape[-1]))]
    return [(i * piece.count, matrix[piece.first:piece.first + piece.count]) for i, matrix in enumerate(matrices)]


def _dispatches(upload: Upload, layout: str, columns: int, rows: int, planes: Sequence[tuple[Buffer, int, int]],
                source: Buffer, at: int, size: int) -> list[Dispatch]:
    bindings = ("read", *["write"] * len(planes))
    pipeline = upload.gpu.pipeline(shader(layout, columns), bindings, f"unpack {layout}")
    words = sum(_row_bytes(layout, columns)) // 4
    return [(pipeline, upload.gpu.bind(pipeline, [(source, at, -(-size // 4) * 4), *planes]), (-(-words // LANES), rows, 1))]


def _row_bytes(layout: str, columns: int) -> tuple[int, ...]:
    return plane_bytes((columns,), "f32", layout) if layout in PLAIN else \
        tuple(columns // LAYOUTS[layout].group * p.bytes_per_group for p in LAYOUTS[layout].planes)


@cache
def shader(layout: str, columns: int) -> str:
    """The WGSL that takes rows of so many elements apart; bindings: they, then the layout's planes."""
    template = template_environment(Path(__file__).parent).get_template("unpacking.wgsl")
    if layout in PLAIN:
        words = [SimpleNamespace(bytes=4, fields=[(0, "byte(at + i)")], plain=[], whole=0, half=None)]
        return template.render(planes=words, code="0u", scales=None, stored=4, blocks=columns * PLAIN[layout].itemsize // 4, lanes=LANES)
    form, into = FORMATS[layout], LAYOUTS[layout]
    scales = _offset(form, "packed") if "packed" in (form.record.names or ()) else None
    return template.render(planes=[_plane(form, into, record) for record in into.records], code=_code(form), scales=scales,
                           stored=form.bytes, blocks=columns // form.elements, lanes=LANES)


def _plane(form: Format, into: Layout, record: np.dtype) -> SimpleNamespace:
    """What a plane has of a block. fields: (first byte, expression for byte i), the last first; plain: (first byte, end, stored place) of
    words that stay as they are; whole: where those start that are all there is; half: where a scale of two bytes that is, does."""
    fields, plain = [], []
    for name in record.names or ():
        kind, start = _field(record, name)
        same = name in (form.record.names or ()) and form.codes.get(name) == into.codes.get(name)
        if same:
            made = f"byte(at + {_offset(form, name)}u + i - {start}u)"
            if record.itemsize % 4 == 0 and start % 4 == 0 and kind.itemsize % 4 == 0:
                plain.append((start, start + kind.itemsize, _offset(form, name)))
        elif name in into.codes:
            made = _pressed(into.codes, name, f"(i - {start}u)")
        else:
            made = f"scale(at, i - {start}u)" if name == "s" else "0u"
        fields.append((start, made))
    one = [_offset(form, n) for n in record.names or () if n in (form.record.names or ()) and len(fields) == 1]
    return SimpleNamespace(bytes=record.itemsize, fields=fields[::-1], plain=plain,
                           whole=plain[0][2] if plain and plain[0][1] == record.itemsize else None,
                           half=one[0] if one and record.itemsize == 2 else None)


def _offset(form: Format, name: str) -> int:
    """Where a field starts in a stored block."""
    return _field(form.record, name)[1]


def _field(record: np.dtype, name: str) -> tuple[np.dtype, int]:
    """The type of a field, and where it starts."""
    assert record.fields
    return record.fields[name][:2]


def _shift(codes: Mapping[str, Codes], name: str) -> int:
    """How many bits of a code other fields hold below those of this one."""
    return sum(codes[other].bits for other in list(codes)[:list(codes).index(name)])


def _code(form: Format) -> str:
    """Code e of a block, from the fields that hold its bits."""
    terms = []
    for name, c in form.codes.items():
        each = c.width * 8 // c.bits        # elements that `width` bytes hold
        byte = f"byte(at + {_offset(form, name)}u + e / {each}u * {c.width}u + e % {c.width}u)"
        terms.append(f"((({byte} >> (e % {each}u / {c.width}u * {c.bits}u)) & {2**c.bits - 1}u) << {_shift(form.codes, name)}u)")
    return " | ".join(terms)


def _pressed(codes: Mapping[str, Codes], name: str, i: str) -> str:
    """Byte i of a field of codes."""
    c = codes[name]
    count = 8 // c.bits
    first = f"{i} / {c.width}u * {c.width * count}u + {i} % {c.width}u"
    return " | ".join(f"(((code(at, {first} + {k * c.width}u) >> {_shift(codes, name)}u) & {2**c.bits - 1}u) << {k * c.bits}u)"
                      for k in range(count))
