"""What the inner loop began from, kept as it is overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class Start(Mapping[str, Tensor]):
    """The values that `tensors` had when this was made, if each is announced to `keep` before it moves.

    Of an embedding table a step moves the rows that the batch used, so no others are kept: half of a small encoder's
    entries lie in such a table. `start[name]` is a new tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._whole: dict[str, Tensor] = {}
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}  # which, (rows,), and their values, (rows, ...)

    def keep(self, name: str, gradient: Tensor) -> Tensor | None:
        """Keep what a step along `gradient`, of the tensor's shape, will move, before it moves.

        Returns the moving rows' indices, (rows,) int64, or None where the whole tensor may move. Raises KeyError for a
        name that is not there.
        """
        if name in self._whole:
            return None
        p, moving = self._tensors[name].detach(), _moving_rows(gradient)
        if moving is not None:
            rows, values = self._rows.get(name) or (moving[:0], p[:0])
            new = moving[torch.isin(moving, rows, invert=True)]
            if 2 * (len(rows) + len(new)) <= len(p):
                self._rows[name] = (torch.cat([rows, new]), torch.cat([values, p[new]]))
                return moving
        self._whole[name] = self[name]
        self._rows.pop(name, None)
        return None

    def put_back(self) -> None:
        """Give the tensors their bits back."""
        with torch.no_grad():
            for name, values in self._whole.items():
                self._tensors[name].copy_(values)
            for name, (rows, values) in self._rows.items():
                self._tensors[name].index_copy_(0, rows, values)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._whole:
            return self._whole[name].clone()
        value = self._tensors[name].detach().clone()
        return value.index_copy_(0, *self._rows[name]) if name in self._rows else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _moving_rows(gradient: Tensor) -> Tensor | None:
    """Return the indices of the rows that are not all zero, (rows,); None for what has no rows."""
    if gradient.dim() != 2 or gradient.layout is not torch.strided:
        return None
    largest: Tensor = torch.linalg.vector_norm(gradient, torch.inf, dim=1)
    return largest.nonzero().flatten()
