"""Rows of a table by index: token embeddings, and picking the hidden states that the head shall see."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide
from ..compiler.layouts import LAYOUTS


class Gather(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "gather" and not site.prologue and site.elementwise_epilogue and not site.pairs

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from ({"lanes": lanes} for lanes in (32, 64))

    def cost(self, site: Site, s: Schedule) -> float:
        return site.device.launch + site.bytes("index") / site.device.bandwidth + 1e-9 * s["lanes"]

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        table = site.value("table")
        block = LAYOUTS[table.layout].block if table.layout != "row" else 4 if table.shape[1] % 4 == 0 else 1
        return divide(table.shape[1] // block, s["lanes"]), site.value("index").size, 1

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"pieces": any(k == "first" for k, _ in site.anchor.attrs)}
