"""The inner loop's rates: one number a tensor, fixed or learned with the parent (Meta-SGD's idea, arXiv 1707.09835)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Rates:
    """Rates by tensor: `inner_lr` times the tensor's scale, times exp(`log`), which learning moves away from zero.

    `log`: float64, (tensors,), in the order of `scale`.
    """

    def __init__(self, prime: Prime, scale: Mapping[str, float], device: torch.device) -> None:
        self.names, self.learned = tuple(scale), prime.inner_rates == "learned"
        self._fixed = {name: prime.inner_lr * share for name, share in scale.items()}
        self.log = torch.zeros(len(self.names), dtype=torch.float64, device=device, requires_grad=self.learned)

    def numbers(self) -> dict[str, float]:
        """Return the rate of every tensor."""
        if not self.learned:
            return dict(self._fixed)
        factors: list[float] = self.log.detach().exp().tolist()
        return {name: self._fixed[name] * factor for name, factor in zip(self.names, factors, strict=True)}

    def traced(self) -> dict[str, Tensor | float]:
        """Return every rate as what autograd can follow back to `log`, or as a number where none is learned."""
        if not self.learned:
            return dict(self._fixed)
        return {name: self._fixed[name] * factor for name, factor in zip(self.names, self.log.exp(), strict=True)}

    @contextmanager
    def watching(self, tensors: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Iterator[None]:
        """Add to `log.grad` what backward passes inside say, with the inner gradients taken as constants.

        The adapted tensor is start - rate * (sum of inner gradients), so that its derivative by the rate's logarithm is
        the way it went; `tensors` are those that the loss was computed with.
        """
        if not self.learned:
            yield
            return
        found = torch.zeros_like(self.log)

        def hook(place: int, way: Tensor) -> Callable[[Tensor], None]:
            def add(gradient: Tensor) -> None:
                found[place] += (gradient.double() * way).sum()

            return add

        moves = [(tensors[name], tensors[name].detach() - start[name]) for name in self.names]
        hooks = [p.register_hook(hook(place, way)) for place, (p, way) in enumerate(moves)]  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()
        self.log.grad = found if self.log.grad is None else self.log.grad + found
