"""As expert_matvec, with x rounded to 8-bit integers and packed integer dot products."""
from __future__ import annotations

from ..compiler.kernel import Schedule, Site
from .expert_matvec import ExpertMatVec
from .matvec_q8 import MatVecQ8


class ExpertMatVecQ8(ExpertMatVec, MatVecQ8):
    activations = "q8"

    def schedules(self, site: Site):
        return MatVecQ8.schedules(self, site)

    def cost(self, site: Site, s: Schedule) -> float:
        return MatVecQ8.cost(self, site, s)
