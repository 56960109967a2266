"""Intervals of the integers of WGSL, and what its operators and functions make of them."""
from __future__ import annotations

from typing import NamedTuple

LIMITS = {"u": (0, 2**32 - 1), "i": (-2**31, 2**31 - 1), "n": (-2**31, 2**32 - 1)}


class Range(NamedTuple):
    """An integer between lo and hi, of kind "u" (u32), "i" (i32) or "n" (a literal that becomes either); else of kind "", which says nothing."""

    kind: str
    lo: int = 0
    hi: int = 0


OTHER = Range("")


def anything(kind: str) -> Range:
    return Range(kind, *LIMITS[kind]) if kind else OTHER


def made(kind: str, lo: int, hi: int) -> Range:
    """What wraps around may be anything."""
    least, most = LIMITS[kind]
    return Range(kind, lo, hi) if least <= lo and hi <= most else anything(kind)


def alike(a: Range, b: Range) -> tuple[Range, Range]:
    """A literal beside a u32 or i32 is one too."""
    if a.kind == "n" and b.kind:
        return a._replace(kind=b.kind), b
    return (a, b._replace(kind=a.kind)) if b.kind == "n" and a.kind else (a, b)


def join(a: Range, b: Range) -> Range:
    a, b = alike(a, b)
    return Range(a.kind, min(a.lo, b.lo), max(a.hi, b.hi)) if a.kind == b.kind != "" else OTHER


def combine(op: str, a: Range, b: Range) -> Range:
    """a op b; comparisons are of no kind."""
    if op in ("==", "!=", "<", ">", "<=", ">=", "&&", "||"):
        return OTHER
    if op in ("<<", ">>") and a.kind:
        return shift(op, a, b)
    a, b = alike(a, b)
    if a.kind != b.kind or not a.kind:
        return OTHER
    if op == "+":
        return made(a.kind, a.lo + b.lo, a.hi + b.hi)
    if op == "-":
        return made(a.kind, a.lo - b.hi, a.hi - b.lo)
    if op == "*":
        products = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
        return made(a.kind, min(products), max(products))
    return divide(op, a, b) if op in ("/", "%") else bits(op, a, b)


def shift(op: str, a: Range, b: Range) -> Range:
    if a.lo < 0 or b.lo != b.hi or not 0 <= b.lo < 32:
        return anything(a.kind)
    return made(a.kind, a.lo << b.lo, a.hi << b.lo) if op == "<<" else Range(a.kind, a.lo >> b.lo, a.hi >> b.lo)


def divide(op: str, a: Range, b: Range) -> Range:
    if a.lo < 0 or b.lo <= 0:
        return anything(a.kind)
    if op == "/":
        return Range(a.kind, a.lo // b.hi, a.hi // b.lo)
    return a if a.hi < b.lo else Range(a.kind, 0, min(a.hi, b.hi - 1))


def bits(op: str, a: Range, b: Range) -> Range:
    if a.lo < 0 or b.lo < 0:
        return anything(a.kind)
    if op == "&":
        return Range(a.kind, 0, min(a.hi, b.hi))
    return made(a.kind, 0, (1 << max(a.hi, b.hi).bit_length()) - 1)


def builtin(name: str, values: list[Range]) -> Range:
    kind = next((v.kind for v in values if v.kind != "n"), "n")
    values = [v._replace(kind=kind) if v.kind == "n" and kind else v for v in values]
    kinds = {v.kind for v in values}
    if name in ("min", "max", "clamp") and len(kinds) == 1 and "" not in kinds:
        a, b = values[:2]
        if name == "min":
            return Range(a.kind, min(a.lo, b.lo), min(a.hi, b.hi))
        low = Range(a.kind, max(a.lo, b.lo), max(a.hi, b.hi))
        return low if name == "max" else Range(a.kind, min(low.lo, values[2].lo), min(low.hi, values[2].hi))
    if name == "select":
        return join(*values[:2])
    if name in ("u32", "i32"):
        kind, v = name[0], values[0]
        return made(kind, v.lo, v.hi) if v.kind else anything(kind)
    if name in ("dot4I8Packed", "dot4U8Packed"):
        return anything("i" if "I8" in name else "u")
    if name.startswith("subgroup") and values and values[0].kind:
        return anything(values[0].kind)
    return OTHER
