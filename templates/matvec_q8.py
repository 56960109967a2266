"""y = W x for one token or a few, with x rounded to 8-bit integers by blocks of 32 and packed integer dot products."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Schedule, Site, divide
from .matvec import MatVec

CHUNK = 512         # blocks of x that a workgroup holds at once, at 48 bytes each and token


class MatVecQ8(MatVec):
    activations = "q8"

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size, least = site.device.subgroup_size, 2 if site.pairs else 1
        tokens, blocks = self._tokens(site), site.shape("x")[-1] // 32
        for lanes, groups in ((8, 4), (8, 16), (16, 8), (32, 2), (32, 4), (32, 8), (64, 2), (64, 4)):
            for rows in (1, 2, 4):
                for unroll in (1, 2, 4):
                    fitting = unroll == 1 or blocks >= lanes * unroll
                    if rows >= least and fitting and rows * unroll * tokens <= 16 and rows // least * tokens <= lanes:
                        s = {"lanes": lanes, "groups": groups, "rows": rows, "tokens": tokens, "unroll": unroll, "chunk": self._chunk(site, tokens)}
                        if site.device.subgroups and lanes % size == 0:
                            yield {**s, "subgroup": size}
                        yield {**s, "subgroup": 0}

    def cost(self, site: Site, s: Schedule) -> float:
        device, k = site.device, site.shape("x")[-1]
        x, y, z = self.grid(site, s)
        workgroups, threads = x * y * z, self.threads(site, s)
        waves = divide(workgroups * threads, device.width) * device.width / max(workgroups * threads, 1)
        rounding = workgroups * s["tokens"] * k * (6 / device.flops + 0.2 / device.bandwidth)
        read, products = self._work(site, s)
        serial = 1e-7 * divide(k // 32, threads) + (0 if s["subgroup"] else 5e-8 * s["lanes"].bit_length())
        hidden = 0.05 / (s["rows"] * s["unroll"])       # the more loads are under way, the better memory is used
        return device.launch + serial + rounding + read * (min(waves, 2) + hidden) / device.bandwidth + products / device.flops

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return super().workgroup_bytes(site, s) + 48 * s["chunk"] * s["tokens"]

    def _chunk(self, site: Site, tokens: int) -> int:
        room = site.device.limit("max_compute_workgroup_storage_size") - 2048
        return max(8, min(site.shape("x")[-1] // 32, CHUNK, room // (48 * tokens)))
