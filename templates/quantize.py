"""Round rows, times a weight perhaps, to 8-bit integers in blocks of 32: once for all projections that read them."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide


class Quantize(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.op.kind == "quantize"

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size = site.device.subgroup_size
        for lanes in (32, 64, 128, 256):
            if site.device.subgroups and size >= 8 and lanes % size == 0:
                yield {"lanes": lanes, "subgroup": size}
            yield {"lanes": lanes, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        steps = (1 if s["subgroup"] else 3) * max(1.0, site.value("x").size / 4 / site.device.width)
        return site.device.launch + 1e-7 * steps + 1e-10 * s["lanes"] + site.bytes() / site.device.bandwidth

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return divide(self._quads(site), s["lanes"]), site.value("x").size // site.shape("x")[-1], 1

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 0 if s["subgroup"] else 12 * s["lanes"]

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"quads": self._quads(site)}

    def _quads(self, site: Site) -> int:
        return site.shape("x")[-1] // 4
