"""Products of batches of matrices that no weight is part of; operands may be transposed, sliced or computed where they are read."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..compiler.indexing import Elements, computable, result_of
from ..compiler.kernel import Kernel, Schedule, Site, divide, spread

DEPTH = 16


class BatchMatmul(Kernel):
    """side: the workgroup is a square of so many invocations; rows, cols: results of each."""

    def accepts(self, site: Site) -> bool:
        return site.anchor.kind == "batch_matmul" and computable(site)

    def schedules(self, site: Site) -> Iterator[Schedule]:
        for side, rows, cols in ((8, 1, 1), (8, 2, 2), (16, 1, 1), (16, 2, 2), (16, 4, 4), (16, 1, 4)):
            yield {"side": side, "rows": rows, "cols": cols}

    def cost(self, site: Site, s: Schedule) -> float:
        x, y, z = self.grid(site, s)
        depth = site.values[site.anchor.inputs[0]].shape[2]
        work = 2 * x * y * z * s["side"]**2 * s["rows"] * s["cols"] * depth
        loads = x * y * z * divide(depth, DEPTH) * DEPTH * s["side"] * (s["rows"] + s["cols"]) * 4
        busy = max(1.0, site.device.width / (x * y * z * s["side"]**2))
        return site.device.launch + site.bytes() / site.device.bandwidth + (work / site.device.flops + loads / (4 * site.device.bandwidth)) * busy

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        batch, m, n = site.values[site.anchor.outputs[0]].shape
        across, more = spread(batch, site.device)
        tiles = divide(n, s["side"] * s["cols"])
        return tiles * more, divide(m, s["side"] * s["rows"]), across

    def threads(self, site: Site, s: Schedule) -> int:
        return s["side"] ** 2

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 4 * DEPTH * s["side"] * (s["rows"] + s["cols"])

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        (a, b), made = site.anchor.inputs, site.anchor.outputs[0]
        batch, m, n = site.values[made].shape
        return {"elements": partial(Elements, site), "a": a, "b": b, "made": made, "result": result_of(site), "batch": batch, "m": m, "n": n,
                "k": site.values[a].shape[2], "depth": DEPTH, "tiles": divide(n, s["side"] * s["cols"]), "across": self.grid(site, s)[2],
                "threads": self.threads(site, s), "scalar": "f32" if site.values[a].dtype in ("f32", "f16") else site.values[a].dtype}
