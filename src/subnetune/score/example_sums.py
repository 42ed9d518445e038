"""Sums over the examples of a batch of their squared gradients, from what a backward pass leaves at a module."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

LOOPED = ("cpu",)  # devices on which a product for each example is faster than one for many
MANY = 1 << 24  # entries of the products of many examples at once
BLOCK = 1 << 18  # entries of a matrix at work: with its totals they stay in the cache while the examples pass


@dataclass
class ExampleSums:
    """`totals` by name in single precision; a gradient of one example is clipped to the norm `clip` before squaring.

    `factors` (B,) turn the gradient of the batch's loss into that of an example's own; set before each batch.
    """

    clip: float | None
    totals: dict[str, Tensor] = field(default_factory=dict)
    factors: Tensor = field(default_factory=lambda: torch.ones(1))

    def add_dense(self, name: str, gradients: Tensor) -> None:
        """Add the squares of `gradients`, (B, *shape): one for each example."""
        norms = None if self.clip is None else torch.linalg.vector_norm(gradients.flatten(1), dim=1)
        weights = self._weights(gradients, norms).view(-1, *[1] * (gradients.dim() - 1))
        self._total(name, gradients.shape[1:], gradients).add_((gradients.square() * weights).sum(0))

    def add_products(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add the squares of left[b].T @ right[b] for each example b; left (B, T, m), right (B, T, n)."""
        total = self._total(name, torch.Size((left.shape[2], right.shape[2])), left)
        if left.shape[1] == 1:  # one position: squares of products are products of squares, and so are norms
            left, right = left.squeeze(1), right.squeeze(1)
            norms = torch.linalg.vector_norm(left, dim=1) * torch.linalg.vector_norm(right, dim=1)
            total.addmm_((left.square() * self._weights(left, norms)[:, None]).T, right.square())
            return
        norms = None
        if self.clip is not None:  # |left.T @ right|^2 is the sum of (left @ left.T) * (right @ right.T)
            grams = [torch.bmm(side, side.mT) for side in (left.double(), right.double())]  # they may cancel
            norms = (grams[0] * grams[1]).sum((1, 2)).clamp(min=0.0).sqrt().float()
        roots = self._weights(left, norms).sqrt()
        left = left * roots[:, None, None]
        if left.device.type not in LOOPED:
            count = max(1, MANY // total.numel())
            for some, others in zip(torch.split(left, count), torch.split(right, count), strict=True):
                total.add_(torch.bmm(some.mT, others).square_().sum(0))
            return
        height = max(1, BLOCK // right.shape[2])
        for low in range(0, left.shape[2], height):
            part = total[low : low + height]
            buffer = torch.empty_like(part)
            for one, other in zip(left[:, :, low : low + height], right, strict=True):
                torch.mm(one.T, other, out=buffer)
                part.addcmul_(buffer, buffer)

    def add_rows(self, name: str, shape: torch.Size, index: Tensor, values: Tensor) -> None:
        """Add the squares of gradients whose row index[b, t] got values[b, t]; rows hit more than once are summed."""
        total, size = self._total(name, shape, values), index.shape[0]
        owner = torch.arange(size, device=index.device)[:, None].expand_as(index)
        places, inverse = torch.unique(owner * shape[0] + index, return_inverse=True)
        sums = values.new_zeros(places.numel(), shape[1])
        sums = sums.index_add_(0, inverse.flatten(), values.flatten(0, 1)).square()
        examples, rows = places // shape[0], places % shape[0]
        norms = None if self.clip is None else sums.new_zeros(size).index_add_(0, examples, sums.sum(1)).sqrt()
        total.index_add_(0, rows, sums * self._weights(values, norms)[examples, None])

    def _weights(self, like: Tensor, norms: Tensor | None) -> Tensor:
        # By what the square of each example's gradient is multiplied, (B,).
        factors = self.factors.to(like.device)
        if self.clip is not None and norms is not None:
            factors = factors * (self.clip / (norms * factors + 1e-6)).clamp(max=1.0)
        return factors.square()

    def _total(self, name: str, shape: torch.Size, like: Tensor) -> Tensor:
        if name not in self.totals:
            self.totals[name] = torch.zeros(shape, dtype=torch.float32, device=like.device)
        return self.totals[name]
