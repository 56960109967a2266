"""Top-k, top-p, min-p and the draw from what the blocks hold: the second dispatch of sampling."""
from __future__ import annotations

from ..compiler.kernel import Schedule, Site
from .argmax import Argmax

FEW = 512       # tokens that the last step compares with each other in workgroup memory


class Sample(Argmax):
    kind = "sample"

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 4 * site.shape("summary")[1] + 8 * FEW + 600

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {**super().context(site, s), "few": FEW}
