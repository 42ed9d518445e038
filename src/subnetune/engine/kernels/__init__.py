"""The loops that engines need, behind one small interface: plain torch everywhere, compiled ones where they are faster.

Every function works on flat, contiguous tensors of one device. What is exact (gather, scatter, masks) is so in every
implementation; AdamW agrees with the plain one to rounding: each weight within 4 ulp a step from the same state.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from subnetune.engine.place import Place


class Rates(NamedTuple):
    """The numbers of one AdamW step of one tensor; `step` counts from 1 and includes this one.

    The gradient is multiplied by `scale` (a float32 scalar on the tensor's device, or None for 1), then divided by
    `divisor`.
    """

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: int
    scale: Tensor | None = None
    divisor: float = 1.0


class Moments(NamedTuple):
    """AdamW's running averages of one tensor: flat, float32; dense, or packed in the order of a place."""

    first: Tensor
    second: Tensor


class Treatment(NamedTuple):
    """What a mask means for an update: unselected entries have a zero gradient, and, or, keep their values."""

    zero_gradient: bool
    hold: bool


class Hashed(NamedTuple):
    """A random mask that is never in memory: entry i is selected iff its hash lies below `limit` (core.hashing).

    `first` and `second` are the keys, 32-bit words; `start` is the unsharded flat index of entry 0, mod 2^32; `limit`
    is compared with the hash as a signed word. No entry's index passes a multiple of 2^32.
    """

    first: int
    second: int
    limit: int
    start: int


class Job(NamedTuple):
    """The update of one tensor. Tensors are contiguous, of any shape: they are used flat.

    `mask` is None (every entry is updated), a `Hashed`, the packed bits of a mask over dense moments, or a `Place`
    beside packed moments, where the gradient may be packed as well.
    """

    weights: Tensor
    gradient: Tensor
    moments: Moments
    rates: Rates
    mask: Hashed | Tensor | Place | None
    treatment: Treatment


class Kernels(Protocol):
    """What every implementation offers. Weights and gradients of AdamW are float32."""

    name: str

    def gather(self, source: Tensor, place: Place, out: Tensor, *, add: bool = False) -> None:
        """Write the selected entries of `source`, (size,), into `out`, (count,), or add them to it."""

    def scatter(self, values: Tensor, place: Place, target: Tensor) -> None:
        """Write `values`, (count,), into the selected entries of `target`, (size,)."""

    def adamw(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates) -> None:
        """Update every entry in place."""

    def adamw_hashed(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, mask: Hashed, treatment: Treatment
    ) -> None:
        """Update in place under a random mask; moments are dense."""

    def adamw_masked(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, bits: Tensor, treatment: Treatment
    ) -> None:
        """Update in place under a bitmask, uint8, (ceil(size / 8),); moments are dense."""

    def adamw_packed(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, place: Place) -> None:
        """Update the selected entries in place; moments are packed; the gradient is dense, or packed, (count,)."""

    def adamw_all(self, jobs: Sequence[Job]) -> None:
        """Do every job: the same as one call each, and faster where tensors are many and small."""


def one_by_one(kernels: Kernels, jobs: Sequence[Job]) -> None:
    """Do every job by a call of its own."""
    for weights, gradient, moments, rates, mask, treatment in jobs:
        flat = (weights.detach().view(-1), gradient.detach().view(-1), Moments(*(m.view(-1) for m in moments)), rates)
        if mask is None:
            kernels.adamw(*flat)
        elif isinstance(mask, Place):
            kernels.adamw_packed(*flat, mask)
        elif isinstance(mask, Hashed):
            kernels.adamw_hashed(*flat, mask, treatment)
        else:
            kernels.adamw_masked(*flat, mask, treatment)


def is_packed(gradient: Tensor, place: Place) -> bool:
    """Whether a flat gradient holds the selected entries alone. (All of them selected: both are the same.)"""
    return gradient.numel() == place.count != place.size


@functools.cache
def kernels_for(device_type: str) -> Kernels:
    """Return the fastest implementation for a kind of device ("cpu", "cuda") that is installed."""
    if device_type == "cpu" and importlib.util.find_spec("numba") is not None:
        from subnetune.engine.kernels.cpu import CpuKernels

        return CpuKernels()
    if device_type == "cuda" and importlib.util.find_spec("triton") is not None:
        from subnetune.engine.kernels.gpu import GpuKernels, refusal

        why = refusal(torch.device("cuda"))
        if why is None:
            return GpuKernels()
        warnings.warn(f"{why}; updates run in plain torch, slower", stacklevel=2)
    from subnetune.engine.kernels.plain import PlainKernels

    return PlainKernels()
