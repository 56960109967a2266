"""Y = X Wᵀ for many tokens, x in 8-bit integers by blocks of 32: packed integer dot products on tiles in workgroup memory."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Schedule, Site, divide
from .matmul import TILES, MatMul


class MatMulQ8(MatMul):
    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "matmul_q8" and not site.prologue and site.elementwise_epilogue and self._total(site) > 1

    def schedules(self, site: Site) -> Iterator[Schedule]:
        for tile_rows, tile_cols, rows, cols in TILES:
            for depth in (1, 2):
                if site.shape("w")[-1] // 32 % depth == 0:
                    yield {"tile_rows": tile_rows, "tile_cols": tile_cols, "depth": depth, "rows": rows, "cols": cols}

    def seconds(self, site: Site, s: Schedule, workgroups: int, reads: float) -> float:
        device, rows, cols, k = site.device, s["rows"], s["cols"], site.shape("w")[-1]
        # a block's product of 32 is some 20 instructions where 32 multiplications of numbers are 32; operands are read for each
        products = s["tile_rows"] * s["tile_cols"] * k * (0.6 + 0.8 * (rows + cols) / (rows * cols)) + 16 * k * (s["tile_rows"] + s["tile_cols"]) / 8
        # what waits in registers for its turn leaves room for less, and large workgroups wait longer at their barriers
        products *= 1 + 0.02 * s["depth"] * (s["tile_rows"] + s["tile_cols"]) / self.threads(site, s) + self.threads(site, s) / 2048
        slots = max(1, device.width // (16 * self.threads(site, s)))
        arithmetic = 2 * products * divide(workgroups, slots) * slots / device.flops
        # few tiles are bound by their steps, which wait for each other at barriers
        return device.launch + max(arithmetic, reads / device.bandwidth, 0.2 * device.launch * divide(k // 32, s["depth"]))

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return super().context(site, s) | {"tile_k": 32 * s["depth"]}

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 48 * s["depth"] * (s["tile_rows"] + s["tile_cols"])
