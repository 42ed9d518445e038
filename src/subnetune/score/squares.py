"""Sums of squared gradients of chosen tensors, in single precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from subnetune.core.errors import NumericError
from subnetune.core.types import Batch, Setting
from subnetune.score.undisturbed import undisturbed


@contextmanager
def scoring_gradients(setting: Setting, training: bool) -> Iterator[None]:
    """Have the selected tensors alone require gradients, in training or evaluation mode; all is put back on exit."""
    with undisturbed(setting), torch.enable_grad():
        for p in setting.model.parameters():
            p.requires_grad_(False)
        for tensor in setting.params.values():
            tensor.requires_grad_(True)
        setting.model.train(training)
        for module in setting.model.modules():  # reentrant checkpointing has no gradients for chosen tensors
            if getattr(module, "gradient_checkpointing", False) is True:
                module.gradient_checkpointing = False  # type: ignore[assignment]
        yield


def gradients(
    loss: Tensor, params: Mapping[str, Tensor], clip: float | None, piece: str
) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradient of each tensor that `loss` uses, by name, in single precision.

    `clip` is the largest norm of each. Raises NumericError, which names the `piece` of the data, for a loss or a
    gradient that is not finite.
    """
    if not torch.isfinite(loss):
        raise NumericError(f"Fisher: the loss of {piece} is {loss.item()}")
    found: tuple[Tensor | None, ...] = torch.autograd.grad(loss, tuple(params.values()), allow_unused=True)
    for name, gradient in zip(params, found, strict=True):
        if gradient is None:
            continue
        dense = (gradient.to_dense() if gradient.is_sparse else gradient).float()
        norm = torch.linalg.vector_norm(dense)
        if not torch.isfinite(norm):
            raise NumericError(f"Fisher: the gradient of {name!r} is not finite for {piece}")
        yield name, dense if clip is None else dense * (clip / (norm + 1e-6)).clamp(max=1.0)


def add_squares(
    loss: Tensor, params: Mapping[str, Tensor], totals: dict[str, Tensor], clip: float | None, piece: str
) -> None:
    """Add the squared `gradients` of `loss` to `totals`; a tensor that the loss does not use stays out of them."""
    for name, dense in gradients(loss, params, clip, piece):
        if name not in totals:
            totals[name] = torch.zeros_like(dense)
        totals[name].addcmul_(dense, dense)


@dataclass
class PerBatch:
    """Add the squared gradient of a batch's loss to `totals`, batch after batch."""

    setting: Setting
    totals: dict[str, Tensor]
    clip: float | None
    training: bool
    singly: ClassVar[bool] = False
    count: int = 0

    def __call__(self, batch: Batch) -> int:
        """Return 1, the number of gradients that were added. Raises NumericError for what is not finite."""
        loss = self.setting.forward(self.setting.model, batch).loss
        add_squares(loss, self.setting.params, self.totals, self.clip, f"piece {self.count} (batch estimator)")
        self.count += 1
        return 1
