"""Round rows to 8-bit integers in blocks of 32, with an RMS norm before: once for all projections that read them."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide


class Quantize(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "quantize" and not site.epilogue and [p.kind for p in site.prologue] in ([], ["rms_norm"])

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size = site.device.subgroup_size
        for lanes in (32, 64, 128, 256, 512, 1024):
            each = divide(self._quads(site), lanes) if site.prologue else 1
            if each <= 16:
                if site.device.subgroups and size >= 8 and lanes % size == 0:
                    yield {"lanes": lanes, "each": each, "subgroup": size}
                yield {"lanes": lanes, "each": each, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        steps = s["each"] * (1 if s["subgroup"] else 3) + 2 + s["lanes"] / 256
        workgroups = self.grid(site, s)[0] * self.grid(site, s)[1]
        return site.device.launch + 1e-7 * steps * max(1.0, workgroups * s["lanes"] / site.device.width) + site.bytes() / site.device.bandwidth

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        rows = site.value("x").size // site.shape("x")[-1]
        return 1 if site.prologue else divide(self._quads(site), s["lanes"]), rows, 1

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 4 * s["lanes"] * (0 if s["subgroup"] else 3) + 16 * divide(s["lanes"] // max(s["subgroup"], 1), 4)

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"quads": self._quads(site), "shuffles": s["subgroup"] > 0}

    def _quads(self, site: Site) -> int:
        return site.shape("x")[-1] // 4
