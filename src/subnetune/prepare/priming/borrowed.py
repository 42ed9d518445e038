"""What priming changes about a model for its own time: adapters, dropout, modes, gradients."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor

from subnetune.core.errors import UsageError
from subnetune.core.hashing import draw_seed
from subnetune.core.randomness import forked_randomness
from subnetune.core.structure import Structure
from subnetune.core.types import Setting
from subnetune.prepare.add_adapter import AddAdapter
from subnetune.prepare.set_dropout import SetDropout

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


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
    for piece in prime.inner.prepare:
        if isinstance(piece, AddAdapter) and not before.adapted():
            with forked_randomness():
                torch.manual_seed(draw_seed(setting.seed, 0, "priming: adapters"))
                undo.callback(piece.restructure(model))
    if not prime.dropout:
        undo.callback(SetDropout(0.0).restructure(model))
    model.train()
    return Structure(model).adapters() - before.adapters()
