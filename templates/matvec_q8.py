"""y = W x for one token or a few, x in 8-bit integers by blocks of 32: packed integer dot products, bound by reading W."""
from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from ..compiler.expressions import literal
from ..compiler.head_results import head_streams
from ..compiler.kernel import Schedule, Site, divide
from .matvec import MatVec

# Invocations that share rows, and how many such groups a workgroup has. Many that share many rows hold more of x in registers; few that
# share few rows are ready sooner.
SHAPES = ((32, 4), (32, 2), (32, 8), (32, 16), (32, 32), (8, 4), (8, 8), (8, 16), (16, 8), (16, 16), (64, 2), (64, 4), (64, 8),
          (128, 4), (128, 8), (128, 2), (256, 1), (256, 2), (256, 4), (512, 1), (512, 2))

# Words that blocks under way may take: what registers hold; and of blocks that two loads read, which share sectors of memory, what caches do.
REGISTERS, CACHED = 150, 100
CORE = 1 << 16      # registers of a core


class MatVecQ8(MatVec):
    kinds: tuple[str, ...] = ("matmul_q8",)

    def accepts(self, site: Site) -> bool:
        if site.anchor.kind not in self.kinds or site.prologue:
            return False
        if not site.elementwise_results:
            return site.anchor.kind == "matmul_q8" and self._total(site) <= 8 and bool(head_streams(site))
        # rounding needs whole blocks: some way to hold them, and a weight that will not be cut into pieces
        whole = site.bytes("w") <= site.device.limit("max_storage_buffer_binding_size") and self._total(site) <= 8
        return not site.rounding or (whole and next(self.schedules(site), None) is not None)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size, least = site.device.subgroup_size, 2 if site.pairs else 1
        tokens, blocks = self._tokens(site), site.shape("w")[-1] // 32
        words = 8 * site.bytes("w") / site.value("w").size      # of a block
        most = max(least * tokens, (REGISTERS if words <= 8 else CACHED) / words)      # blocks under way; the fewest are always taken
        for lanes, groups in SHAPES:
            for rows in (1, 2, 4, 8) if lanes < 128 else (4, 8, 16, 32):
                for unroll in (1, 2, 4) if lanes < 128 else (1, 2):
                    fitting = blocks >= lanes * unroll or (unroll == 1 and (lanes < 128 or 4 * blocks >= 3 * lanes))
                    if site.rounding:       # whole blocks of 32 results, a quad of them an invocation
                        fitting = fitting and rows // least * groups % 32 == 0 and tokens * rows // least * groups <= 4 * lanes * groups
                    held = rows * unroll * tokens
                    fitting = fitting and held <= (20 if lanes < 128 else 32) and held <= most
                    if rows >= least and fitting and rows // least * tokens <= lanes:
                        s = {"lanes": lanes, "groups": groups, "rows": rows, "tokens": tokens, "unroll": unroll}
                        if site.device.subgroups and lanes % size == 0:
                            yield {**s, "subgroup": size}
                        yield {**s, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        device = site.device
        x, y, z = self.grid(site, s)
        invocations = x * y * z * self.threads(site, s)
        waves = divide(invocations, device.width) * device.width / max(invocations, 1)
        read, products = self._work(site, s)
        serial = (0 if s["subgroup"] else 5e-8 * s["lanes"].bit_length()) + (2e-7 if s["subgroup"] and s["lanes"] > s["subgroup"] else 0)
        hidden = 0.05 / (s["rows"] * s["unroll"])       # the more loads are under way, the better memory is used
        idle = divide(site.shape("w")[-1] // 32, s["lanes"]) * s["lanes"] / (site.shape("w")[-1] // 32)     # lanes without a block
        # every group of rows reads x again, from a cache that is a few times faster than memory
        again = divide(site.shape("w")[-2], s["rows"]) * site.shape("w")[-1] // 32 * 48 * s["tokens"] * z / (6 * device.bandwidth)
        # a few invocations with much under way come near to the bandwidth, and yet more of them come nearer
        busy = min(waves, 2) + 0.1 * waves
        # large workgroups that hold the sums of many tokens run out of registers
        registers = (32 + s["rows"] * s["unroll"] * (s["tokens"] + 5)) * self.threads(site, s) if s["tokens"] >= 4 else 0
        spilled = max(1.0, registers / CORE) ** 1.5
        return device.launch + serial + (again + read * (busy + hidden) * idle / device.bandwidth + products / device.flops) * spilled

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        eps = site.anchor.attr("eps", 0.0)
        norm = SimpleNamespace(eps=literal(eps), weight=None) if eps else None
        return super().context(site, s) | {"factored": "score" in site.operands, "norm": norm}

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        rounded = 4 * s["tokens"] * s["rows"] * s["groups"] + (0 if s["subgroup"] >= 8 else 12 * self.threads(site, s)) if site.rounding else 0
        sums = s["tokens"] * (s["rows"] + (site.anchor.attr("eps", 0.0) > 0))
        return self.reduction_bytes(s, sums, self.threads(site, s)) + rounded

    def _total(self, site: Site) -> int:
        return site.value("x").size // site.shape("x")[-1]
