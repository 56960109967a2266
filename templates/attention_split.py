"""Attention of a few rows by parts of their keys (https://crfm.stanford.edu/2023/10/12/flashdecoding.html): bound by reading them."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..compiler.expressions import literal
from ..compiler.kernel import Kernel, Schedule, Site, divide
from ..compiler.layouts import LAYOUTS

LATENCY = 1e-6      # s between asking memory and having the answer under load: what must be under way to keep it busy


class AttentionSplit(Kernel):
    """heads: query heads a workgroup takes; cols: invocations that share a key; batch: keys that each of them reads ahead."""

    kind = "attention_split"

    def accepts(self, site: Site) -> bool:
        return site.op.kind == self.kind and all(LAYOUTS[site.values[n].layout].block == 4 for n in site.bound)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        units, together, size = self._units(site), self._group(site), site.device.subgroup_size
        for cols in [c for c in (1, 2, 4, 8, 16, 32) if units % c == 0][-3:]:
            subgroup = size if site.device.subgroups and 1 < cols <= size else 0
            per = units // cols
            # an invocation holds per * heads vectors of queries, as many of results, and per * batch of keys and of values
            heads = max((h for h in range(1, together + 1) if together % h == 0 and per * h <= 16), default=1)
            for batch in sorted({1, max(b for b in (1, 2, 4) if b == 1 or (heads * b <= 16 and per * (heads + b) <= 24))}):
                for lanes in (32, 128, 256, 512):
                    if not subgroup or lanes % size == 0:
                        yield {"lanes": lanes, "cols": cols, "heads": heads, "batch": batch, "subgroup": subgroup}

    def cost(self, site: Site, s: Schedule) -> float:
        device, (rows, q_heads, dim), keys = site.device, site.shape("q"), self._keys(site)
        x, y, z = self.grid(site, s)
        invocations = x * y * z * s["lanes"]
        item = site.bytes("k") / site.value("k").size
        again = self._group(site) // s["heads"] - 1
        traffic = 2 * rows * site.shape("k")[1] * keys * dim * item * (1 + 0.3 * again)
        under_way = invocations * s["batch"] * dim // s["cols"] * 2 * item
        read = traffic / device.bandwidth * max(1.0, device.bandwidth * LATENCY / under_way)
        # a key costs its products, and each of its invocations the sum over the others and two exponentials
        shared = 2 * s["cols"].bit_length() if s["subgroup"] else 3 * s["cols"] + 40 / s["batch"] if s["cols"] > 1 else 0
        extra = s["cols"] * (shared + 16 + 16 / s["batch"])
        if s["subgroup"] and s["cols"] >= 1 << (s["heads"] - 1).bit_length():       # scores are spread: few exponentials
            extra = 7 * s["cols"] + 40
        registers = 1 if s["heads"] * dim // s["cols"] <= 32 or not s["subgroup"] else 1.3
        # small workgroups share less of what is read, and large ones wait longer at their barriers
        uneven = 1 + 16 / s["lanes"] + s["lanes"] / 4096
        work = rows * q_heads * keys * (4 * dim + extra + dim / s["batch"]) * registers * uneven
        merge = 1.2e-7 * s["heads"] * (s["lanes"] // s["cols"]) * max(1.0, invocations / device.width)
        computed = work / device.flops / min(1.0, invocations / device.width)
        return device.launch + max(read, computed) + min(read, computed) / 4 + merge        # one hides most of the other

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return self._splits(site), site.shape("q")[1] // s["heads"], site.shape("q")[0]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        teams, heads = s["lanes"] // s["cols"], s["heads"]
        shared = 4 * heads * s["batch"] * s["lanes"] if s["cols"] > 1 and not s["subgroup"] else 0
        merged = 16 * divide(4 * teams * site.shape("q")[2], 16) * self._together(site, s)
        return merged + 48 * divide(teams * heads, 4) + 32 * divide(heads, 4) + shared

    def _together(self, site: Site, s: Schedule) -> int:
        """Heads whose teams are merged between two barriers: as many as a third of the workgroup memory holds."""
        each = 4 * s["lanes"] // s["cols"] * site.shape("q")[2]
        least = site.device.limit("max_compute_workgroup_storage_size") // 3 // each
        return max(h for h in range(1, s["heads"] + 1) if s["heads"] % h == 0 and h <= max(1, least))

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        attrs: dict[str, Any] = {"mask": "full", "window": 0, "cap": 0.0, **dict(site.op.attrs)}
        return {"mask": attrs["mask"], "window": attrs["window"], "scale": literal(float(attrs["scale"])),
                "cap": literal(float(attrs["cap"])) if attrs["cap"] else "", "splits": self._splits(site), "divided": self.kind == "attention",
                "least": int(attrs.get("least", 1)), "together": self._together(site, s) if "cols" in s else 0,
                "padded": 1 << (s.get("heads", 1) - 1).bit_length()}

    def _splits(self, site: Site) -> int:
        return int(site.op.attr("splits", 1))

    def _units(self, site: Site) -> int:
        dim = site.shape("q")[2]
        return dim // 4 if dim % 4 == 0 else dim

    def _group(self, site: Site) -> int:
        """Query heads that share a key head."""
        return site.shape("q")[1] // site.shape("k")[1]

    def _keys(self, site: Site) -> float:
        """Keys that a row is taken to see: half of what it can."""
        rows = site.shape("k")[2]
        return max(1.0, min(rows, int(site.op.attr("window", 0)) or rows) / 2)
