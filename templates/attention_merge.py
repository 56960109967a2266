"""Put the parts of split attention together, with the sinks if there are any."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide


class AttentionMerge(Kernel):
    def accepts(self, site: Site) -> bool:
        if site.op.kinds not in (("attention_merge",), ("attention_merge", "quantize")):
            return False
        return (not site.rounding or (site.shape("parts")[3] - 2) % 32 == 0) and all(site.values[n].layout == "row" for n in site.bound)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size = site.device.subgroup_size
        for lanes in (8, 32, 64, 128, 256):
            if site.rounding and 4 * lanes < site.shape("parts")[3] - 2:
                continue
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
        rounded = 4 * site.shape("parts")[3] + (0 if s["subgroup"] >= 8 else 12 * s["lanes"]) if site.rounding else 0
        return 16 * divide(4 * site.shape("parts")[2], 16) + 16 * divide(scratch, 16) + 16 * divide(rounded, 16)
