"""Put the parts of split attention together, with the sinks if there are any."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide


class AttentionMerge(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.op.kind == "attention_merge" and all(site.values[n].layout == "row" for n in site.bound)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size = site.device.subgroup_size
        for lanes in (8, 32, 64, 128, 256):
            if site.device.subgroups and lanes % size == 0:
                yield {"lanes": lanes, "subgroup": size}
            yield {"lanes": lanes, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        rows, heads, splits, columns = site.shape("parts")
        reductions = 2 * (2 if s["subgroup"] else s["lanes"].bit_length())
        steps = divide(columns - 2, s["lanes"]) * splits / 4 + 2 * divide(splits, s["lanes"]) + reductions
        busy = max(1.0, rows * heads * s["lanes"] / site.device.width)
        return site.device.launch + site.bytes() / site.device.bandwidth + 1e-8 * steps * busy

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return site.shape("parts")[1], site.shape("parts")[0], 1

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        scratch = 4 * s["lanes"] if not s["subgroup"] else 16 * divide(s["lanes"] // s["subgroup"], 4)
        return 16 * divide(4 * site.shape("parts")[2], 16) + 16 * divide(scratch, 16)
