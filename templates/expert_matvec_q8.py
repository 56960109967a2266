"""As expert_matvec, with x in 8-bit integers by blocks of 32 and packed integer dot products."""
from __future__ import annotations

from ..compiler.kernel import Schedule, Site
from .expert_matvec import ExpertMatVec
from .matvec_q8 import MatVecQ8


class ExpertMatVecQ8(MatVecQ8):
    kinds = ("expert_matmul_q8", "expert_sum_q8")

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return super().context(site, s) | {"summed": site.anchor.kind == "expert_sum_q8", "choices": site.shape("expert")[-1]}

    def _total(self, site: Site) -> int:
        return site.shape("expert")[0] if site.anchor.kind == "expert_sum_q8" else site.value("expert").size

    def _tokens(self, site: Site) -> int:
        return ExpertMatVec._tokens(self, site)     # type: ignore[arg-type]

    def _work(self, site: Site, s: Schedule) -> tuple[int, int]:
        return ExpertMatVec._work(self, site, s)    # type: ignore[arg-type]
