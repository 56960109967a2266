"""Everything between the q/k/v projection and attention, in one dispatch: split, norm over heads, RoPE, scales, cache writes."""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.kernel import Kernel, Schedule, Site, divide
from ..compiler.layouts import LAYOUTS
from ..compiler.streams import streams

VECTOR = {"rope", "position_scale", "cache_write"}      # what no other kernel takes


class Heads(Kernel):
    """lanes: invocations of a head vector; groups: rows a workgroup takes."""

    def accepts(self, site: Site) -> bool:
        kinds = set(site.op.kinds)
        ours = bool(kinds & VECTOR) or ("split" in kinds and len(site.op.parts) > 1)
        ours = ours and all(p.inputs for p in site.op.parts)
        plain = all(site.values[n].layout == "row" or LAYOUTS[site.values[n].layout].store for n in site.bound)
        return ours and plain and bool(streams(site, site.op.parts))

    def schedules(self, site: Site) -> Iterator[Schedule]:
        size, rows = site.device.subgroup_size, self._rows(site)
        widest = max(s.dim for s in streams(site, site.op.parts)) // 2
        for lanes in (8, 32, 64, 128):
            if divide(widest, lanes) <= 16:
                for groups in (1, 4, 16):
                    if lanes * groups <= 256 and (groups == 1 or rows >= groups):
                        if "rms_norm" not in site.op.kinds or not site.device.subgroups or lanes % size:
                            yield {"lanes": lanes, "groups": groups, "subgroup": 0}
                        else:
                            yield from ({"lanes": lanes, "groups": groups, "subgroup": form} for form in (size, 0))

    def cost(self, site: Site, s: Schedule) -> float:
        found, rows, device = streams(site, site.op.parts), self._rows(site), site.device
        moved = sum(4 * rows * st.heads * st.dim * (1 + sum("out" in vars(step) for step in st.steps)) for st in found)
        reduction = 0 if "rms_norm" not in site.op.kinds else 2 if s["subgroup"] else s["lanes"].bit_length()
        steps = max(divide(st.dim // 2, s["lanes"]) * (2 + len(st.steps)) for st in found) + reduction
        vectors = rows * sum(st.heads for st in found)
        busy = max(1.0, vectors * s["lanes"] / device.width)
        return device.launch + moved / device.bandwidth + 1e-8 * steps * busy + 1e-9 / s["groups"] * vectors

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return sum(st.heads for st in streams(site, site.op.parts)), divide(self._rows(site), s["groups"]), 1

    def threads(self, site: Site, s: Schedule) -> int:
        return s["lanes"] * s["groups"]

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        norm = 0 if "rms_norm" not in site.op.kinds else 16 * divide(self.threads(site, s) // (s["subgroup"] or 1), 4)
        return norm + 4 * s["groups"] * self._rounded(site)

    def context(self, site: Site, s: Schedule) -> dict[str, object]:
        return {"streams": streams(site, site.op.parts), "rows": self._rows(site), "normed": "rms_norm" in site.op.kinds,
                "rounded": self._rounded(site)}

    def _rows(self, site: Site) -> int:
        part = site.op.parts[0]
        return site.values[part.inputs[1 if part.kind == "cache_write" else 0]].shape[0]

    def _rounded(self, site: Site) -> int:
        """Elements of a head vector that goes into a cache whose layout rounds groups of them; 0 where none does."""
        return max((site.values[p.inputs[0]].shape[3] for p in site.op.parts if p.kind == "cache_write" and p.attr("rounding", "row") != "row"),
                   default=0)
