"""What the gradients of a score are taken of: whole batches within a budget of examples, and examples out of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from subnetune.core.errors import DataError
from subnetune.core.types import Batch

IGNORED = -100  # the label of positions that take no part in a loss


def pieces(batches: Iterable[Batch], samples: int | None) -> Iterator[Batch]:
    """Yield batches until `samples` examples are used up; the last one is cut to the budget.

    One without any label (all of them -100, as in texts of which no token is masked) has no gradient, and its loss, a
    mean over nothing, is no number: it is used up and not yielded. Raises DataError for a batch in which no example can
    be counted.
    """
    left = math.inf if samples is None else samples
    for batch in batches:
        size = batch_size(batch)
        taken = int(min(size, left))
        piece = batch if taken == size else examples(batch, slice(taken))
        if labelled(piece).any():
            yield piece
        left -= taken
        if left <= 0:
            return


def batch_size(batch: Mapping[str, object]) -> int:
    """Return the number of examples: the first dimension of the labels, or of the first tensor that has one."""
    for tensor in (batch.get("labels"), *batch.values()):
        if isinstance(tensor, Tensor) and tensor.dim() > 0 and tensor.shape[0] > 0:
            return int(tensor.shape[0])
    raise DataError(f"a batch with keys {sorted(batch)} holds no example that can be counted")


def labelled(batch: Batch) -> Tensor:
    """Return which examples have a label other than -100, (examples,) bool on the CPU; all of them without classes."""
    labels, size = batch.get("labels"), batch_size(batch)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel() or not labels.dim():
        return torch.ones(size, dtype=torch.bool)
    return (labels != IGNORED).flatten(1).any(1).cpu() if labels.dim() > 1 else (labels != IGNORED).cpu()


def examples(batch: Batch, rows: slice | Tensor) -> Batch:
    """Return these examples of a batch: every tensor whose first dimension is the batch size is cut."""
    size = batch_size(batch)
    index = rows if isinstance(rows, slice) else rows.cpu()
    return {
        key: value[index.to(value.device) if isinstance(index, Tensor) else index]
        if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == size
        else value
        for key, value in batch.items()
    }


def with_labels(batch: Batch) -> Batch:
    """Return the batch without the examples that have no label."""
    chosen = labelled(batch)
    return batch if chosen.all() else examples(batch, chosen)


def single(batch: Batch, row: int) -> Batch:
    """Return an example as a batch of one; the batch itself where it has no other."""
    return batch if batch_size(batch) == 1 else examples(batch, slice(row, row + 1))
