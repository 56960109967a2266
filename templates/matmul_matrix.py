"""Y = X Wᵀ for many tokens by the products of small matrices that some devices have in hardware; browsers alone offer them."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.device import MATRICES
from ..compiler.kernel import Schedule, Site, divide
from .matmul import MatMul

# tile_rows, tile_cols, tile_k, and the rows and columns of a subgroup
TILES = ((128, 128, 64, 32, 64), (128, 128, 32, 64, 64), (128, 256, 32, 64, 64), (64, 128, 32, 32, 64), (64, 64, 64, 32, 32), (64, 64, 32, 32, 32),
         (32, 64, 64, 16, 32), (32, 64, 32, 16, 32))


class MatMulMatrix(MatMul):
    """x is stored in f16, so that multiplying in f16 takes nothing from it."""

    def fitting(self, site: Site) -> bool:
        """Whether the device has such products, x is in f16, and w is stored in no more bits than f16 holds."""
        x, w = site.value("x"), site.value("w")
        stored = x.dtype == "f16" and x.layout == "row" and x.role != "input" and w.layout != "row"
        return stored and x.shape[-1] % 32 == 0 and site.device.f16_matrices is not None

    def schedules(self, site: Site) -> Iterator[Schedule]:
        if not (matrices := site.device.f16_matrices):
            return
        for tile_rows, tile_cols, tile_k, sub_rows, sub_cols in TILES:
            if not (site.shape("x")[-1] % tile_k or sub_rows % matrices.m or sub_cols % matrices.n or tile_k % matrices.k):
                yield {"tile_rows": tile_rows, "tile_cols": tile_cols, "tile_k": tile_k, "sub_rows": sub_rows, "sub_cols": sub_cols,
                       "subgroup": site.device.subgroup_size}

    def cost(self, site: Site, s: Schedule) -> float:
        x, y, z = self.grid(site, s)
        return self.seconds(site, s, x * y * z, site.bytes("w") + site.bytes("x"))

    def seconds(self, site: Site, s: Schedule, workgroups: int, reads: float) -> float:
        device, k = site.device, site.shape("x")[-1]
        # a matrix of operands is read from workgroup memory for as many products as the subgroup has of the other's, and columns wait at barriers
        each = (7.4 * (1 / s["sub_rows"] + 1 / s["sub_cols"]) + 8.7 / s["tile_k"] - 0.16) / device.flops
        slots = max(1, device.width // (4 * self.threads(site, s)))
        arithmetic = 2 * s["tile_rows"] * s["tile_cols"] * k * each * divide(workgroups, slots) * slots
        return device.launch + max(arithmetic, reads / device.bandwidth)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        # tiles of the same columns follow one another, so that they find w in the cache
        return divide(self._total(site), s["tile_rows"]), divide(site.shape("w")[-2], s["tile_cols"]), 1

    def threads(self, site: Site, s: Schedule) -> int:
        return s["tile_rows"] // s["sub_rows"] * (s["tile_cols"] // s["sub_cols"]) * s["subgroup"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        matrices = site.device.f16_matrices
        assert matrices
        subgroups = self.threads(site, s) // s["subgroup"]
        return (s["tile_rows"] + s["tile_cols"]) * (2 * s["tile_k"] + 16) + 4 * subgroups * matrices.m * matrices.n

    def needs(self, site: Site, s: Schedule) -> frozenset[str]:
        return frozenset({"subgroups", "shader-f16", MATRICES})

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return super().context(site, s) | {"matrices": site.device.f16_matrices}
