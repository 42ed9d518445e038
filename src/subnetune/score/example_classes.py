"""Find a loss that weighs classes: an example of each class is compared with its part of the batch's gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from subnetune.core.types import Batch
from subnetune.score.owners import NotByHooks

_AT_ONCE = 4  # classes that are compared in one batch


def check_classes(
    batch: Batch, factors: Tensor, gradients: Tensor, own: Callable[[int], Tensor], noise: float, known: set[int]
) -> None:
    """Compare an example of each class that is not `known` yet, and add these classes. Raises NotByHooks as `choose`.

    A loss may weigh classes, and the one example that `choose` looks at may have the mean weight of its batch. A batch
    of one class tells nothing; nor does an example whose gradient is small beside the others.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        return
    classes: list[int] = labels.tolist()
    new = set(classes) - known if len(set(classes)) > 1 else set()
    if not new:
        return
    rows = gradients.flatten(1).double()
    norms = torch.linalg.vector_norm(rows, dim=1).tolist()
    largest = max(norms)
    best = {one: max((row for row, each in enumerate(classes) if each == one), key=norms.__getitem__) for one in new}
    for one in [one for one in sorted(new) if norms[best[one]] > largest / 8][:_AT_ONCE]:
        alone = own(best[one]).flatten().double()
        apart = torch.linalg.vector_norm(float(factors[best[one]]) * rows[best[one]] - alone)
        if not float(apart) <= noise * largest:
            raise NotByHooks(f"an example of class {one} is not its part of the batch's gradient (off by {apart:.0e})")
        known.add(one)
