"""Divide rows by their root mean square (https://arxiv.org/abs/1910.07467)."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide, spread


class RmsNorm(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "rms_norm" and site.elementwise_epilogue and not site.pairs

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size = site.device.subgroup_size
        for lanes in (8, 16, 32, 64, 128, 256):
            for groups in (1, 4):
                if lanes * groups <= 256:
                    if site.device.subgroups and lanes % size == 0:
                        yield {"lanes": lanes, "groups": groups, "subgroup": size}
                    yield {"lanes": lanes, "groups": groups, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        units = site.shape("x")[-1] / 4
        steps = divide(int(units), s["lanes"]) + (2 if s["subgroup"] else s["lanes"].bit_length())
        return site.device.launch + site.bytes() / site.device.bandwidth + 1e-8 * steps * max(1, self._rows(site) * s["lanes"] / site.device.width)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(divide(self._rows(site), s["groups"]), site.device), 1

    def threads(self, site: Site, s: Schedule) -> int:
        return s["lanes"] * s["groups"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 4 * self.threads(site, s) if not s["subgroup"] else 16 * divide(self.threads(site, s) // s["subgroup"], 4)

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"threads": self.threads(site, s), "rows": self._rows(site), "across": self.grid(site, s)[0], "plain": not site.epilogue}

    def _rows(self, site: Site) -> int:
        return site.value("x").size // site.shape("x")[-1]
