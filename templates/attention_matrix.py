"""Attention of the rows of one sequence by products of small matrices, a tile of rows and a block of keys at a time
(https://arxiv.org/abs/2307.08691)."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.device import MATRICES
from ..compiler.kernel import Schedule, Site, divide
from .attention import Attention

MOST = 128      # elements of a head: a subgroup holds the queries and results of its rows in registers


class AttentionMatrix(Attention):
    """Queries, keys and values are stored in f16 or less; weights of the softmax are rounded to it, relative to their largest or nearly so."""

    def accepts(self, site: Site) -> bool:
        return super().accepts(site) and bool(site.op.attr("sequence", False)) and site.device.f16_matrices is not None and self.fitting(site)

    def fitting(self, site: Site) -> bool:
        dim, matrices = site.shape("q")[2], site.device.f16_matrices
        stored = all(site.value(n).dtype == "f16" or site.value(n).layout == "q8_cache" for n in ("q", "k", "v"))
        return stored and dim <= MOST and matrices is not None and not (dim % matrices.k or dim % matrices.n)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size = site.device.subgroup_size
        if not (matrices := site.device.f16_matrices):
            return
        for teams, block in ((4, 32), (2, 16)):
            if size % matrices.m == 0 and block % matrices.n == 0 and block % matrices.k == 0 and matrices.n // 4 % (size // matrices.m) == 0:
                yield {"teams": teams, "block": block, "subgroup": size}

    def cost(self, site: Site, s: Schedule) -> float:
        device, (rows, q_heads, dim) = site.device, site.shape("q")
        x, y, _ = self.grid(site, s)
        keys = self._keys(site) + s["teams"] * 8 / self._group(site) + s["block"] / 2
        slots = max(1, device.width // (2 * self.threads(site, s)))
        work = rows * q_heads * keys * (0.9 * dim + 33 + 660 / s["block"])
        return device.launch + work / device.flops * divide(x * y, slots) * slots / (x * y)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return divide(site.shape("q")[0] * self._group(site), self._pairs(site, s)), site.shape("k")[1], 1

    def threads(self, site: Site, s: Schedule) -> int:
        return s["teams"] * s["subgroup"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        pairs, lines = self._pairs(site, s), self._lines(site, s)
        return lines * (2 * site.shape("q")[2] + 16) + pairs * (4 * s["block"] + 16) + pairs * (2 * s["block"] + 16) + 16

    def needs(self, site: Site, s: Schedule) -> frozenset[str]:
        return frozenset({"subgroups", "shader-f16", MATRICES})

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        halves = {n: site.value(n).layout == "row" for n in ("k", "v")}
        return super().context(site, s) | {"matrices": site.device.f16_matrices, "pairs": self._pairs(site, s), "lines": self._lines(site, s),
                                           "halves": halves}

    def _pairs(self, site: Site, s: Schedule) -> int:
        """(row, query head) pairs of a workgroup: those of a small matrix for each subgroup."""
        matrices = site.device.f16_matrices
        assert matrices
        return s["teams"] * matrices.m

    def _lines(self, site: Site, s: Schedule) -> int:
        """Rows of workgroup memory for a block's keys and values, which the queries go through first."""
        return max(2 * s["block"], self._pairs(site, s))


