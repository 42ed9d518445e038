"""Where a backward pass is watched: behind a call of a module that owns selected tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from subnetune.score.owners import Owner


class Call(NamedTuple):
    """A call of an owner in a forward pass: where its output's gradient arrives, and the form of its input."""

    owner: Owner
    edge: GradientEdge
    form: tuple[int, int]  # its dimensions, and whether it had one row (1) or one for each example (2)


Kinds = set[tuple[int, tuple[int, int]]]  # (id of the module, form) of calls


class Tap(torch.autograd.Function):
    """Hand an output on as it is; in the backward pass, give the input and the output's gradient to `receive`."""

    @staticmethod
    def forward(
        ctx: Any, entry: Tensor, x: Tensor, output: Tensor, receive: Callable[[Tensor, Tensor], None]
    ) -> Tensor:
        ctx.save_for_backward(x)  # so that activation checkpointing drops it, and has it computed again
        ctx.receive = receive
        return output.detach()  # no view for autograd, so what follows may change it in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor, None]:
        ctx.receive(ctx.saved_tensors[0], gradients[0])
        return None, None, gradients[0], None
