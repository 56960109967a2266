"""Updates written or added into a tensor; one invocation goes through the updates of a line in their order, so nothing races."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..compiler.indexing import Elements, computable
from ..compiler.kernel import Kernel, Schedule, Site, divide, spread

CHANGED = {"replace": "{1}", "sum": "{0} + {1}", "product": "{0} * {1}", "maximum": "max({0}, {1})", "minimum": "min({0}, {1})"}


class Scatter(Kernel):
    def accepts(self, site: Site) -> bool:
        made = {n for p in site.prologue for n in p.outputs}
        alone = site.anchor.kind == "scatter" and site.op.parts[-1] is site.anchor and site.anchor.inputs[0] not in made
        return alone and computable(site) and site.anchor.inputs[0] in site.aliases

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from ({"lanes": lanes} for lanes in (32, 64))

    def cost(self, site: Site, s: Schedule) -> float:
        lines, size = int(site.anchor.attr("lines")), site.values[site.anchor.inputs[1]].size
        return site.device.launch + 4e-8 * (size // lines) * max(1, lines / site.device.width) + 1e-9 * s["lanes"]

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(divide(int(site.anchor.attr("lines")), s["lanes"]), site.device), 1

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        lines, (_, target, updates) = int(site.anchor.attr("lines")), site.anchor.inputs
        return {"elements": partial(Elements, site), "places": target, "changes": updates, "steps": site.values[target].size // lines,
                "lines": lines, "across": self.grid(site, s)[0], "changed": CHANGED[str(site.anchor.attr("how"))].format}
