"""Merge an op into the one that makes its operand, wherever some kernel runs both in one dispatch.

before: %n = rms_norm(%x, %g)   %m = matmul(%n, %w)   %y = add(%r, %m)
after:  %y = fused(%x, %g, %w, %r) with the three in its body
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..device import Device
from ..ir import Graph, Op
from ..kernel import Kernel, Site
from ..liveness import drop_dead
from ..ops import OPS

# cheap enough to run again in every reader rather than once on its own
REPEATED = ("rms_norm",)


def fuse(graph: Graph, device: Device, kernels: Mapping[str, Kernel]) -> Graph:
    return drop_dead(_Fusion(graph, device, kernels).run())


class _Fusion:
    """The list being rewritten: ops by place (None where an op went into another), and who makes and reads each name."""

    def __init__(self, graph: Graph, device: Device, kernels: Mapping[str, Kernel]):
        self.graph, self.device, self.kernels = graph, device, kernels
        self.ops: list[Op | None] = list(graph.ops)
        self.maker = graph.producers()
        self.readers = {n: set(r) for n, r in graph.readers().items()}

    def run(self) -> Graph:
        for i in range(len(self.ops)):
            while self._merge_into(i):
                pass
        return self.graph.with_ops(op for op in self.ops if op)

    def _merge_into(self, i: int) -> bool:
        """Merge one producer of op i into it."""
        op = self.ops[i]
        assert op
        for p in sorted({self.maker[n] for n in op.inputs if n in self.maker}, reverse=True):
            producer = self.ops[p]
            if producer and p < i:
                if producer.kind in REPEATED:
                    if self._all_absorb(producer, p) and (merged := self._merged(producer, op, keep=False)):
                        self._place(merged, i, ())
                        return True
                elif self._may_move(producer, p, i) and (merged := self._merged(producer, op, keep=True)):
                    self._place(merged, i, (p,))
                    return True
        return False

    def _merged(self, producer: Op, op: Op, keep: bool) -> Op | None:
        """Both in one op, if a kernel takes it. keep: the producer's results that others read stay outputs."""
        body = (*producer.parts, *op.parts)
        made = {n for p in body for n in p.outputs}
        inside = set(op.inputs)
        still = [n for n in producer.outputs if keep and (n in self.graph.outputs or n not in inside or len(self.readers.get(n, ())) > 1
                                                          or any(OPS[p.kind].inplace and n in p.outputs for p in producer.parts))]
        inputs = tuple(dict.fromkeys(n for p in body for n in p.inputs if n not in made))
        merged = Op("fused", inputs, (*still, *op.outputs), body=body)
        anchors = [p.kind for p in body if OPS[p.kind].anchor]
        return merged if len(anchors) <= 1 and self._accepted(merged) else None

    def _accepted(self, op: Op) -> bool:
        site = Site(self.graph, op, self.device)
        return site.bindings <= self.device.limit("max_storage_buffers_per_shader_stage") and any(k.accepts(site) for k in self.kernels.values())

    def _all_absorb(self, producer: Op, p: int) -> bool:
        readers = self.readers.get(producer.outputs[0], set()) - {p}
        name = producer.outputs[0]
        others = [op for j in readers if (op := self.ops[j])]
        return name not in self.graph.outputs and all(any(name in q.outputs for q in r.body) or self._merged(producer, r, keep=False) for r in others)

    def _may_move(self, producer: Op, p: int, i: int) -> bool:
        """Whether the producer may run at place i: nobody between reads its results or renames what it reads."""
        between: Iterable[Op] = (o for o in self.ops[p + 1:i] if o)
        touched = set(producer.inputs)
        return min((j for n in producer.outputs for j in self.readers.get(n, ()) if j != p), default=i) >= i and not any(
            touched & {part.inputs[k] for part in o.parts for k in OPS[part.kind].inplace.values()} for o in between)

    def _place(self, merged: Op, i: int, gone: tuple[int, ...]) -> None:
        for j in (*gone, i):
            old = self.ops[j]
            assert old
            for n in old.inputs:
                self.readers[n].discard(j)
            self.ops[j] = None
        self.ops[i] = merged
        for n in merged.inputs:
            self.readers.setdefault(n, set()).add(i)
        for n in merged.outputs:
            self.maker[n] = i
