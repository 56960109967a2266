"""Element-wise ops and rearrangements in one dispatch, one invocation an element of the result."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..compiler.indexing import Elements as Expressions
from ..compiler.indexing import computable, result_of
from ..compiler.kernel import Kernel, Schedule, Site, divide, spread
from ..compiler.ops import OPS
from ..compiler.tensor_ops import INDEXED

SHARED = ("concat",)    # which `map` runs alone, and decoders have


class Elements(Kernel):
    def accepts(self, site: Site) -> bool:
        ours = any(p.kind in INDEXED and p.kind not in SHARED for p in site.op.parts)
        return ours and not OPS[site.anchor.kind].anchor and computable(site)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from ({"lanes": lanes} for lanes in (64, 128, 256))

    def cost(self, site: Site, s: Schedule) -> float:
        return site.device.launch + site.bytes() / site.device.bandwidth + 1e-9 * abs(s["lanes"] - 128)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(divide(site.values[result_of(site)].size, s["lanes"]), site.device), 1

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        name = result_of(site)
        return {"elements": partial(Expressions, site), "result": name, "count": site.values[name].size, "across": self.grid(site, s)[0]}
