"""MXFP4 weights of Hugging Face folders: pairs of tensors, NAME_blocks and NAME_scales, as one tensor in GGUF's block format.

A pair holds uint8 [..., groups, 16], two elements of 4 bits a byte with the even one in the low half, and uint8 [..., groups], the
exponents (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf). GGUF puts the exponent before the
bytes, which hold elements j and j + 16.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..compiler.formats import in_parts
from .checkpoint import CheckpointError, Tensor

BLOCKS, SCALES = "_blocks", "_scales"


@dataclass(frozen=True)
class PairedTensor(Tensor):
    """A tensor whose exponents lie in another one; `data` holds its blocks."""

    scales: np.ndarray  # uint8, one exponent a block

    def rows(self) -> np.ndarray:
        """Return the blocks of every row as GGUF stores them, uint8 [..., bytes]; made anew at every call."""
        pairs, out = self.data.reshape(-1, 16), np.empty((self.scales.size, 17), np.uint8)
        out[:, 0] = self.scales

        def repack(part: slice) -> None:
            low, high = pairs[part, :8], pairs[part, 8:]
            out[part, 1::2] = (low & 15) | (high << 4)
            out[part, 2::2] = (low >> 4) | (high & 240)
        in_parts(len(out), 32, repack)
        return out.reshape(*self.shape[:-1], -1)


def join_pairs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a tensor NAME in place of every pair. Raises CheckpointError for one whose shapes do not fit."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(BLOCKS).removesuffix(SCALES)
        blocks, scales = tensors.get(stem + BLOCKS), tensors.get(stem + SCALES)
        if name == stem or blocks is None or scales is None:
            found[name] = tensor
        elif name.endswith(BLOCKS):
            if (blocks.format, scales.format) != ("u8", "u8") or len(blocks.shape) < 3 or blocks.shape != (*scales.shape, 16):
                raise CheckpointError(f"{name} is {blocks.format}{list(blocks.shape)} and {stem}{SCALES} {scales.format}{list(scales.shape)}, "
                                      "but MXFP4 keeps u8 blocks of 16 bytes and a u8 scale for each; download the model again")
            found[stem] = PairedTensor(stem, (*blocks.shape[:-2], 32 * blocks.shape[-2]), "mxfp4", blocks.data, scales.data)
    return found
