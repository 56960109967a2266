"""Put the parts of split attention together, with the sinks if there are any."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide

HELD = 16       # parts that an invocation asks for at once: more than that and registers run out


class AttentionMerge(Kernel):
    def accepts(self, site: Site) -> bool:
        if site.op.kinds not in (("attention_merge",), ("attention_merge", "quantize")):
            return False
        return (not site.rounding or self._dim(site) % 32 == 0) and all(site.values[n].layout == "row" for n in site.bound)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size, splits = site.device.subgroup_size, site.shape("parts")[2]
        widest = max(256, 1 << (self._units(site) - 1).bit_length())
        for lanes in (16, 32, 64, 128, 256, 512, 1024):
            teams = lanes // self._units(site)
            if teams and lanes <= widest and (divide(splits, teams) <= HELD or lanes == widest):
                if site.device.subgroups and lanes % size == 0:
                    yield {"lanes": lanes, "subgroup": size}
                yield {"lanes": lanes, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        rows, heads, splits, _ = site.shape("parts")
        teams = s["lanes"] // self._units(site)
        barriers = 2 * (1 if s["subgroup"] else s["lanes"].bit_length()) + (teams > 1)
        busy = max(1.0, rows * heads * s["lanes"] / site.device.width)
        return site.device.launch + site.bytes() / site.device.bandwidth + 2e-8 * (divide(splits, teams) + teams + barriers) * busy

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return site.shape("parts")[1], site.shape("parts")[0], 1

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        scratch = 4 * s["lanes"] if not s["subgroup"] else 16 * divide(s["lanes"] // s["subgroup"], 4)
        rounded = 0 if s["subgroup"] >= 8 or not site.rounding else 12 * s["lanes"]
        teams = s["lanes"] // self._units(site)
        return 16 * (divide(site.shape("parts")[2], 4) + divide(scratch, 16) + divide(rounded, 16) + divide(teams * self._dim(site), 4))

    def _dim(self, site: Site) -> int:
        return site.shape("parts")[3] - 4

    def _units(self, site: Site) -> int:
        """Groups of four of a head's result; elements, where it does not divide by four."""
        return self._dim(site) // 4 if self._dim(site) % 4 == 0 else self._dim(site)
