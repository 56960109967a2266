"""The epilogue of a projection to heads: a bias, split, RoPE, scales and cache writes on the results while they are in registers.

An invocation has the two columns of a head that turn together: neighbours, or rows of the weight that lie half a rotary part apart.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .expressions import broadcast_index, element, operands_read
from .ir import Op
from .kernel import Site
from .ops import OPS
from .streams import Stream, streams

STEPS = {"rope", "position_scale", "element", "cache_write", "store"}


def head_streams(site: Site) -> list[Stream]:
    """What becomes of the results of a site's anchor, [rows, columns], if all but one stream (the queries, perhaps) go into caches of plain
    elements and nowhere else; none otherwise.

    With more to store, a part of the work between projection and attention is elsewhere, and belongs together there."""
    before, parts = _around_split(site)
    if not parts or site.rounding or not all(_plain(site, p) for p in before):
        return []
    found = streams(site, parts)
    steps = [step for s in found for step in s.steps]
    caches = [site.values[step.out] for step in steps if step.kind == "cache_write"]
    alone = all(s.source == (before[-1] if before else site.anchor).outputs[0] for s in found)
    whole = alone and sum(s.heads * s.dim for s in found) == site.values[site.anchor.outputs[0]].shape[-1] == site.shape("w")[-2]
    few = caches and sum(step.kind == "store" for step in steps) <= 1 and all(c.layout == "row" for c in caches)
    ours = {step.kind for step in steps} <= STEPS and len({(s.rotary, s.interleaved) for s in _turned(found)}) <= 1
    uncut = site.bytes("w") <= site.device.limit("max_storage_buffer_binding_size")
    return found if whole and few and ours and uncut else []


def _around_split(site: Site) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    at = next((i for i, p in enumerate(site.epilogue) if p.kind == "split"), len(site.epilogue))
    return site.epilogue[:at], site.epilogue[at:]


def _plain(site: Site, op: Op) -> bool:
    """Whether an op is element-wise on all results of the anchor and leaves what it makes to the next one."""
    kind, made = OPS[op.kind], site.values[op.outputs[0]]
    return kind.elementwise and not kind.inplace and not kind.chosen and made.shape == site.values[site.anchor.outputs[0]].shape


def _turned(found: list[Stream]) -> list[Stream]:
    return [s for s in found if any(step.kind == "rope" for step in s.steps)]


class FinishHeads:
    """As codegen.Finish, with pairs, for an epilogue of `head_streams`; `line` says where a row of results has its row of the weight."""

    def __init__(self, site: Site, operands: Mapping[str, Any]):
        self.site, self.operands = site, operands
        self.before = _around_split(site)[0]
        self.streams = head_streams(site)
        self.dim = self.streams[0].dim
        turned = _turned(self.streams)
        self.apart = turned[0].rotary if turned and not turned[0].interleaved else 1
        self.held = dict[tuple, str]()

    def line(self, row: str, part: int) -> str:
        """The row of the weight for result `row` of the anchor, the first (part 0) or second (1) of a pair."""
        if self.apart == 1:
            return row
        return f"(({row}) / {self.dim}u * {self.dim}u + {self._element(f'({row}) % {self.dim}u / 2u', part)})"

    def _element(self, pair: str, part: int) -> str:
        """The element of its head that a pair's part is."""
        neighbour, far = f"2u * ({pair}) + {part}u", f"{pair} + {part * self.apart}u"
        if self.apart == 1:
            return neighbour
        return far if 2 * self.apart == self.dim else f"select({neighbour}, {far}, {pair} < {self.apart}u)"

    def ahead(self, row: str, col: str) -> str:
        """Statements that place pair `col` of a row's results and ask for what its epilogue reads, so that memory answers while the
        results are still being made. row and col must be in range."""
        half = self.dim // 2
        lines = [f"let pair = {col} % {half}u;", f"let head = {col} / {half}u;",
                 *(f"let {name} = {self._element('pair', part)};" for part, name in enumerate("ab"))]

        def hold(key: tuple, text: str) -> str:
            if key not in self.held:
                self.held[key] = f"held{len(self.held)}"
                lines.append(f"let {self.held[key]} = {text};")
            return self.held[key]

        made = {*self.site.anchor.outputs, *(n for op in self.before for n in op.outputs)}
        for op in self.before:
            for name in (n for n in operands_read(op) if n not in made):
                for part in (0, 1):
                    at = broadcast_index(self.site.values[op.outputs[0]].shape, self.site.values[name].shape, row, self._column(part))
                    hold((name, part), self.operands[name].load(at))
        for step in (step for s in self.streams for step in s.steps if "position" in vars(step)):
            position = hold((step.position,), self.operands[step.position].load(row))
            if step.kind == "cache_write":
                hold((step.slot,), self.operands[step.slot].load(row))
                continue
            table = self.operands[step.table]
            line = f"min(u32(max({position}, 0)), {table.shape[0] - 1}u)"
            if step.kind == "rope":
                turn = f"{line} * {2 * table.shape[1]}u + 2u * min(pair, {table.shape[1] - 1}u)"
                hold((step.table, step.position, "cos"), table.load(turn))
                hold((step.table, step.position, "sin"), table.load(f"{turn} + 1u"))
            else:
                hold((step.table, step.position), table.load(line))
        return " ".join(lines)

    def _column(self, part: int) -> str:
        return f"(head * {self.dim}u + {'ab'[part]})"

    def __call__(self, acc: list[str], row: str, col: str, keep: str = "") -> str:
        """acc: the results of the pair that `ahead` placed."""
        pair = []
        for part, result in enumerate(acc):
            text = {self.site.anchor.outputs[0]: result}
            for op in self.before:
                read = operands_read(op)
                text[op.outputs[0]] = element(op, [text.get(n) or self.held[n, part] if n in read else "" for n in op.inputs])
            pair.append(text[self.streams[0].source])
        lines = [f"var v = vec2<f32>({', '.join(pair)});"]
        for i, s in enumerate(self.streams):
            last = i == len(self.streams) - 1
            lines.append(("else " if i else "") + ("" if last else f"if (head < {(s.offset // self.dim) + s.heads}u) ") + self._stream(s, row))
        return "{ " + "\n".join(lines) + " }"

    def _stream(self, s: Stream, row: str) -> str:
        nth = f"head - {s.offset // self.dim}u" if s.offset else "head"
        steps = "\n".join(self._step(step, s, row) for step in s.steps)
        return f"{{ let nth = {nth}; let vector = {row} * {s.heads}u + nth;\n{steps} }}"

    def _step(self, step: Any, s: Stream, row: str) -> str:
        if step.kind == "rope":
            cos, sin = (self.held[step.table, step.position, part] for part in ("cos", "sin"))
            turned = f"v = vec2<f32>(v.x * {cos} - v.y * {sin}, v.x * {sin} + v.y * {cos});"
            return turned if 2 * s.rotary == s.dim else f"if (pair < {s.rotary}u) {{ {turned} }}"
        if step.kind == "position_scale":
            return f"v *= {self.held[step.table, step.position]};"
        if step.kind == "element":
            x, y = (step.element(self.operands.__getitem__, f"v.{c}", "vector", e) for c, e in ("xa", "yb"))
            return f"v = vec2<f32>({x}, {y});"
        out = self.operands[step.out]
        if step.kind == "store":
            return self._both(out, f"vector * {s.dim}u")
        slots, _, rows, _ = out.shape
        position, slot = self.held[step.position,], self.held[step.slot,]
        line = f"((min(u32({slot}), {slots - 1}u) * {s.heads}u + nth) * {rows}u + u32({position}) % {rows}u) * {s.dim}u"
        return f"if ({position} >= 0) {{ let line = {line}; {self._both(out, 'line')} }}"

    def _both(self, out: Any, start: str) -> str:
        return " ".join(f"{out.store(f'{start} + {e}', f'v.{c}')};" for c, e in ("xa", "yb"))
