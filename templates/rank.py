"""The largest or smallest elements of lines, in order: every element counts those that come before it."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.indexing import row_major
from ..compiler.kernel import Kernel, Schedule, Site, divide, spread


class Rank(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.op.kind == "rank" and site.value("x").layout == "row"

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from ({"lanes": lanes} for lanes in (64, 128))

    def cost(self, site: Site, s: Schedule) -> float:
        x = site.value("x")
        length = x.shape[site.anchor.attr("axis")]
        return site.device.launch + 2e-9 * length * max(1, x.size / site.device.width) + 1e-9 * s["lanes"]

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(divide(site.value("x").size, s["lanes"]), site.device), 1

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        axis, shape = int(site.anchor.attr("axis")), site.shape("x")
        return {"length": shape[axis], "inner": row_major(shape)[axis], "size": site.value("x").size, "across": self.grid(site, s)[0]}
