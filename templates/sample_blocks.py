"""Keys of all tokens, and the mass of every block of the vocabulary by octave: the first dispatch of sampling."""
from __future__ import annotations

from ..compiler.kernel import Schedule, Site
from .argmax_blocks import ArgmaxBlocks


class SampleBlocks(ArgmaxBlocks):
    kind = "sample_blocks"

    def workgroup_bytes(self, site: Site, s: Schedule) -> int:
        return 3 * 16 + 2 * 4 * 32
