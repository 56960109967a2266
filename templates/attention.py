"""Attention of any rows, and of the rows of one sequence by tiles (https://arxiv.org/abs/2307.08691): bound by arithmetic."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Schedule, Site, divide
from .attention_split import AttentionSplit

# invocations that share a row, rows of them; (row, query head) pairs and keys of a block that each invocation takes
TILES = ((4, 2, 2, 2), (4, 8, 2, 4), (8, 4, 2, 1), (8, 4, 4, 4), (8, 8, 4, 4), (16, 8, 4, 2), (8, 8, 8, 4), (16, 16, 4, 2))


class Attention(AttentionSplit):
    """The schedules of attention_split for rows by themselves, and for a sequence: wide * down invocations, rows * keys scores each."""

    kind = "attention"

    def schedules(self, site: Site) -> Iterator[Schedule]:
        yield from super().schedules(site)
        dim, size = site.shape("q")[2], site.device.subgroup_size
        if not site.op.attr("sequence", False) or dim % 4:
            return
        for wide, down, rows, keys in TILES:
            if dim // 4 % wide == 0 and dim // 4 // wide * rows <= 40:      # what an invocation's registers hold
                subgroup = size if site.device.subgroups and wide <= size and wide * down % size == 0 else 0
                yield {"wide": wide, "down": down, "rows": rows, "keys": keys, "subgroup": subgroup}

    def cost(self, site: Site, s: Schedule) -> float:
        if "rows" not in s:
            return super().cost(site, s)
        device, (rows, q_heads, dim) = site.device, site.shape("q")
        x, y, _ = self.grid(site, s)
        block, threads = s["wide"] * s["keys"], self.threads(site, s)
        # rows of the tile see keys that differ by as much as they are apart, rounded up to blocks
        keys = self._keys(site) + s["down"] * s["rows"] / self._group(site) / 2 + block / 2
        columns = dim // s["wide"]
        loads = (s["rows"] + s["keys"]) / (s["rows"] * s["keys"]) + (s["rows"] + columns / 4) / (s["rows"] * columns / 4)
        work = rows * q_heads * keys * (4 * dim * (0.5 + loads) + 40)
        waves = divide(x * y * threads, device.width) * device.width
        barriers = keys / block * (4 if s["subgroup"] else 5) * 2e-8 * max(1.0, x * y * threads / device.width)
        return device.launch + work / device.flops * waves / (x * y * threads) + barriers

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        if "rows" not in s:
            return super().grid(site, s)
        return divide(site.shape("q")[0] * self._group(site), s["down"] * s["rows"]), site.shape("k")[1], 1

    def threads(self, site: Site, s: Schedule) -> int:
        return s["wide"] * s["down"] if "rows" in s else s["lanes"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        if "rows" not in s:
            return super().workgroup_bytes(site, s)
        dim, pairs, block = site.shape("q")[2], s["down"] * s["rows"], s["wide"] * s["keys"]
        shared = 0 if s["subgroup"] else 4 * s["rows"] * s["wide"] * s["down"]
        return 4 * pairs * dim + 4 * block * (dim + 4) + 16 * divide(pairs * (block + 1), 4) + 16 * divide(shared, 16)
