"""See, in one backward pass, the input and the output's gradient of every module that owns a selected tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from subnetune.core.types import Batch, Setting
from subnetune.score.example_sums import ExampleSums
from subnetune.score.owners import NotByHooks, Owner
from subnetune.score.tap import Call, Tap


class Taps:
    """Taps behind the owners while `on`, for batches of `size` examples; in a backward pass squares go to `sums`.

    `calls` are in order, `rounding` is the coarsest of theirs, `finite` says of tensors whether all they got was. A
    call that gives no example its own row is left without a tap: `check_uses` finds that out.
    """

    def __init__(self, owners: list[Owner], size: int, sums: ExampleSums | None = None) -> None:
        self.owners, self.size, self.sums, self.calls = owners, size, sums, list[Call]()
        self.rounding, self.finite = 0.0, list[tuple[str, Tensor]]()
        self.entry = torch.zeros((), requires_grad=True)  # every tap leads here, and no weight's gradient is needed

    @contextmanager
    def on(self) -> Iterator[None]:
        """Also around the backward pass, which runs checkpointed parts of the forward pass again."""
        hooks = [o.module.register_forward_hook(self._hook(o), prepend=True, with_kwargs=True) for o in self.owners]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, owner: Owner) -> Callable[..., Tensor | None]:
        def receive(x: Tensor, gradient: Tensor) -> None:
            if self.sums is not None:
                owner.formula(owner.module, owner.names, x, gradient, self.sums)
            whole = (gradient.sum(dtype=torch.float32) + x.sum(dtype=torch.float32)).isfinite()
            self.finite.append((next(iter(owner.names.values())), whole))

        def tap(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            given = (*args, *kwargs.values(), output)
            if len(given) != 2 or not all(isinstance(t, Tensor) and t.dim() for t in given):
                return None  # gated norms and the like
            x = given[0]
            form = (x.dim(), min(x.shape[0], 2))
            if isinstance(module, nn.Embedding) and x.shape[0] == 1:  # such as positions, one row for all examples
                x, output = x.expand(self.size, *x.shape[1:]), output.expand(self.size, *output.shape[1:])
            if x.shape[0] != self.size or output.shape[0] != self.size or not torch.is_grad_enabled():
                return None
            tapped: Tensor = Tap.apply(self.entry, x.detach(), output, receive)  # type: ignore[no-untyped-call]
            self.calls.append(Call(owner, get_gradient_edge(tapped), form))
            self.rounding = max(self.rounding, torch.finfo(output.dtype).eps)
            return tapped

        return tap


def tapped_loss(setting: Setting, taps: Taps, batch: Batch) -> Tensor:
    """Return the loss of a batch, a graph with taps in it; NotByHooks where it fails or is not finite."""
    try:
        with taps.on():
            loss = setting.forward(setting.model, batch).loss
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # the loop raises it again, unless the hooks are to blame
        raise NotByHooks(f"the forward pass under hooks says: {error}") from error
    if not torch.isfinite(loss):
        raise NotByHooks("the loss is not finite")
    if not loss.requires_grad:
        raise NotByHooks("the loss uses no selected tensor")
    return loss
