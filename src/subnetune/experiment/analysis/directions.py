"""Directions in weight space to look along: towards the base, and a random one in the scale of the weights.

Filter normalisation: Li, Xu, Taylor, Studer, Goldstein, NeurIPS 2018, arXiv 1712.09913: each row of a random matrix
gets the norm of the row of weights that it is added to, biases and norms get none. Otherwise a model whose weights are
small would look sharp, though it computes the same as one whose weights are large.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from subnetune.core.roles import role_names
from subnetune.core.structure import Structure
from subnetune.experiment.data import stream_seed


class Line(NamedTuple):
    """One parameter, its values in the base (None: it did not move) and at the solution, and a random direction."""

    parameter: Tensor
    base: Tensor | None
    tuned: Tensor
    random: Tensor | None


class Landscape:
    """A model's weights as a point in a plane: `along` from the base (0) to the solution (1), `across` at random.

    `base` has the base's values of what moved. The head and other tensors without a base (`new`) stay as they are. Use
    it as a context: at its end the weights are the solution again, bit for bit. Holds three copies of the weights.
    """

    def __init__(self, model: nn.Module, base: Mapping[str, Tensor], new: tuple[str, ...], seed: int) -> None:
        structure = Structure(model)
        here = tuple(name for name in new if name in structure.slots or name in structure.aliases)
        fixed = {structure.aliases.get(name, name) for name in here} | role_names(structure, "@head", here)
        self._lines = []
        for name, slot in structure.slots.items():
            if name not in fixed and slot.read().is_floating_point():
                tuned = slot.read().detach()
                columns = type(slot.module).__name__ == "Conv1D"  # GPT-2's linear layer: an output is a column
                random = filter_normalised(tuned, stream_seed(seed, f"surface/{name}"), columns=columns)
                self._lines.append(Line(tuned, base.get(name), tuned.clone(), random))
        self._across = 0.0

    @property
    def moved(self) -> bool:
        """Whether the base is another point than the solution."""
        return any(line.base is not None for line in self._lines)

    def go(self, along: float, across: float = 0.0) -> None:
        """Put the weights at a point of the plane. At (0, 0) and (1, 0) they are the base's and the solution's."""
        with torch.no_grad():
            for line in self._lines:
                if line.base is not None:
                    torch.lerp(line.base, line.tuned, along, out=line.parameter)
                elif line.random is not None and (across or self._across):
                    line.parameter.copy_(line.tuned)
                if across and line.random is not None:
                    line.parameter.add_(line.random, alpha=across)
        self._across = across

    def __enter__(self) -> Landscape:
        return self

    def __exit__(self, *error: object) -> None:
        with torch.no_grad():
            for line in self._lines:
                line.parameter.copy_(line.tuned)


def filter_normalised(weights: Tensor, seed: int, *, columns: bool = False) -> Tensor | None:
    """Return a random direction whose rows (slices of the first axis) have the norms of the weights' rows.

    With `columns` slices of the last axis. The same on every device for the same seed, no global random state. None for
    a tensor of fewer than two axes.
    """
    if weights.dim() < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(weights.shape, generator=generator).to(weights.device, weights.dtype)
    axes = list(range(weights.dim() - 1)) if columns else list(range(1, weights.dim()))
    wanted = torch.linalg.vector_norm(weights, dim=axes, keepdim=True)
    return random.mul_(wanted / torch.linalg.vector_norm(random, dim=axes, keepdim=True).clamp_min(1e-12))
