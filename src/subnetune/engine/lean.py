"""Lean gradients: each dense gradient is packed and freed as soon as autograd has made it, so that one lives at most.

A tensor with a static mask has a *leaf*, a stand-in of (count,) entries that takes no memory and carries the packed
gradient. The optimizer's groups list the leaf in the tensor's place, so that a GradScaler sees what trains. What is
packed and summed here has the bits that the dense gradient would have had there.

Whoever clips or measures by the model's own parameters sees whole tensors alone: clip with `tuning.clip`. A backward
pass that is thrown away is thrown away by `optimizer.zero_grad()`, since `model.zero_grad()` does not reach leaves. An
overflow in an unselected entry, which no step would use, does not make a GradScaler skip the step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from subnetune.core.errors import LifeCycleError, UsageError
from subnetune.core.passes import Removable
from subnetune.core.recipe import Recipe, check_choice
from subnetune.core.types import placement
from subnetune.engine.child import Child, flat
from subnetune.engine.exchange import Exchange, several_ranks
from subnetune.engine.kernels import kernels_for
from subnetune.engine.reference import masks_clip
from subnetune.engine.views import local_view
from subnetune.update.hold_unselected import HoldUnselected

GradientsName: TypeAlias = Literal["dense", "lean", "selected"]
GRADIENTS = ("dense", "lean", "selected")


def check_gradients(gradients: str, recipe: Recipe, engine: str, why: str) -> None:
    """Raise UsageError for gradients that this recipe, served by this engine for that reason, cannot have."""
    check_choice("optimizer", "gradients", gradients, GRADIENTS)
    if gradients == "dense":
        return
    against = None
    if recipe.selector is None:
        against = "this recipe has no selector: every entry of what trains is needed, and there is nothing to drop"
    elif not recipe.selector.static:
        against = f"the mask of {type(recipe.selector).__name__} changes during the run"
    elif not any(isinstance(rule, HoldUnselected) for rule in recipe.update):
        against = "without HoldUnselected() unselected entries take part in the step"
    elif not masks_clip(recipe):
        against = "MaskGradient(clip_first=True) clips the dense gradient, which is not kept"
    elif engine == "reference":
        against = f"they need the packed or the fused engine, and this run has {why}"
    if against is not None:
        raise UsageError(f'gradients="{gradients}" cannot serve this run: {against}; use gradients="dense"')


class LeanGradients:
    """The leaves of one optimizer, and the hooks that fill them. Built on the sharded model, where it is sharded."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.leaves: dict[str, nn.Parameter] = {}
        self._hooked: dict[str, weakref.ref[Tensor]] = {}
        self._dropped: set[str] = set()  # had gradients that nobody has cleared
        self._handles: list[Removable] = []
        locals_ = {name: child.local(name) for name in child.names}
        self._sharded = any(placement(local).sharded for local in locals_.values())
        self.exchange = Exchange(self._handles) if several_ranks() and not self._sharded else None
        for name, local in locals_.items():
            place = child.place(name, local)
            if place is not None:
                nothing = torch.zeros((), dtype=local.dtype, device=local.device)
                self.leaves[name] = nn.Parameter(nothing.expand(place.count))
                self._hooked[name] = weakref.ref(child.parameter(name))
                self._hook(name, child.parameter(name), LeanGradients._take)
            if self.exchange is not None:  # what autograd or `_take` leaves there is this rank's alone
                holder = self.leaves.get(name, child.parameter(name))
                self._hook(name, holder, LeanGradients._keep_aside)
        self._undo = weakref.finalize(self, _remove, self._handles)  # hooks do not outlive the run

    def _hook(self, name: str, tensor: Tensor, call: Callable[[LeanGradients, str, Tensor], None]) -> None:
        this = weakref.ref(self)  # nor does the model keep the run alive

        def after(accumulated: Tensor) -> None:
            lean = this()
            if lean is not None:
                call(lean, name, accumulated)

        handle = tensor.register_post_accumulate_grad_hook(after)  # type: ignore[no-untyped-call]
        self._handles.append(handle)

    @torch.no_grad()
    def _take(self, name: str, parameter: Tensor) -> None:
        # Adds the selected entries of the gradient to the leaf's, and drops the dense one.
        local = local_view(parameter)
        place = self._child.place(name, local)
        if local.grad is None or place is None:
            return
        leaf, dense = self.leaves[name], flat(local.grad)
        kernels = kernels_for(dense.device.type)
        if leaf.grad is None:
            leaf.grad = torch.empty(place.count, dtype=dense.dtype, device=dense.device)
            kernels.gather(dense, place, leaf.grad)
        else:
            kernels.gather(dense, place, leaf.grad, add=True)
        parameter.grad = None
        self._keep_aside(name, leaf)

    def _keep_aside(self, name: str, holder: Tensor) -> None:
        if self.exchange is not None:
            self.exchange.move(name, holder)

    def undo(self, change: Removable) -> None:
        """Have a change of the model taken back (`change.remove()`) when these gradients end."""
        self._handles.append(change)

    def gradient(self, name: str) -> Tensor | None:
        """Return the packed gradient, (count,), of a tensor that has a leaf; None where there is none."""
        return self.leaves[name].grad

    def clear(self, leaves: bool = True) -> None:
        """Drop gradients: packed ones, what awaits the other ranks, and dense ones that were set by hand.

        Not `leaves`: packed ones become zero instead, those too that a step has used and dropped since. A tensor that
        takes no part in the next step is then stepped with zero, as one with a dense gradient of zeros is.
        """
        if leaves:
            self.drop()
            self._dropped.clear()
            return
        for name in self._dropped:
            leaf = self.leaves[name]
            leaf.grad = (
                torch.zeros(leaf.shape, dtype=leaf.dtype, device=leaf.device) if leaf.grad is None else leaf.grad
            )
        self._drop_others()

    def drop(self) -> None:
        """Drop all gradients that a step has used, or an overflow spoiled."""
        self._dropped |= {name for name, leaf in self.leaves.items() if leaf.grad is not None}
        for leaf in self.leaves.values():
            leaf.grad = None
        self._drop_others()

    def _drop_others(self) -> None:
        for name in self.leaves:
            self._child.parameter(name).grad = None
        if self.exchange is not None:
            self.exchange.clear()

    def ready(self) -> None:
        """Bring all gradients, averaged over replicas, to where the step reads them. Every rank must join.

        Raises LifeCycleError for a tensor that was exchanged (sharded) after the optimizer was built, and where there
        are several ranks that were not there then.
        """
        if self.exchange is None and not self._sharded and several_ranks():
            raise LifeCycleError(
                'build the optimizer after the process group: gradients="lean" averages over its ranks'
            )
        for name, hooked in self._hooked.items():
            parameter = self._child.parameter(name)
            if parameter is not hooked():
                raise LifeCycleError(
                    f"{name!r} was sharded or exchanged after its gradient was hooked: shard the model first, then "
                    'call tuning.optimizer(..., gradients="lean")'
                )
            if parameter.grad is not None and name in self.leaves:  # set by hand: no hook ran
                self._take(name, parameter)
        if self.exchange is not None:
            self.exchange.average(
                {name: self.leaves.get(name, self._child.parameter(name)) for name in self._child.names}
            )

    def close(self) -> None:
        """Take the hooks off."""
        self._undo()


def _remove(handles: list[Removable]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
