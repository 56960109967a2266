"""y = W[expert] x for few tokens, or the sum over a token's experts: bound by reading the chosen experts, the only ones it reads."""
from __future__ import annotations

from ..compiler.kernel import Schedule, Site
from .matvec import MatVec


class ExpertMatVec(MatVec):
    def accepts(self, site: Site) -> bool:
        if site.anchor.kind not in ("expert_matmul", "expert_sum") or not site.elementwise_epilogue:
            return False
        normed = [p.kind for p in site.prologue] == ["rms_norm"] and len(site.shape("x")) == 2 and self._total(site) <= 64
        return not site.prologue or normed

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return super().context(site, s) | {"summed": site.anchor.kind == "expert_sum", "choices": site.shape("expert")[-1]}

    def _total(self, site: Site) -> int:
        return site.shape("expert")[0] if site.anchor.kind == "expert_sum" else site.value("expert").size

    def _tokens(self, site: Site) -> int:
        return 1    # tokens rarely share an expert

    def _passes(self, site: Site, s: Schedule) -> int:
        return 1

    def _work(self, site: Site, s: Schedule) -> tuple[int, int]:
        slots, experts = site.value("expert").size, site.shape("w")[0]
        return site.bytes("w") // experts * slots, site.value("w").size // experts * slots
