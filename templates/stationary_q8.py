"""Y = X Wᵀ for some tokens, x in 8-bit integers by blocks of 32 that stay in registers while W passes: bound by packed integer products.

What stays and what passes is told apart in https://arxiv.org/abs/1703.09039, section V: here a row of W is read once for many tokens.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from math import ceil, hypot

from ..compiler.head_results import head_streams
from ..compiler.kernel import Kernel, Schedule, Site, divide

MOST = 32       # tokens that are taken: more fill tiles
LANES = 16      # invocations that share columns where there are no subgroups
REGISTERS = 1 << 16     # of a core
SHAPES = ((2, 8), (4, 4), (4, 8), (8, 2), (8, 4))      # rows of x that stay, rows of W that pass at a time


class StationaryQ8(Kernel):
    """tokens: rows of x that a subgroup holds; rows: of W that it takes at a time, steps times; parts, teams: subgroups of a workgroup
    that share the columns and the rows."""

    def accepts(self, site: Site) -> bool:
        if site.anchor.kind != "matmul_q8" or site.prologue or not 2 <= self._total(site) <= MOST:
            return False
        if not site.elementwise_results and not head_streams(site):
            return False
        if self._total(site) > 8 and not site.elementwise_epilogue and not site.device.subgroups:
            return False        # tiles do better, with what follows apart
        whole = not site.rounding or site.bytes("w") <= site.device.limit("max_storage_buffer_binding_size")
        return whole and next(self.schedules(site), None) is not None

    def schedules(self, site: Site) -> Iterator[Schedule]:
        device, total, least = site.device, self._total(site), 2 if site.pairs else 1
        for tokens, rows in SHAPES:
            if rows % least or tokens >= 2 * total or (tokens < 4 and total > 4):
                continue        # for more tokens than there are, or for few of many
            for subgroup in sorted({0, device.subgroup_size if device.subgroups else 0}):
                lanes = subgroup or LANES
                if tokens > lanes:
                    continue
                for parts, teams, steps in product(_parts(divide(site.shape("w")[-1] // 32, lanes)), (1, 2, 4), (2, 4, 8, 16, 32)):
                    height = rows * steps * teams
                    if height <= min(128, 2 * site.shape("w")[-2]) and (not site.rounding or height // least % 32 == 0):
                        yield {"lanes": lanes, "tokens": tokens, "rows": rows, "steps": steps, "parts": parts, "teams": teams, "subgroup": subgroup}

    def cost(self, site: Site, s: Schedule) -> float:
        device, tokens, rows, threads = site.device, s["tokens"], s["rows"], self.threads(site, s)
        x, y, _ = self.grid(site, s)
        passes = divide(site.shape("w")[-1] // 32, s["lanes"] * s["parts"])
        cores = max(1, device.width // 1024)
        # instructions of an invocation: a product of 32, taking a block of W apart, reading x, and adding up the parts at the end
        work = passes * (s["steps"] * rows * (22 * tokens + 22) + 10 * tokens) + 2.4 * self._height(s) * tokens * s["parts"] / threads
        work *= 1 if s["subgroup"] else 1.5
        registers = 22 + 10 * tokens + 9 * rows + min(s["lanes"], rows * tokens)
        spilled = max(1.0, registers * threads / REGISTERS)
        together = max(1, REGISTERS // (min(registers, REGISTERS // threads) * threads))    # workgroups that a core holds
        each = x * y / cores
        busy = 2 * work * threads * cores / device.flops * (0.7 * ceil(each) + 0.3 * each)
        # what a workgroup takes when it has the core to itself: answers of memory, and sums that go from invocation to invocation
        alone = passes * (4.7e-7 + s["steps"] * (3.2e-7 + 1.5e-8 * rows * tokens)) + 1.1e-7
        waiting = alone * (0.7 * ceil(each / together) + 0.3 * max(1.0, each / together))
        return 1.7 * device.launch + hypot(busy, waiting, site.bytes("w") / device.bandwidth) * spilled**0.34

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        # workgroups of the same rows follow each other, so that these are read once
        return divide(self._total(site), s["tokens"]), divide(site.shape("w")[-2], self._height(s)), 1

    def threads(self, site: Site, s: Schedule) -> int:
        return s["lanes"] * s["parts"] * s["teams"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        kept = s["parts"] * self._height(s) * (s["tokens"] + 1)
        squares = s["parts"] * s["tokens"] if site.anchor.attr("eps", 0.0) else 0
        rounded = s["tokens"] * self._height(s) // (2 if site.pairs else 1) if site.rounding else 0
        scratch = 0 if s["subgroup"] else min(s["lanes"], s["rows"] * s["tokens"]) * self.threads(site, s)
        rounding = 3 * self.threads(site, s) if site.rounding and s["subgroup"] < 8 else 0
        return sum(16 * divide(count, 4) for count in (kept, squares, rounded, scratch, rounding))

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        def carried(fetched: str, used: str) -> list[str]:
            """What the names begin with w of what statements leave, and expressions use."""
            return [name for name in re.findall(r"let w(\w+) =", fetched) if re.search(rf"\bw{name}\b", used)]
        return {"total": self._total(site), "carried": carried}

    def _height(self, s: Schedule) -> int:
        """Rows of W that a workgroup takes."""
        return s["rows"] * s["steps"] * s["teams"]

    def _total(self, site: Site) -> int:
        """Rows of the result."""
        return site.value("x").size // site.shape("x")[-1]


def _parts(whole: int) -> list[int]:
    """Ways to share so many subgroups' blocks."""
    return sorted({parts for passes in (1, 2, 4, 8) if (parts := divide(whole, passes)) <= 32})
