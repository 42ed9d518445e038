"""Where the selected entries of one tensor lie: sorted int32 indices or a bitmask, whichever takes fewer bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subnetune.core.masks import unpack

BLOCK = 4096  # entries that the kernels take at a time where they count bits
_PIECE = 1 << 20  # bytes of bits at a time: temporary numbers stay small
_LARGEST = 1 << 31  # int32 indices reach below it


@dataclass(frozen=True, eq=False)
class Place:
    """The selected entries of a tensor (or local shard) of `size` entries, `count` of them, on one device.

    Either `index` is set, the ascending flat indices, int32, (count,); or `bits`, uint8, (ceil(size / 8),): bit i of
    byte b is flat entry 8 b + i, zero past the end. Nothing else is kept: who starts in the middle counts the bits
    before it, at every step, which takes a hundredth of the time of an update.
    """

    size: int
    count: int
    index: Tensor | None
    bits: Tensor | None

    @classmethod
    def of_bits(cls, bits: Tensor, size: int) -> Place:
        """Return the place with these packed bits (as `core.masks.pack` gives them) of a tensor of `size` entries.

        It may keep them, not a copy: compiled code relies on their not being changed.
        """
        count = _ones_in(bits)
        if 4 * count < bits.numel() and size < _LARGEST:
            index = torch.cat([low + part for low, part in _indices(bits, size)]) if count else _nothing(bits.device)
            return cls(size, count, index.to(torch.int32), None)
        return cls(size, count, None, bits.contiguous())

    @property
    def nbytes(self) -> int:
        """Bytes that this place takes."""
        return sum(t.nbytes for t in (self.index, self.bits) if t is not None)

    def indices(self) -> Tensor:
        """Return the flat indices, ascending, int64, (count,); a copy."""
        if self.index is not None:
            return self.index.to(torch.int64)
        assert self.bits is not None
        parts = [low + part for low, part in _indices(self.bits, self.size)]
        return torch.cat(parts) if parts else _nothing(self.bits.device)


def _nothing(device: torch.device) -> Tensor:
    return torch.empty(0, dtype=torch.int64, device=device)


def _indices(bits: Tensor, size: int) -> list[tuple[int, Tensor]]:
    # Pieces keep the temporary bool tensor and its int64 positions small.
    piece, found = 256 * BLOCK, []
    for low in range(0, size, piece):
        here = min(piece, size - low)
        mask = unpack(bits[low // 8 : low // 8 + (here + 7) // 8], (here,))
        found.append((low, mask.nonzero().squeeze(1)))
    return found


def _ones_in(bits: Tensor) -> int:
    """Return how many bits are set."""
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for low in range(0, bits.numel(), _PIECE):
        piece = bits[low : low + _PIECE]
        x = torch.zeros((piece.numel() + 7) // 8, dtype=torch.int64, device=bits.device)
        x.view(torch.uint8)[: piece.numel()] = piece
        # Counts of pairs, nibbles, bytes, and their sum in the top byte; the sign's copies are masked away.
        x -= (x >> 1) & 0x5555555555555555
        x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
        x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
        total += (((x * 0x0101010101010101) >> 56) & 0xFF).sum()
    return int(total)
