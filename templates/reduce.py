"""Sums, products, extremes and their places over any axes; what is reduced, and what follows, is computed in the same dispatch."""
from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from ..compiler.indexing import Elements, computable, constant, result_of, row_major, strided
from ..compiler.kernel import Kernel, Schedule, Site, divide, spread
from ..compiler.tensor_ops import ARGUMENTS

STARTS = {"sum": 0.0, "product": 1.0, "maximum": -math.inf, "minimum": math.inf}
INTEGER_STARTS = {"sum": 0, "product": 1, "maximum": -2**31, "minimum": 2**31 - 1}
MERGED = {"sum": "{0} + {1}", "product": "{0} * {1}", "maximum": "max({0}, {1})", "minimum": "min({0}, {1})"}


class Reduce(Kernel):
    """team: invocations that share one result."""

    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "reduce" and computable(site)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from ({"lanes": lanes, "team": 1} for lanes in (64, 256))
        yield from ({"lanes": max(team, 64), "team": team} for team in (8, 32, 64, 256))

    def cost(self, site: Site, s: Schedule) -> float:
        size, results = self._length(site), site.values[site.anchor.outputs[0]].size
        steps = divide(size, s["team"]) + 2 * s["team"].bit_length()
        return site.device.launch + site.bytes() / site.device.bandwidth + 2e-8 * steps * max(1, results * s["team"] / site.device.width)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(divide(site.values[site.anchor.outputs[0]].size, s["lanes"] // s["team"]), site.device), 1

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 4 * s["lanes"] * (2 if site.anchor.attr("how") in ARGUMENTS else 1) if s["team"] > 1 else 0

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        x, axes, how = site.values[site.anchor.inputs[0]], site.anchor.attr("axes"), str(site.anchor.attr("how"))
        dims = list(zip(x.shape, row_major(x.shape), strict=True))

        def where(index: str, reduced: bool) -> str:
            some = [d for k, d in enumerate(dims) if (k in axes) == reduced]
            return strided(index, tuple(d for d, _ in some), tuple(s for _, s in some))
        scalar = "f32" if x.dtype in ("f32", "f16") else x.dtype
        return {"elements": partial(Elements, site), "source": site.anchor.inputs[0], "made": site.anchor.outputs[0], "result": result_of(site),
                "count": site.values[site.anchor.outputs[0]].size, "length": self._length(site), "across": self.grid(site, s)[0], "scalar": scalar,
                "where": f"{where('i', False)} + {where('r', True)}", "places": how in ARGUMENTS,
                "better": f"value {'>' if 'max' in how else '<'} best || (value == best && place {'>' if how.endswith('last') else '<'} found)",
                "merged": MERGED.get(how, "").format, "start": constant((STARTS if scalar == "f32" else INTEGER_STARTS).get(how, 0), scalar)}

    def _length(self, site: Site) -> int:
        return math.prod(site.values[site.anchor.inputs[0]].shape[a] for a in site.anchor.attr("axes"))

    def tolerance(self, site: Site) -> tuple[float, float]:
        """A product of many numbers gathers an error a factor."""
        return (1e-3, 1e-3) if site.anchor.attr("how") == "product" else super().tolerance(site)
