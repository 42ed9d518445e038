"""One forward and one backward pass over a batch that give the squared gradient of each of its examples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import grad

from subnetune.core.errors import NumericError
from subnetune.core.types import Batch, Setting
from subnetune.score.example_classes import check_classes
from subnetune.score.example_sums import ExampleSums
from subnetune.score.example_weights import candidates, choose
from subnetune.score.examples import batch_size, single
from subnetune.score.owners import Owner, check_uses, uses
from subnetune.score.tap import Kinds
from subnetune.score.taps import Taps, tapped_loss

_PRECISION = {"highest": 0.0, "high": 2.0**-10, "medium": 2.0**-7}  # rounding that the user allows in fp32 products


class HookedBatch:
    """A batch after its forward pass, whose graph is that of a loss of which hooks see every selected tensor.

    `calls` are those of the owners that the loss depends on, in order. `noise` is how far rounding takes an example in
    a batch from the same alone, relative to its size. Raises NotByHooks where hooks cannot serve.
    """

    def __init__(self, setting: Setting, owned: list[Owner], batch: Batch) -> None:
        self.setting, self.batch, self.size = setting, batch, batch_size(batch)
        self.taps = Taps(owned, self.size)
        self.loss = tapped_loss(setting, self.taps, batch)
        reads, nodes = uses(self.loss)
        self.calls = [call for call in self.taps.calls if call.edge.node in nodes]
        check_uses(setting.params, reads, [call.owner for call in self.calls])
        rounding = max(self.taps.rounding, _PRECISION[torch.get_float32_matmul_precision()])
        self.noise = min(256 * rounding, 0.1)

    def kinds(self) -> Kinds:
        """Return which modules took part, and in which form."""
        return {(id(call.owner.module), call.form) for call in self.calls}

    def factors(self, known: set[int] | None = None) -> Tensor:
        """Return by what B * the batch's gradients are multiplied to be those of the examples' own losses, (B,).

        `known` are the classes of which an example was compared already, to which those of this batch are added; None:
        no such comparison.
        """
        if not self.calls:
            return torch.ones(self.size)
        top = self.calls[-1]  # what is above it is a small part of the model, most often only the loss
        (there,) = grad(self.loss * self.size, [top.edge], retain_graph=True)

        def own(row: int) -> Tensor:
            taps = Taps([top.owner], 1)
            loss = tapped_loss(self.setting, taps, single(self.batch, row))
            found = grad(loss, [taps.calls[-1].edge], allow_unused=True)[0] if taps.calls else None
            return torch.zeros_like(there[row]) if found is None else found[0]

        factors = choose(candidates(self.batch, self.size), there, own, self.noise)
        if known is not None:
            check_classes(self.batch, factors, there, own, self.noise, known)
        return factors

    def backward(self, sums: ExampleSums, factors: Tensor, piece: str) -> None:
        """Add the squares to `sums`; frees the graph. NumericError for a gradient that is not finite."""
        self.taps.sums, sums.factors = sums, factors
        with self.taps.on():  # checkpointed parts run again
            grad(self.loss * self.size, [self.taps.entry], allow_unused=True)
        for name, finite in self.taps.finite:
            if not finite:
                raise NumericError(f"Fisher: the gradient of {name!r} is not finite for {piece}")
