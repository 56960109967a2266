"""Y = X Wᵀ for many tokens, with element-wise ops after: bound by arithmetic, so tiles of both go through workgroup memory."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide
from ..compiler.layouts import LAYOUTS

# tile_rows, tile_cols, and the rows and cols of an invocation. Few rows leave few tiles, which small shares spread over many invocations;
# software adapters gather operands lane by lane, so they want large shares and few invocations.
TILES = ((8, 64, 8, 8), (16, 64, 8, 8), (64, 64, 8, 8), (128, 64, 8, 8), (128, 128, 8, 8),
         (32, 64, 8, 4), (64, 64, 8, 4), (16, 32, 4, 4), (32, 64, 4, 4), (16, 32, 2, 4), (16, 16, 2, 2))


class MatMul(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "matmul" and not site.prologue and site.elementwise_epilogue and self.fitting(site)

    def fitting(self, site: Site) -> bool:
        """Whether x and w can be read by quads."""
        x = site.value("x")
        return x.shape[-1] % 4 == 0 and x.layout == "row" and x.role != "input" and x.size > x.shape[-1]

    def schedules(self, site: Site) -> Iterator[Schedule]:
        block = LAYOUTS[site.value("w").layout].block
        for tile_rows, tile_cols, rows, cols in TILES:
            least = 16 if tile_rows + tile_cols > 128 else 32       # so that some schedules of all tiles keep to 16 KiB
            for tile_k in dict.fromkeys(max(k, block) for k in (least, 32)):
                yield {"tile_rows": tile_rows, "tile_cols": tile_cols, "tile_k": tile_k, "rows": rows, "cols": cols}

    def cost(self, site: Site, s: Schedule) -> float:
        x, y, z = self.grid(site, s)
        reads = site.bytes("w") * (1 + 0.2 * (y - 1)) + site.bytes("x") * (1 + 0.2 * (x - 1))      # again from the cache
        return self.seconds(site, s, x * y * z, reads)

    def seconds(self, site: Site, s: Schedule, workgroups: int, reads: float) -> float:
        """For so many working workgroups that read so many bytes."""
        device, rows, cols, lines = site.device, s["rows"], s["cols"], s["tile_rows"] + s["tile_cols"]
        # an invocation reads rows + cols operands for rows * cols products; loading an element of a tile takes as long as some products
        efficiency = 1 / (1 + (rows + cols) / (rows * cols) + 2 / s["tile_k"])
        products = (s["tile_rows"] * s["tile_cols"] + 12 * lines) * site.shape("x")[-1]
        # products of one invocation do not wait for each other, so that a sixteenth of the device's invocations keep it busy
        slots = max(1, device.width // (16 * self.threads(site, s)))
        barriers = 0.01 * divide(site.shape("x")[-1], s["tile_k"])
        arithmetic = 2 * products * divide(workgroups, slots) * slots / (device.flops * efficiency)
        return device.launch * (1 + barriers) + max(arithmetic, reads / device.bandwidth)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return divide(site.shape("w")[-2], s["tile_cols"]), divide(self._total(site), s["tile_rows"]), 1

    def threads(self, site: Site, s: Schedule) -> int:
        return s["tile_rows"] // s["rows"] * (s["tile_cols"] // s["cols"])

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 4 * s["tile_k"] * (s["tile_rows"] + s["tile_cols"])

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"total": self._total(site)}

    def _total(self, site: Site) -> int:
        return site.value("x").size // site.shape("x")[-1]
