"""Head vectors on their way from a projection to attention: what split, norms over heads, RoPE, scales and cache writes do to each."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING

from .expressions import broadcast_index, element, literal
from .ir import Op, Value
from .ops import OPS

if TYPE_CHECKING:
    from .kernel import Site


@dataclass
class Stream:
    """Head vectors [rows, heads, dim] and what is done to them in turn; `source` keeps a row in `stride` elements from `offset` on.

    rotary: pairs that the stream's RoPE turns, or all; interleaved: whether a pair are neighbours."""

    source: str
    stride: int
    offset: int
    heads: int
    dim: int
    first: int = 0      # heads of the streams before
    rotary: int = 0
    interleaved: bool = False
    steps: list[SimpleNamespace] = field(default_factory=list)


def streams(site: Site, parts: tuple[Op, ...]) -> list[Stream]:
    """The streams that some ops of a site's body are; none where these ops are more than streams."""
    made = {n for p in parts for n in p.outputs}
    found: dict[str, Stream] = {}
    for part in parts:
        if part.kind == "split":
            if not _add_split(found, part, site.values) or part.inputs[0] in made:
                return []
        elif (x := _vector(part)) not in made:
            if len(site.values[x].shape) != 3:
                return []
            _, heads, dim = site.values[x].shape
            found.setdefault(x, Stream(x, heads * dim, 0, heads, dim))
    taken = sum(_follow(site, parts, stream, name, made) for name, stream in found.items())
    live = [s for s in found.values() if s.steps]
    for before, stream in pairwise(live):
        stream.first = before.first + before.heads
    whole = taken == sum(p.kind != "split" for p in parts) and all(s.dim % 2 == 0 for s in live)
    return live if whole and len({site.values[s.source].shape[0] for s in live}) == 1 else []


def _vector(op: Op) -> str:
    """The operand whose head vectors an op works on."""
    return op.inputs[1 if op.kind == "cache_write" else 0]


def _add_split(found: dict[str, Stream], op: Op, values: dict[str, Value]) -> bool:
    """Enter a split's parts as streams; False where they are no head vectors."""
    x = values[op.inputs[0]]
    dim, at = int(op.attr("head_dim", 0)), 0
    if len(x.shape) != 2 or not dim:
        return False
    for name in op.outputs:
        heads = values[name].shape[1]
        found[name] = Stream(op.inputs[0], x.shape[1], at, heads, dim)
        at += heads * dim
    return True


def _follow(site: Site, parts: tuple[Op, ...], stream: Stream, name: str, made: set[str]) -> int:
    """Enter what is done to a stream that starts as `name`; the number of ops that this covers, -1000 where it does not go."""
    covered = 0
    while True:
        if name in site.op.outputs:
            stream.steps.append(SimpleNamespace(kind="store", out=name))
        readers = [p for p in parts if p.kind != "split" and _vector(p) == name]
        for op in readers:
            if op.kind == "cache_write":
                stream.steps.append(SimpleNamespace(kind="cache_write", out=op.outputs[0], position=op.inputs[2], slot=op.inputs[3]))
                covered += 1
        turns = [p for p in readers if p.kind != "cache_write"]
        if not turns:
            stream.rotary = stream.rotary or stream.dim // 2
            return covered
        if len(turns) > 1 or any(n in made for p in readers for n in p.inputs if n != name) or not _add_step(site, stream, turns[0]):
            return -1000
        covered, name = covered + 1, turns[0].outputs[0]


def _add_step(site: Site, stream: Stream, op: Op) -> bool:
    """Enter one op on the vectors; False where it is none."""
    if op.kind == "rope":
        turned = (site.values[op.inputs[1]].shape[1], bool(op.attr("interleaved")))
        if stream.rotary and turned != (stream.rotary, stream.interleaved):
            return False        # a pair stays in one invocation
        stream.rotary, stream.interleaved = turned
        stream.steps.append(SimpleNamespace(kind="rope", table=op.inputs[1], position=op.inputs[2]))
    elif op.kind == "position_scale":
        stream.steps.append(SimpleNamespace(kind="position_scale", table=op.inputs[1], position=op.inputs[2]))
    elif op.kind == "rms_norm":
        weight = op.inputs[1] if len(op.inputs) > 1 else ""
        stream.steps.append(SimpleNamespace(kind="rms_norm", weight=weight, eps=literal(op.attr("eps"))))
    elif OPS[op.kind].elementwise and not OPS[op.kind].inplace and not OPS[op.kind].chosen:
        stream.steps.append(SimpleNamespace(kind="element", element=_expression(site, op)))
    else:
        return False
    return True


def _expression(site: Site, op: Op) -> Callable[..., str]:
    """An element-wise op on element `col` of vector `row`; `at` gives the operand of a name."""
    shape = site.values[op.outputs[0]].shape

    def write(at, x: str, row: str, col: str) -> str:
        indices = {n: broadcast_index(shape, site.values[n].shape, row, col) for n in op.inputs}
        return element(op, [x if n == op.inputs[0] else at(n).load(indices[n]) for n in op.inputs])
    return write
