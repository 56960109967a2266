"""y = W x for one token or a few, with an RMS norm of x before and element-wise ops after: bound by reading W."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.head_results import head_streams
from ..compiler.kernel import Kernel, Schedule, Site, divide, spread
from ..compiler.layouts import LAYOUTS

# products that an invocation has under way: beyond, GPUs run out of registers and software adapters compile for long
UNROLLED = 64

# Invocations that share rows, and how many such groups a workgroup has.
SHAPES = ((8, 4), (16, 4), (32, 2), (32, 4), (64, 1), (64, 2), (128, 1), (128, 2), (128, 4), (256, 1), (256, 2), (512, 1))


class MatVec(Kernel):
    def accepts(self, site: Site) -> bool:
        normed, few = [p.kind for p in site.prologue] == ["rms_norm"], site.anchor.kind == "matmul" and self._total(site) <= 8
        ours = site.anchor.kind == "matmul" and (site.elementwise_epilogue or (few and bool(head_streams(site))))
        return ours and (not site.prologue or (normed and few))

    def schedules(self, site: Site) -> Iterator[Schedule]:
        device, size, tokens = site.device, site.device.subgroup_size, self._tokens(site)
        (n, k), least, layout = site.shape("w")[-2:], 2 if site.pairs else 1, LAYOUTS[site.value("w").layout]
        quads = max(1, layout.block // 4)
        for lanes, groups in SHAPES:
            for rows in (1, 2, 4, 8, 16):
                small = rows == least or (least < rows <= n and rows * tokens * quads <= UNROLLED)
                if not small or rows // least * tokens > lanes:
                    continue
                # each result of a subgroup is one more term that every invocation adds up
                if device.subgroups and lanes % size == 0 and rows * tokens * lanes // size <= 2 * UNROLLED:
                    for unroll in (1, 2, 4):
                        if unroll == 1 or (k % (layout.block * lanes * unroll) == 0 and rows * tokens * quads * unroll <= UNROLLED):
                            yield {"lanes": lanes, "groups": groups, "rows": rows, "tokens": tokens, "unroll": unroll, "subgroup": size}
                if rows <= 8:
                    yield {"lanes": lanes, "groups": groups, "rows": rows, "tokens": tokens, "unroll": 1, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        device, k = site.device, site.shape("w")[-1]
        x, y, z = self.grid(site, s)
        workgroups = x * y * z
        # the device idles while fewer invocations run than it has, and while the last wave runs
        waves = divide(workgroups * self.threads(site, s), device.width) * device.width / max(workgroups * self.threads(site, s), 1)
        again = 4 * k * s["tokens"] * workgroups * s["groups"] * 0.05       # x is read by every group, from the cache
        barriers = 0 if s["subgroup"] and s["lanes"] <= s["subgroup"] else 2 + (0 if s["subgroup"] else s["lanes"].bit_length())
        read, products = self._work(site, s)
        operands = 1.5 * (s["rows"] + s["tokens"]) / (s["rows"] * s["tokens"])       # that an invocation reads for each product
        hidden = read * 0.05 / min(s["rows"] * s["unroll"], 8)      # a few loads have to be under way
        # of schedules that are alike otherwise, that with fewer workgroups
        work = 1e-10 * workgroups + (read * waves + hidden + again) / device.bandwidth + 2 * products * (1 + operands) / device.flops
        return device.launch * (1 + 0.02 * barriers) + work * self._passes(site, s)

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return *spread(divide(site.shape("w")[-2], s["rows"] * s["groups"]), site.device), divide(self._total(site), s["tokens"])

    def threads(self, site: Site, s: Schedule) -> int:
        return s["lanes"] * s["groups"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return self.reduction_bytes(s, s["tokens"] * (s["rows"] + bool(site.prologue)), self.threads(site, s))

    def reduction_bytes(self, s: Schedule, sums: int, threads: int) -> int:
        """Workgroup memory of rows.wgsl's reduction."""
        if s["subgroup"]:
            return 16 * divide(sums * threads // s["subgroup"], 4) if s["lanes"] > s["subgroup"] else 0
        return 4 * sums * threads

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"total": self._total(site), "across": self.grid(site, s)[0]}

    def _total(self, site: Site) -> int:
        """Rows of the result."""
        return site.value("x").size // site.shape("x")[-1]

    def _tokens(self, site: Site) -> int:
        """Rows of the result that one workgroup makes."""
        return next(t for t in (1, 2, 4, 8) if t >= min(self._total(site), 8))

    def _passes(self, site: Site, s: Schedule) -> int:
        """How often all of w is read: beyond once, tiles do better."""
        return divide(self._total(site), s["tokens"])

    def _work(self, site: Site, s: Schedule) -> tuple[int, int]:
        """Bytes of w to read and products to add up."""
        return site.bytes("w") * divide(self._total(site), s["tokens"]), site.value("w").size * self._total(site)
