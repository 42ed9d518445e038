"""What share of a batch's loss an example's own loss has: known from the labels, and checked against the example."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from subnetune.core.types import Batch
from subnetune.score.examples import IGNORED
from subnetune.score.owners import NotByHooks


def candidates(batch: Batch, size: int) -> list[Tensor]:
    """Return what the factors of the examples may be, each (B,): own loss = factor * batch loss's part * B.

    One for a mean over examples; for classes per position also for a mean over the labels of all examples together,
    and over those that a causal language model predicts (all but the first position).
    """
    found = [torch.ones(size)]
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and labels.dim() > 1 and not labels.is_floating_point():
        for part in (labels, labels[:, 1:]):
            counts = (part != IGNORED).flatten(1).sum(1).cpu()
            factors = counts.sum() / (counts.float() * size)
            if counts.all() and not any(torch.equal(factors, other) for other in found):
                found.append(factors)
    return found


def choose(found: list[Tensor], gradients: Tensor, own: Callable[[int], Tensor], noise: float) -> Tensor:
    """Return the candidate that turns `gradients` of B * batch loss, (B, ...), into those of the examples' own losses.

    `own(b)` gives example b's. The one that is asked for is where the candidates differ most, or else that with the
    largest gradient. Raises NotByHooks where none fits within the relative rounding `noise`.
    """
    rows = gradients.flatten(1).double()
    norms = torch.linalg.vector_norm(rows, dim=1).cpu()
    while True:
        spread = torch.stack(found).amax(0) / torch.stack(found).amin(0) - 1.0
        row = int(norms.argmax() if len(found) == 1 else (spread * (norms > 0)).argmax())
        alone = own(row).flatten().double()
        if alone.shape != rows[row].shape:
            raise NotByHooks("an example alone has other shapes than in its batch")
        errors = [_apart(float(factors[row]) * rows[row], alone) for factors in found]
        if not min(errors) <= noise:
            raise NotByHooks(f"an example's own gradient is not its part of the batch's (off by {min(errors):.0e})")
        nearest = found[errors.index(min(errors))]
        alike = [factors for factors in found if abs(float(factors[row] / nearest[row]) - 1.0) <= 1e-6]
        if len(alike) in (1, len(found)):
            return nearest
        found = alike  # they differ at other examples


def _apart(one: Tensor, other: Tensor) -> float:
    size = max(float(torch.linalg.vector_norm(one)), float(torch.linalg.vector_norm(other)))
    return float(torch.linalg.vector_norm(one - other)) / size if size else 0.0
