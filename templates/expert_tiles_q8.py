"""As expert_tiles, with x in 8-bit integers by blocks of 32 and packed integer dot products."""
from __future__ import annotations

from .expert_tiles import ExpertTiles
from .matmul_q8 import MatMulQ8


class ExpertTilesQ8(ExpertTiles, MatMulQ8):
    kinds = ("expert_matmul_q8", "expert_sum_q8")
