"""As expert_tiles, by products of small matrices."""
from __future__ import annotations

from ..compiler.kernel import Schedule, divide
from .expert_tiles import ExpertTiles
from .matmul_matrix import MatMulMatrix


class ExpertTilesMatrix(ExpertTiles, MatMulMatrix):
    def tiles(self, slots: int, used: int, s: Schedule) -> int:
        # experts have more tokens or fewer than their share, so that half a tile of each is empty
        return max(used, divide(2 * slots + used * s["tile_rows"], 2 * s["tile_rows"]))
