"""Y = X W[expert]ᵀ for many tokens: the rows of one expert are gathered into tiles, and experts that no token chose are not touched."""
from __future__ import annotations

from ..compiler.kernel import Schedule, Site, divide
from .matmul import MatMul


class ExpertTiles(MatMul):
    kinds = ("expert_matmul", "expert_sum")

    def accepts(self, site: Site) -> bool:
        product, total = self.kinds
        single = site.anchor.kind == total and site.shape("expert")[-1] == 1     # one choice a token: nothing to sum
        fits = (single or site.anchor.kind == product) and not site.prologue and site.elementwise_epilogue
        return fits and self.fitting(site) and site.value("expert").size <= 8192 and site.shape("w")[0] <= 256

    def cost(self, site: Site, s: Schedule) -> float:
        slots, experts = site.value("expert").size, site.shape("w")[0]
        used = min(slots, experts)
        tiles = self.tiles(slots, used, s)
        x, y, _ = self.grid(site, s)
        reads = site.bytes("w") // experts * used + site.bytes("x") * (1 + 0.2 * (x - 1))
        scan = 1e-8 * (divide(slots, self.threads(site, s)) + experts)
        return self.seconds(site, s, x * tiles, reads) + scan * max(1, x * y * self.threads(site, s) / site.device.width)

    def tiles(self, slots: int, used: int, s: Schedule) -> int:
        """How many tiles of rows have something to do."""
        return used * divide(divide(slots, used), s["tile_rows"])

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        slots, experts = site.value("expert").size, site.shape("w")[0]
        # most tiles: full ones, and one that is not full for each expert
        return divide(site.shape("w")[-2], s["tile_cols"]), min(slots, slots // s["tile_rows"] + experts), 1

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        words = (site.shape("w")[0], self.threads(site, s), s["tile_rows"], 4)
        return super().workgroup_bytes(site, s) + sum(16 * divide(n, 4) for n in words)

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return super().context(site, s) | {"slots": site.value("expert").size, "choices": site.shape("expert")[-1], "threads": self.threads(site, s)}
