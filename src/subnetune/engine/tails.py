"""The end of a tensor that vector registers do not fill: torch computes it by scalar code, which may round otherwise.

So do fused kernels, and additions of half-precision numbers. A packed leaf is equal to dense training in every bit only
if the same entries are computed by the same code: it keeps the dense tensor's last entries at its own end, at the same
distance from a full register, and everything else in full registers before them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from subnetune.core.masks import unpack
from subnetune.engine.place import Place

_LANES = (
    64  # entries: a multiple of what any of torch's loops takes at a time (two registers of 32 half-precision ones)
)


@dataclass(frozen=True, eq=False)
class Tail:
    """The layout of a leaf of `length` entries: `count` values, the last ones (`slots`, int64) at the leaf's end.

    Between steps a leaf holds its values as its first `count` entries; `spread` moves them to their slots for a step,
    `collect` back. All other entries are zero in a step.
    """

    count: int
    length: int
    slots: Tensor

    @classmethod
    def of(cls, place: Place) -> Tail:
        """Return the layout of a leaf for the selected entries of a dense tensor."""
        rest = place.size % _LANES
        last = _selected_from(place, place.size - rest)
        lanes = _LANES * torch.get_num_threads()  # threads split a leaf evenly: let each have full registers
        body = -(-(place.count - last.numel()) // lanes) * lanes
        return cls(place.count, body + (rest if last.numel() else 0), body + last)

    def spread(self, leaf: Tensor) -> None:
        """Move the last values to their slots, and set what holds no value to zero, in place."""
        first = self.count - self.slots.numel()
        if self.slots.numel():
            last = leaf[first : self.count].clone()
            leaf[first:] = 0.0
            leaf[self.slots] = last
        else:
            leaf[first:] = 0.0

    def collect(self, leaf: Tensor) -> None:
        """Move the last values back behind the others, in place."""
        if self.slots.numel():
            leaf[self.count - self.slots.numel() : self.count] = leaf[self.slots]


def _selected_from(place: Place, start: int) -> Tensor:
    """Return how far behind `start`, a multiple of 64, the selected entries lie that are there, int64, ascending."""
    if place.index is not None:
        behind = place.index[place.count - min(place.count, _LANES) :].to(torch.int64)
        return behind[behind >= start] - start
    assert place.bits is not None
    if start == place.size:
        return torch.empty(0, dtype=torch.int64, device=place.bits.device)
    return unpack(place.bits[start // 8 :], (place.size - start,)).nonzero().view(-1)
