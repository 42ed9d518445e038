"""One way to measure and to clip gradients for every engine: over the selected entries alone, packed, in their order.

Sums depend on the order of what is added: engines that see dense gradients and engines that see packed ones agree bit
for bit only if they add the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.core.types import all_reduce_sum, placement
from subnetune.engine.child import flat
from subnetune.engine.kernels import kernels_for
from subnetune.engine.place import Place


def packed(gradient: Tensor, place: Place | None) -> Tensor:
    """Return the selected entries of a dense gradient, (count,); the gradient itself where `place` is None."""
    if place is None:
        return gradient
    out = torch.empty(place.count, dtype=gradient.dtype, device=gradient.device)
    kernels_for(gradient.device.type).gather(flat(gradient), place, out)
    return out


def total_norm(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the norm of the gradients in `parts`, pairs of a local tensor and what is to be counted of its gradient.

    A scalar; over all ranks where tensors are sharded (every rank must join).
    """
    locals_, counted = zip(*parts, strict=True) if (parts := list(parts)) else ((), ())
    if not any(placement(tensor).sharded for tensor in locals_):
        return torch.nn.utils.get_total_norm(list(counted))
    squares = torch.stack([torch.linalg.vector_norm(part, dtype=torch.float32).square() for part in counted])
    everywhere = torch.tensor([placement(tensor).sharded for tensor in locals_], device=squares.device)
    summed = all_reduce_sum(torch.where(everywhere, squares, 0.0))
    return torch.where(everywhere, summed, squares).sum().sqrt()


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """Return what gradients are multiplied by so that their norm is at most `max_norm`: torch's own formula."""
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)


def check_max_norm(max_norm: float) -> None:
    """Raise UsageError for a largest norm that is no positive number."""
    if isinstance(max_norm, bool) or not isinstance(max_norm, int | float) or not max_norm > 0.0:
        raise UsageError(f"clip needs the largest norm allowed, a number > 0, got {max_norm!r}")
