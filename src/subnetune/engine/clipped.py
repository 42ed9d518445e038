"""Clipping that waits for the step, and whether the gradients there are still those that were measured."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from torch import Tensor

from subnetune.core.bits import equal_bits

_SAMPLES = 4


class Clipped:
    """The norm that some gradients had, by name of what `holds` them, and a sample of these: the smallest.

    A sample is kept alive, so that its place in memory is not taken by another one. Of the very smallest the numbers
    are copied as well (on the CPU, where looking at them waits for nothing).
    """

    def __init__(self, norm: Tensor, gradients: Mapping[str, Tensor], holder: Callable[[str], Tensor]) -> None:
        self.norm = norm
        self._holder = holder
        filled = [name for name, gradient in gradients.items() if gradient.numel()]
        names = heapq.nsmallest(_SAMPLES, filled, key=lambda name: gradients[name].numel())
        self._held = {name: holder(name).grad for name in names}
        smallest = self._held[names[0]] if names else None
        self._copy = smallest.clone() if smallest is not None and _looked_at(smallest) else None

    def gone(self) -> bool:
        """Whether none of the gradients is there any more: they were cleared past the optimizer, `model.zero_grad()`.

        New ones are other tensors. A few that were taken away, so that the step leaves their tensors alone, change
        nothing for the others.
        """
        return bool(self._held) and all(self._holder(name).grad is not held for name, held in self._held.items())

    def changed(self) -> bool:
        """Whether a gradient was exchanged, or has other numbers than those that were measured."""
        for name, held in self._held.items():
            now = self._holder(name).grad
            if now is None or held is None:
                continue
            if now is not held:
                return True
        smallest = self._holder(next(iter(self._held))).grad if self._copy is not None else None
        return smallest is not None and self._copy is not None and not equal_bits(smallest, self._copy)


def _looked_at(gradient: Tensor) -> bool:
    return type(gradient) is Tensor and gradient.is_cpu and not gradient.is_sparse
