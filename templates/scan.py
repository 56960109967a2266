"""Running sums and products along an axis, one invocation a line."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..compiler.indexing import Elements, computable, row_major
from ..compiler.kernel import Kernel, Schedule, Site, divide, spread


class Scan(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "scan" and site.op.parts[-1] is site.anchor and computable(site)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from ({"lanes": lanes} for lanes in (32, 64))

    def cost(self, site: Site, s: Schedule) -> float:
        length = site.out.shape[site.anchor.attr("axis")]
        return site.device.launch + site.bytes() / site.device.bandwidth + 2e-8 * length + 1e-9 * s["lanes"]

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(divide(site.out.size // site.out.shape[site.anchor.attr("axis")], s["lanes"]), site.device), 1

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        axis = int(site.anchor.attr("axis"))
        return {"elements": partial(Elements, site), "source": site.anchor.inputs[0], "length": site.out.shape[axis],
                "inner": row_major(site.out.shape)[axis], "count": site.out.size // site.out.shape[axis], "across": self.grid(site, s)[0],
                "scalar": "f32" if site.out.dtype in ("f32", "f16") else site.out.dtype}
