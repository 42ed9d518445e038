"""A step down a loss that moves each tensor as soon as its gradient is there, so that no two gradients are held."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from subnetune.core.errors import UsageError

Update = Callable[[str, Tensor, Tensor], None]  # (name, tensor, gradient): moves the tensor in place


def check_reached(reached: bool, loop: str) -> None:
    """Raise UsageError where a loss depends on nothing that the named loop, inner or outer, may touch."""
    if not reached:
        raise UsageError(f"Prime: the loss does not depend on any tensor that the {loop} loop may touch")


def descend(loss: Tensor, tensors: Mapping[str, Tensor], update: Update) -> None:
    """Walk `loss` back and call `update` under no_grad for each tensor that it reaches; `.grad` stays as it is.

    No other parameter may require gradients. Autograd gives a tensor its gradient when nothing that it walks back needs
    the tensor's value any more, layers that are recomputed included. Raises UsageError where the loss reaches none of
    the tensors, and where reentrant checkpointing walks layers or passes that share a tensor back one by one.
    """
    check_reached(loss.requires_grad, "inner")
    kept = {name: p.grad for name, p in tensors.items()}
    moved: set[str] = set()

    def hook(name: str) -> Callable[[Tensor], None]:
        def move(p: Tensor) -> None:
            if name in moved:  # what was recomputed since saw the moved value
                raise UsageError(
                    f"Prime: reentrant gradient checkpointing gives the gradient of {name!r} in parts, one for each "
                    "layer or pass that used it; call model.gradient_checkpointing_enable({'use_reentrant': False})"
                )
            moved.add(name)
            gradient, p.grad = p.grad, None
            with torch.no_grad():  # other threads walk back what lies on accelerators
                update(name, p, gradient)  # type: ignore[arg-type]  # there is one: it has just come

        return move

    for p in tensors.values():
        p.grad = None
    hooks = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in tensors.items()]  # type: ignore[no-untyped-call]
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in hooks:
            handle.remove()
        for name, p in tensors.items():
            p.grad = kept[name]
