"""Choose each token's experts and weigh them."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide, spread


class Route(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.op.kind == "route" and site.shape("logits")[-1] <= 1024 and self._top(site) <= 64

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size = site.device.subgroup_size
        for lanes in (8, 16, 32, 64, 128, 256):
            if lanes == 8 or lanes < 2 * site.shape("logits")[-1]:
                if site.device.subgroups and lanes % size == 0:
                    yield {"lanes": lanes, "subgroup": size}
                yield {"lanes": lanes, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        experts = site.shape("logits")[-1]
        steps = divide(experts, s["lanes"]) * (experts + 10) + (2 if s["subgroup"] else s["lanes"].bit_length())
        return site.device.launch + 1e-9 * steps * max(1, self._tokens(site) * s["lanes"] / site.device.width)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(self._tokens(site), site.device), 1

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        sums = 16 * divide(s["lanes"] // s["subgroup"], 4) if s["subgroup"] else 4 * s["lanes"]
        return 16 * divide(site.shape("logits")[-1], 4) + 16 * divide(self._top(site), 4) + sums

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"tokens": self._tokens(site), "across": self.grid(site, s)[0]}

    def _top(self, site: Site) -> int:
        return site.out.shape[-1]

    def _tokens(self, site: Site) -> int:
        return site.value("logits").size // site.shape("logits")[-1]
