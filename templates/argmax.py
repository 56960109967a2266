"""The best of the blocks becomes the row's token and is fed to the next step: the second dispatch of greedy sampling."""
from __future__ import annotations

from ..compiler.kernel import Schedule, Site
from .argmax_blocks import ArgmaxBlocks


class Argmax(ArgmaxBlocks):
    kind = "argmax"

    def grid(self, site: Site, s: Schedule) -> tuple[int, int, int]:
        return site.shape("params")[0], 1, 1
