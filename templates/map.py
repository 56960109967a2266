"""Element-wise ops, and the pure rearrangements, one invocation an element."""
from __future__ import annotations

import math
from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide, spread
from ..compiler.ops import OPS


class Map(Kernel):
    def accepts(self, site: Site) -> bool:
        first = site.op.parts[0].kind
        if first in ("split", "unzip", "slice", "concat"):
            return not site.op.body
        return all(OPS[p.kind].elementwise for p in site.op.parts) and len(site.op.outputs) == 1

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from ({"lanes": lanes} for lanes in (64, 128, 256))

    def cost(self, site: Site, s: Schedule) -> float:
        return site.device.launch + site.bytes() / site.device.bandwidth + 1e-9 * abs(s["lanes"] - 128)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(divide(self._count(site), s["lanes"]), site.device), 1

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        lead = site.values[site.op.inputs[0]] if site.op.parts[0].kind in ("split", "unzip") else site.out
        axis = int(site.anchor.attr("axis", 0))
        return {"kind": site.op.parts[0].kind, "count": self._count(site), "width": lead.shape[-1] if lead.shape else 1,
                "inner": math.prod(site.out.shape[axis + 1:]), "across": self.grid(site, s)[0]}

    def _count(self, site: Site) -> int:
        if site.op.parts[0].kind in ("split", "unzip"):
            return site.values[site.op.inputs[0]].size
        last = site.op.parts[-1]        # `store` writes the first rows of a larger state
        return site.values[last.inputs[1] if last.kind == "store" else last.outputs[0]].size
