"""How low-precision weights take up updates that are smaller than their rounding: packed fp32 masters, or chance.

A bfloat16 weight near 1 has a neighbour 0.0078 away, so that a step of 0.0001 is lost by rounding, every time. With
"master" the optimizer keeps float32 copies of what trains, and weights are their rounding. With "stochastic" it
computes in float32 from the weight, and rounds up as often as the rest is large, so that the mean is right. The chance
is a hash of seed, step, name and index, as random masks are (core.hashing): no random state, the same after a resume.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.core.hashing import hash_at
from subnetune.core.types import placement
from subnetune.engine.place import Place

PRECISIONS = ("same", "master", "stochastic")
_DROPPED = 16  # bits of a float32 that bfloat16 lacks


class Precision:
    """What a leaf is computed in and how it becomes a weight: `kind` is one of PRECISIONS, `seed` the run's."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind = kind
        self._seed = seed

    def converts(self, weights: Tensor) -> bool:
        """Whether leaves of these weights are float32 copies."""
        return self.kind != "same" and is_narrow(weights)

    def check(self, name: str, weights: Tensor) -> None:
        """Raise UsageError for weights that cannot be rounded as asked."""
        if self.kind == "stochastic" and self.converts(weights) and weights.dtype != torch.bfloat16:
            raise UsageError(
                f'precision="stochastic" rounds float32 to bfloat16, and {name!r} is {weights.dtype}: use "master"'
            )

    def read(self, leaf: Tensor, values: Tensor) -> None:
        """Bring `leaf`, float32, up to date with the weights' `values` of the same shape."""
        if self.kind == "master":  # a master stands as long as the weight is its rounding; the model is the only truth
            stands = leaf.to(values.dtype).view(torch.int16) == values.view(torch.int16)
            torch.where(stands, leaf, values.float(), out=leaf)
        else:
            leaf.copy_(values)

    def rounded(self, leaf: Tensor, name: str, local: Tensor, place: Place | None, step: int) -> Tensor:
        """Return the weights that `leaf` becomes, in the dtype of `local`."""
        if self.kind == "master":
            return leaf.to(local.dtype)
        index = torch.arange(local.numel(), device=leaf.device) if place is None else place.indices()
        chance = hash_at(self._seed, step, f"{name}/rounding", unsharded(index, local)).view(leaf.shape)
        return round_by_chance(leaf, chance)


def is_narrow(weights: Tensor) -> bool:
    """Whether weights have a dtype in which small updates are lost: bfloat16, float16."""
    return weights.dtype.itemsize < 4


def round_by_chance(values: Tensor, chance: Tensor) -> Tensor:
    """Return float32 `values` in bfloat16, rounded away from zero with the probability of what bfloat16 lacks.

    `chance` are random int32 of the same shape, whose low 16 bits decide. What is not finite, and what would become
    infinite, is rounded to nearest. The expectation is the value itself; values that bfloat16 has stay as they are.
    """
    added = values.contiguous().view(torch.int32) + (chance & ((1 << _DROPPED) - 1))
    up = (added & -(1 << _DROPPED)).view(torch.float32)
    return torch.where(up.isfinite() & values.isfinite(), up, values).to(torch.bfloat16)


def unsharded(index: Tensor, local: Tensor) -> Tensor:
    """Return the flat indices in the unsharded tensor of flat indices (int64) into a local part."""
    where = placement(local)
    if not where.sharded:
        return index
    rest, out, stride = index, torch.zeros_like(index), 1
    for axis in reversed(range(local.dim())):
        out = out + (rest % local.shape[axis] + where.start[axis]) * stride
        rest = rest // max(1, local.shape[axis])
        stride *= where.shape[axis]
    return out
