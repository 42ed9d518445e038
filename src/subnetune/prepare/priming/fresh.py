"""Tensors that every episode begins with anew: a head, or an adapter that is there for the priming alone."""

from __future__ import annotations

import torch

from subnetune.core.hashing import draw_seed
from subnetune.core.structure import Structure


class Fresh:
    """Draws the tensors `names` anew, and puts back what they were.

    A draw is a permutation of a tensor's first values: it has their distribution, whatever drew them, and what is
    constant (biases, LoRA's B) stays. It is a function of seed, tensor and number, and uses no global random state.
    """

    def __init__(self, structure: Structure, names: set[str], seed: int) -> None:
        self.names, self._structure, self._seed = names, structure, seed
        self._first = {name: structure.read(name).detach().clone() for name in sorted(names)}

    @torch.no_grad()
    def draw(self, number: int) -> None:
        """Draw every tensor for the `number`-th time."""
        for name, first in self._first.items():
            generator = torch.Generator().manual_seed(draw_seed(self._seed, number, f"priming: {name}"))
            order = torch.randperm(first.numel(), generator=generator).to(first.device)
            self._structure.read(name).copy_(first.flatten()[order].view_as(first))

    @torch.no_grad()
    def put_back(self) -> None:
        """Give every tensor the values that it had when this was made."""
        for name, first in self._first.items():
            self._structure.read(name).copy_(first)
