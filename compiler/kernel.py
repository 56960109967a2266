"""What a kernel says of itself besides its template, and the view of an op that it is asked about."""
from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from .device import Device
from .ir import Graph, Op, Value
from .layouts import LAYOUTS, plane_bytes
from .ops import OPS

Schedule = dict[str, int]


class Site:
    """One op, plain or fused, with the values around it and the device it shall run on.

    anchor: the op of the body that a kernel is about (the first where none is marked as an anchor);
    prologue and epilogue: the ops of the body before and after it; rounding: a `quantize` of their result at the end, if there is one.
    """

    def __init__(self, graph: Graph, op: Op, device: Device):
        self.op, self.device, self.values = op, device, graph.values
        parts = op.parts
        at = next((i for i, p in enumerate(parts) if OPS[p.kind].anchor), 0)
        rounded = len(parts) > at + 1 and parts[-1].kind == "quantize"
        self.anchor, self.prologue, self.epilogue = parts[at], parts[:at], parts[at + 1:len(parts) - rounded]
        self.rounding = parts[-1] if rounded else None

    @cached_property
    def operands(self) -> dict[str, str]:
        """The anchor's operand names to value names; an operand that the prologue makes is the prologue's own first operand."""
        made = {p.outputs[0]: p.inputs[0] for p in self.prologue if p.inputs}
        return {name.rstrip("?"): made.get(value, value) for name, value in zip(OPS[self.anchor.kind].operands, self.anchor.inputs, strict=False)}

    def value(self, operand: str) -> Value:
        """The value of one of the anchor's operands."""
        return self.values[self.operands[operand]]

    def shape(self, operand: str) -> tuple[int, ...]:
        return self.value(operand).shape

    @cached_property
    def out(self) -> Value:
        return self.values[self.op.outputs[0]]

    @property
    def elementwise_epilogue(self) -> bool:
        """Whether all that follows the anchor is element-wise, on whole results or (`unzip`) on pairs of them, without rounding."""
        return self.rounding is None and self.elementwise_results

    @property
    def elementwise_results(self) -> bool:
        """The same, where the results may be rounded at the end."""
        if self.rounding and (self.rounding.inputs[0] not in {n for p in self.epilogue for n in p.outputs} | set(self.anchor.outputs)
                              or (self.pairs and self.rounding.inputs[0] in self.anchor.outputs)):
            return False
        fits = all(OPS[p.kind].elementwise or (p.kind == "unzip" and i == 0) for i, p in enumerate(self.epilogue))
        return fits and not (self.pairs and set(self.op.outputs) & set(self.anchor.outputs))

    @property
    def pairs(self) -> bool:
        """Whether the epilogue takes columns two by two: even and odd ones, or those of a head that RoPE turns together."""
        return self.to_caches or (bool(self.epilogue) and self.epilogue[0].kind == "unzip")

    @property
    def to_caches(self) -> bool:
        """Whether the anchor's results end in caches."""
        return OPS[self.anchor.kind].anchor and any(p.kind == "cache_write" for p in self.epilogue)

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Input names whose buffers outputs continue, to those outputs."""
        return {p.inputs[i]: p.outputs[o] for p in self.op.parts for o, i in OPS[p.kind].inplace.items()}

    @cached_property
    def bound(self) -> tuple[str, ...]:
        """Values that the dispatch binds, in order: read operands, then outputs. Host inputs come through the step buffer."""
        reads = [n for n in self.op.inputs if self.values[n].role != "input" and n not in self.aliases]
        return (*reads, *self.op.outputs)

    @cached_property
    def steps(self) -> bool:
        """Whether the op reads host inputs."""
        return any(self.values[n].role == "input" for n in self.op.inputs)

    @cached_property
    def bindings(self) -> int:
        """How many storage buffers a dispatch binds."""
        return sum(len(LAYOUTS[self.values[n].layout].planes) for n in self.bound) + self.steps

    @cached_property
    def largest_binding(self) -> int:
        """Bytes of the largest."""
        return max((b for v in map(self.values.__getitem__, self.bound) for b in plane_bytes(v.shape, v.dtype, v.layout)), default=0)

    @cached_property
    def types_need(self) -> frozenset[str]:
        """Features that the types of what is bound need."""
        half = any(self.values[n].dtype == "f16" and self.values[n].layout == "row" for n in self.bound)
        return frozenset({"shader-f16"} if half else ())

    def bytes(self, *operands: str) -> int:
        """Bytes that the anchor's operands (all of them, and the outputs, if none is named) take in memory."""
        names = [self.operands[o] for o in operands] or list(self.bound)
        return sum(sum(plane_bytes(v.shape, v.dtype, v.layout)) for v in (self.values[n] for n in names))

    @cached_property
    def signature(self) -> str:
        """What decides this op's shader on a device: kinds, attributes, types; no names of values."""
        slot = {n: f"a{i}" for i, n in enumerate(self.op.inputs)}
        slot |= {n: f"t{i}" for i, n in enumerate(n for p in self.op.parts for n in p.outputs)}
        types = "".join(f"{self.values[n]}{self.values[n].role[0]} " for n in self.op.inputs)
        body = "; ".join(f"{p.kind}({','.join(slot[n] for n in p.inputs)}{''.join(f' {k}={v}' for k, v in p.attrs)})"
                         f"->{','.join(f'{slot[n]}:{self.values[n]}' for n in p.outputs)}" for p in self.op.parts)
        return f"{types}| {body} | {','.join(slot[n] for n in self.op.outputs)}"


def form(op: Op, values: Mapping[str, Value]) -> tuple[Hashable, tuple[str, ...]]:
    """What an op is but for the names of its values, as `signature` says in words: equal layers have equal ones. And the names, in order."""
    places: dict[str, int] = {}
    place = places.setdefault
    operands = tuple([place(n, len(places)) for n in op.inputs])
    parts = tuple([(p.kind, repr(p.attrs) if p.attrs else "",       # in words, since 0.0 equals -0.0
                    tuple([place(n, len(places)) for n in p.inputs]), tuple([place(n, len(places)) for n in p.outputs])) for p in op.parts])
    types = tuple([(v.shape, v.dtype, v.role, v.layout) for v in map(values.__getitem__, places)])
    return (operands, parts, types, tuple([places[n] for n in op.outputs])), tuple(places)


class Kernel:
    """A template NAME.wgsl beside NAME.py, and what the compiler asks about it. The name is the file's stem."""

    @cached_property
    def source(self) -> Path:
        return Path(inspect.getfile(type(self))).with_suffix(".wgsl")

    @property
    def name(self) -> str:
        return self.source.stem

    def accepts(self, site: Site) -> bool:
        """Whether the kernel can run this op, plain or fused, at all."""
        raise NotImplementedError

    def schedules(self, site: Site) -> Iterator[Schedule]:
        """The ways to cut the work up that fit the device's features; limits are checked by the caller."""
        raise NotImplementedError

    def cost(self, site: Site, s: Schedule) -> float:
        """Estimated seconds."""
        raise NotImplementedError

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        """Workgroups in x, y, z."""
        raise NotImplementedError

    def threads(self, site: Site, s: Schedule) -> int:
        """Invocations of a workgroup."""
        return s["lanes"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        """Bytes of workgroup memory, every variable rounded up to 16."""
        return 0

    def needs(self, site: Site, s: Schedule) -> frozenset[str]:
        """Features that the shader needs beyond those of its values' types."""
        return frozenset({"subgroups"} if s.get("subgroup") else ())

    def context(self, site: Site, s: Schedule) -> dict[str, Any]:
        """What the template is specialised for besides shapes, attributes and the schedule."""
        return {}

    def tolerance(self, site: Site) -> tuple[float, float]:
        """Relative and absolute tolerance against the op's numpy meaning, for tests; a kernel that needs more says why.

        What is f16 within a fused op is rounded by numpy only."""
        names = (*site.bound, *(n for p in site.op.parts for n in p.outputs))
        return (1e-2, 2e-3) if any(site.values[n].dtype == "f16" for n in names) else (1e-4, 1e-4)


def spread(groups: int, device: Device) -> tuple[int, int]:
    """Workgroups in x and y for a count that may exceed one dimension's limit; kernels use `group.x + group.y * X`."""
    most = device.limit("max_compute_workgroups_per_dimension")
    rows = -(-groups // most)
    return -(-groups // rows), rows


def divide(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)
