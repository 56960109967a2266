"""Everything between the q/k/v projection and attention, in one dispatch: split, norm over heads, RoPE, scales, cache writes."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

from ..compiler.expressions import broadcast_index, element, literal
from ..compiler.ir import Op, Value
from ..compiler.kernel import Kernel, Schedule, Site, divide
from ..compiler.layouts import LAYOUTS
from ..compiler.ops import OPS

VECTOR = {"rope", "position_scale", "cache_write"}      # what no other kernel takes


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


class Heads(Kernel):
    """lanes: invocations of a head vector; groups: rows a workgroup takes."""

    def accepts(self, site: Site) -> bool:
        kinds = set(site.op.kinds)
        ours = bool(kinds & VECTOR) or ("split" in kinds and len(site.op.parts) > 1)
        ours = ours and all(p.inputs for p in site.op.parts)
        plain = all(site.values[n].layout == "row" or LAYOUTS[site.values[n].layout].store for n in site.bound)
        return ours and plain and bool(self._streams(site))

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size, rows = site.device.subgroup_size, self._rows(site)
        widest = max(s.dim for s in self._streams(site)) // 2
        for lanes in (8, 32, 64, 128):
            if divide(widest, lanes) <= 16:
                for groups in (1, 4, 16):
                    if lanes * groups <= 256 and (groups == 1 or rows >= groups):
                        if "rms_norm" not in site.op.kinds or not site.device.subgroups or lanes % size:
                            yield {"lanes": lanes, "groups": groups, "subgroup": 0}
                        else:
                            yield from ({"lanes": lanes, "groups": groups, "subgroup": form} for form in (size, 0))

    def cost(self, site: Site, s: Schedule) -> float:
        streams, rows, device = self._streams(site), self._rows(site), site.device
        moved = sum(4 * rows * st.heads * st.dim * (1 + sum("out" in vars(step) for step in st.steps)) for st in streams)
        reduction = 0 if "rms_norm" not in site.op.kinds else 2 if s["subgroup"] else s["lanes"].bit_length()
        steps = max(divide(st.dim // 2, s["lanes"]) * (2 + len(st.steps)) for st in streams) + reduction
        vectors = rows * sum(st.heads for st in streams)
        busy = max(1.0, vectors * s["lanes"] / device.width)
        return device.launch + moved / device.bandwidth + 1e-8 * steps * busy + 1e-9 / s["groups"] * vectors

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return sum(st.heads for st in self._streams(site)), divide(self._rows(site), s["groups"]), 1

    def threads(self, site: Site, s: Schedule) -> int:
        return s["lanes"] * s["groups"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        norm = 0 if "rms_norm" not in site.op.kinds else 16 * divide(self.threads(site, s) // (s["subgroup"] or 1), 4)
        return norm + 4 * s["groups"] * self._rounded(site)

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"streams": self._streams(site), "rows": self._rows(site), "normed": "rms_norm" in site.op.kinds,
                "rounded": self._rounded(site)}

    def _rows(self, site: Site) -> int:
        part = site.op.parts[0]
        return site.values[part.inputs[1 if part.kind == "cache_write" else 0]].shape[0]

    def _rounded(self, site: Site) -> int:
        """Elements of a head vector that goes into a cache whose layout rounds groups of them; 0 where none does."""
        return max((site.values[p.inputs[0]].shape[3] for p in site.op.parts if p.kind == "cache_write" and p.attr("rounding", "row") != "row"),
                   default=0)

    def _streams(self, site: Site) -> list[Stream]:
        """The streams of the op; none where its body is more than streams."""
        made = {n for p in site.op.parts for n in p.outputs}
        found: dict[str, Stream] = {}
        for part in site.op.parts:
            if part.kind == "split":
                if not _add_split(found, part, site.values) or part.inputs[0] in made:
                    return []
            elif (x := _vector(part)) not in made:
                if len(site.values[x].shape) != 3:
                    return []
                _, heads, dim = site.values[x].shape
                found.setdefault(x, Stream(x, heads * dim, 0, heads, dim))
        taken = sum(_follow(site, stream, name, made) for name, stream in found.items())
        streams = [s for s in found.values() if s.steps]
        for before, stream in pairwise(streams):
            stream.first = before.first + before.heads
        whole = taken == sum(p.kind != "split" for p in site.op.parts) and all(s.dim % 2 == 0 for s in streams)
        return streams if whole and len({site.values[s.source].shape[0] for s in streams}) == 1 else []


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


def _follow(site: Site, stream: Stream, name: str, made: set[str]) -> int:
    """Enter what is done to a stream that starts as `name`; the number of ops that this covers, -1000 where it does not go."""
    covered = 0
    while True:
        if name in site.op.outputs:
            stream.steps.append(SimpleNamespace(kind="store", out=name))
        readers = [p for p in site.op.parts if p.kind != "split" and _vector(p) == name]
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
