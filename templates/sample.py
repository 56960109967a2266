"""Top-k, top-p, min-p and the draw from what the blocks hold: the second dispatch of sampling."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Schedule, Site
from .argmax import Argmax


class Sample(Argmax):
    kind = "sample"

    def schedules(self, site: Site) -> Iterator[Schedule]:
        # few: tokens that the last step compares with each other in workgroup memory
        yield from ({**s, "few": 512} for s in super().schedules(site))

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 4 * site.shape("summary")[1] + 8 * s["few"] + 600
