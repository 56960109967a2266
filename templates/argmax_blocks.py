"""The best token of every block of the vocabulary: the first dispatch of greedy sampling."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide


class ArgmaxBlocks(Kernel):
    kind = "argmax_blocks"

    def accepts(self, site: Site) -> bool:
        return site.op.kind == self.kind

    def schedules(self, site: Site) -> Iterator[Schedule]:
        for size in sorted({site.device.subgroup_size if site.device.subgroups else 0, 0}, reverse=True):
            yield from ({"lanes": lanes, "subgroup": size} for lanes in (64, 256))

    def cost(self, site: Site, s: Schedule) -> float:
        x, y, z = self.grid(site, s)
        busy = min(x * y * z * s["lanes"], site.device.width)
        return site.device.launch + site.bytes() / site.device.bandwidth * site.device.width / busy + (0 if s["subgroup"] else 1e-8)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return divide(site.shape("logits")[1], self.block(site)), site.shape("params")[0], 1

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 3 * 16

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"vocab": site.shape("seen")[1], "block": self.block(site), "subgroups": bool(s["subgroup"])}

    def block(self, site: Site) -> int:
        return int(site.anchor.attr("block"))
