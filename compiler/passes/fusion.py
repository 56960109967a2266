"""Merge an op into the one that makes its operand, wherever some kernel runs both in one dispatch.

before: %n = rms_norm(%x, %g)   %m = matmul(%n, %w)   %y = add(%r, %m)
after:  %y = fused(%x, %g, %w, %r) with the three in its body
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from ..device import Device
from ..ir import Graph, Op
from ..kernel import Kernel, Site, form
from ..liveness import drop_dead
from ..ops import OPS

# cheap enough to run again in every reader rather than once on its own
REPEATED = ("rms_norm",)


def fuse(graph: Graph, device: Device, kernels: Mapping[str, Kernel]) -> Graph:
    return drop_dead(_Fusion(graph, device, kernels).run())


class _Fusion:
    """The list being rewritten: ops by place (None where an op went into another), and who makes and reads each name.

    Layers are alike, so what kernels said of two ops is remembered by their form: forms, the number of an op's, and names, those that its
    body uses, are by place; a form is what an op is but for the names."""

    def __init__(self, graph: Graph, device: Device, kernels: Mapping[str, Kernel]):
        self.graph, self.device, self.kernels = graph, device, kernels
        self.ops: list[Op | None] = list(graph.ops)
        self.maker = graph.producers()
        self.readers = {n: set(r) for n, r in graph.readers().items()}
        self.numbers: dict[Hashable, int] = {}
        alone = [form(op, graph.values) for op in graph.ops]
        self.forms, self.names = [self._number(what) for what, _ in alone], [names for _, names in alone]
        self.accepted: dict[int, bool] = {}

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
                    if self._all_absorb(producer, p) and self._fits(p, i, ()):
                        self._place(p, i, (), gone=False)
                        return True
                elif self._may_move(producer, p, i):
                    still = self._read_later(producer, op)
                    if self._fits(p, i, still):
                        self._place(p, i, still, gone=True)
                        return True
        return False

    def _read_later(self, producer: Op, op: Op) -> tuple[str, ...]:
        """The producer's results that others than op read."""
        renamed = {n for p in producer.parts if OPS[p.kind].inplace for n in p.outputs}
        return tuple(n for n in producer.outputs if n in self.graph.outputs or n not in op.inputs or len(self.readers.get(n, ())) > 1 or n in renamed)

    def _fits(self, p: int, i: int, still: tuple[str, ...]) -> bool:
        """Whether a kernel takes both in one op, of which the producer's results `still` stay outputs."""
        number = self._merged_form(p, i, still)
        if number not in self.accepted:
            merged = self._merged(p, i, still)
            self.accepted[number] = sum(OPS[part.kind].anchor for part in merged.body) <= 1 and self._accepted(merged)
        return self.accepted[number]

    def _merged(self, p: int, i: int, still: tuple[str, ...]) -> Op:
        producer, op = self.ops[p], self.ops[i]
        assert producer and op
        body = (*producer.parts, *op.parts)
        made = {n for part in body for n in part.outputs}
        return Op("fused", tuple(dict.fromkeys(n for part in body for n in part.inputs if n not in made)), (*still, *op.outputs), body=body)

    def _accepted(self, op: Op) -> bool:
        site = Site(self.graph, op, self.device)
        return site.bindings <= self.device.limit("max_storage_buffers_per_shader_stage") and any(k.accepts(site) for k in self.kernels.values())

    def _merged_form(self, p: int, i: int, still: tuple[str, ...]) -> int:
        """Two forms, and which names are the same."""
        place = {n: k for k, n in enumerate(self.names[p])}
        return self._number((self.forms[p], self.forms[i], tuple([place.get(n, -1) for n in self.names[i]]), tuple([place[n] for n in still])))

    def _number(self, what: Hashable) -> int:
        return self.numbers.setdefault(what, len(self.numbers))

    def _all_absorb(self, producer: Op, p: int) -> bool:
        name = producer.outputs[0]
        if name in self.graph.outputs:
            return False
        readers = [(j, op) for j in self.readers.get(name, set()) - {p} if (op := self.ops[j])]
        return all(any(name in q.outputs for q in op.body) or self._fits(p, j, ()) for j, op in readers)

    def _may_move(self, producer: Op, p: int, i: int) -> bool:
        """Whether the producer may run at place i: nobody between reads its results or renames what it reads."""
        between: Iterable[Op] = (o for o in self.ops[p + 1:i] if o)
        touched = set(producer.inputs)
        return min((j for n in producer.outputs for j in self.readers.get(n, ()) if j != p), default=i) >= i and not any(
            touched & {part.inputs[k] for part in o.parts for k in OPS[part.kind].inplace.values()} for o in between)

    def _place(self, p: int, i: int, still: tuple[str, ...], gone: bool) -> None:
        """Put the two in one op at place i; gone: the producer is nowhere else."""
        merged, number = self._merged(p, i, still), self._merged_form(p, i, still)
        for j in (p, i) if gone else (i,):
            old = self.ops[j]
            assert old
            for n in old.inputs:
                self.readers[n].discard(j)
            self.ops[j] = None
        self.ops[i], self.forms[i], self.names[i] = merged, number, tuple(dict.fromkeys((*self.names[p], *self.names[i])))
        for n in merged.inputs:
            self.readers.setdefault(n, set()).add(i)
        for n in merged.outputs:
            self.maker[n] = i

