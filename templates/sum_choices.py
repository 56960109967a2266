"""y = the sum over a token's choices, weighed by their scores if there are any, and element-wise ops after: an invocation an element."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide, spread


class SumChoices(Kernel):
    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "sum_choices" and not site.prologue and site.elementwise_epilogue and not site.pairs

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from ({"lanes": lanes} for lanes in (64, 128, 256))

    def cost(self, site: Site, s: Schedule) -> float:
        return site.device.launch + site.bytes() / site.device.bandwidth + 1e-9 * abs(s["lanes"] - 128)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        rows, _, columns = site.shape("x")
        return *spread(divide(rows * columns, s["lanes"]), site.device), 1

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"across": self.grid(site, s)[0]}
