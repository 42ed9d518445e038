"""What priming changes about a model for its own time: adapters, dropout, modes, gradients."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from subnetune.core.errors import UsageError
from subnetune.core.structure import Structure
from subnetune.core.types import Setting
from subnetune.prepare.add_adapter import AddAdapter
from subnetune.prepare.priming.chance import seeded
from subnetune.prepare.set_dropout import SetDropout

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Buffers:
    """A model's buffers with the values that they have now, which running statistics and counts leave."""

    def __init__(self, model: nn.Module) -> None:
        self._found = [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Give every buffer those values again."""
        for module, name, buffer, value in self._found:
            setattr(module, name, buffer)
            buffer.copy_(value)


def borrow(prime: Prime, setting: Setting, undo: ExitStack) -> set[str]:
    """Make the model ready and return the names of the adapters that were added; `undo` takes all of it back.

    Adapters of the inner recipe are added to a model that has none; one that has some keeps them.
    """
    model = setting.model
    if any(isinstance(p, DTensor) for p in model.parameters()):
        raise UsageError("Prime: the model is sharded; call Tuning.start() before sharding it")
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]

    def as_before() -> None:
        for p, required, gradient in parameters:
            p.requires_grad_(required)
            p.grad = gradient
        for module, mode in modes:
            module.training = mode

    undo.callback(as_before)
    for p, _, _ in parameters:
        p.grad = None
    before = Structure(model)
    had = before.adapters()  # now: adding replaces the modules that it looks at
    for piece in prime.inner.prepare:
        if isinstance(piece, SetDropout) or (isinstance(piece, AddAdapter) and not before.adapted()):
            with seeded(setting.seed, 0, "adapters"):
                undo.callback(piece.restructure(model))
    if not prime.dropout:
        undo.callback(SetDropout(0.0).restructure(model))
    model.train()
    return Structure(model).adapters() - had
