"""The kernels in plain torch: the definition of what the compiled ones compute, and what runs where none is installed.

AdamW is the arithmetic of `torch.optim.AdamW`'s loop, operation for operation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from subnetune.core.hashing import below
from subnetune.core.masks import unpack
from subnetune.engine.kernels import Hashed, Job, Moments, Rates, Treatment, is_packed, one_by_one
from subnetune.engine.place import Place


class PlainKernels:
    """See `Kernels`. Works on every device."""

    name = "torch"

    def gather(self, source: Tensor, place: Place, out: Tensor, *, add: bool = False) -> None:
        """Write or add the selected entries of `source` into `out`."""
        chosen = source.index_select(0, place.index if place.index is not None else place.indices())
        if add:
            out.add_(chosen)
        else:
            out.copy_(chosen)

    def scatter(self, values: Tensor, place: Place, target: Tensor) -> None:
        """Write `values` into the selected entries of `target`."""
        target.index_copy_(0, place.indices(), values)

    def adamw(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates) -> None:
        """Update every entry in place."""
        _update(weights, _scaled(gradient, rates), moments, rates)

    def adamw_hashed(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, mask: Hashed, treatment: Treatment
    ) -> None:
        """Update in place under a random mask."""
        chosen = below(mask.first, mask.second, mask.limit, mask.start, weights.numel(), weights.device)
        _masked(weights, gradient, moments, rates, chosen, treatment)

    def adamw_masked(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, bits: Tensor, treatment: Treatment
    ) -> None:
        """Update in place under a bitmask."""
        _masked(weights, gradient, moments, rates, unpack(bits, (weights.numel(),)), treatment)

    def adamw_packed(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, place: Place) -> None:
        """Update the selected entries in place."""
        index = place.indices()
        chosen = weights.index_select(0, index)
        packed = gradient if is_packed(gradient, place) else gradient.index_select(0, index)
        _update(chosen, _scaled(packed, rates), moments, rates)
        weights.index_copy_(0, index, chosen)

    def adamw_all(self, jobs: Sequence[Job]) -> None:
        """Do every job."""
        one_by_one(self, jobs)


def _masked(
    weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, chosen: Tensor, treatment: Treatment
) -> None:
    seen = torch.where(chosen, gradient, 0.0) if treatment.zero_gradient else gradient
    before = weights.clone() if treatment.hold else None
    _update(weights, _scaled(seen, rates), moments, rates)
    if before is not None:
        torch.where(chosen, weights, before, out=weights)


def _scaled(gradient: Tensor, rates: Rates) -> Tensor:
    if rates.scale is not None:
        gradient = gradient * rates.scale
    return gradient if rates.divisor == 1.0 else gradient / rates.divisor


def _update(weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates) -> None:
    weights.mul_(1 - rates.lr * rates.weight_decay)
    moments.first.lerp_(gradient, 1 - rates.beta1)
    moments.second.mul_(rates.beta2).addcmul_(gradient, gradient, value=1 - rates.beta2)
    correction = 1 - rates.beta1**rates.step
    root = (1 - rates.beta2**rates.step) ** 0.5
    size = (moments.second.sqrt() / root).add_(rates.eps)
    weights.addcdiv_(moments.first, size, value=-(rates.lr / correction))
