"""The reference engine: plain torch around the optimizer's own step, obviously right, for every recipe and optimizer.

It hangs on the optimizer's public step hooks, so that a step which the optimizer never takes (an overflow, a
micro-batch of an accumulation) runs no rule and advances no counter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from subnetune.core.errors import CheckpointError, LifeCycleError, UsageError
from subnetune.core.fingerprint import whole_tensor
from subnetune.core.recipe import Recipe
from subnetune.core.types import Live, Mask, Params
from subnetune.engine.child import Host, place_of
from subnetune.engine.norms import check_max_norm, clip_factor, packed, total_norm
from subnetune.engine.views import local_view

_CLOSED: WeakKeyDictionary[Optimizer, RemovableHandle] = WeakKeyDictionary()  # the hooks of `_refuse_step`


class Handle:
    """Undoes `attach`: `remove()` takes the hooks off the optimizer. Also a context manager."""

    def __init__(self, undo: Callable[[], None]) -> None:
        self._undo: Callable[[], None] | None = undo

    def remove(self) -> None:
        """Take the hooks off; a second call does nothing."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


class ReferenceEngine:
    """Runs a recipe's update rules around the steps of one optimizer."""

    name = "reference"

    def __init__(self, host: Host, optimizer: Optimizer, why: str) -> None:
        self.optimizer, self.why = optimizer, why
        self._host = host
        self._open: ExitStack | None = None
        self._first: list[Callable[[Optimizer], None]] = []
        if closed := _CLOSED.pop(optimizer, None):
            closed.remove()
        before = optimizer.register_step_pre_hook(self._before)
        after = optimizer.register_step_post_hook(self._after)
        loading = optimizer.register_load_state_dict_pre_hook(_refuse_named_states)
        self._hooks = (before, after, loading)

    def remove(self, closed: bool = False) -> None:
        """Take the hooks off the optimizer. `closed`: the Tuning is, and its optimizer takes no further step."""
        for hook in self._hooks:
            hook.remove()
        if closed:
            _CLOSED[self.optimizer] = self.optimizer.register_step_pre_hook(_refuse_step)

    def run_first(self, call: Callable[[Optimizer], None]) -> None:
        """Have `call(optimizer)` run at the start of each step that the optimizer is asked for, before any rule."""
        self._first.append(call)

    def around(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return what a forward pass of `module` runs inside, in training."""
        return nullcontext()

    def expect(self, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, clipped: bool) -> None:
        """Get ready for a step, under `scaler` where there is one; `clipped`: gradients were clipped for it."""

    def skipped(self) -> None:
        """Do what is due where the step that gradients were clipped for was not taken: nothing, they are clipped."""

    @torch.no_grad()
    def clip(self, trained: Callable[[], Mapping[str, Tensor]], max_norm: float) -> Tensor:
        """Scale the gradients of what trains to the norm `max_norm`; return the norm before."""
        return clip_what_trains(self._host.recipe, self._host.live(), trained(), max_norm)

    def enter(self, stack: ExitStack) -> None:
        """Begin what the recipe's rules do around this step, and let the selector observe."""
        live = self._host.live(self.optimizer)
        for rule in self._host.recipe.update:
            stack.enter_context(rule(live))
        selector = self._host.recipe.selector
        if selector is not None and selector.watches(live.state):
            selector.observe(live.state, live.params, live.mask, live.step)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open is not None:
            raise LifeCycleError("the optimizer's last step raised and was left half done; resume from a checkpoint")
        if any(callable(argument) for argument in (*args, *kwargs.values())):
            raise UsageError(
                "an optimizer step with a closure computes gradients after the mask was applied; call step()"
            )
        if self.made_up(optimizer):
            return
        for call in self._first:
            call(optimizer)
        if overflowed(optimizer):
            return
        with ExitStack() as stack:  # an error while entering leaves every rule that was entered
            self.enter(stack)
            self._open = stack.pop_all()

    def made_up(self, optimizer: Optimizer) -> bool:
        """Whether the step under way is none of training: torch.distributed.checkpoint fills empty states by one.

        It sets learning rates and gradients to zero for it.
        """
        return _made_up(optimizer)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._open is None:  # an overflow: the fused kernel changed nothing
            return
        stack, self._open = self._open, None
        stack.close()
        self._host.advance()


def _made_up(optimizer: Optimizer) -> bool:
    groups = optimizer.param_groups
    if optimizer.state or any(float(group.get("lr", 1.0)) != 0.0 for group in groups):
        return False
    return not any(p.grad is not None and bool(p.grad.any()) for group in groups for p in group["params"])


def _refuse_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not _made_up(optimizer):
        raise LifeCycleError(
            "the Tuning of this optimizer is closed, and a step without it would train what its mask leaves out: build "
            "a new Tuning and its optimizer; to go on without one, remove() attach's handle before closing"
        )


def _refuse_named_states(_: Optimizer, state: dict[str, Any]) -> None:
    about = state.get("about")
    if isinstance(about, Mapping):  # torch would match states by position, whatever their shapes
        raise CheckpointError(
            f"the optimizer state was saved by the {about.get('engine')} engine, this run has the reference engine: a "
            f'run goes on with what it began with, engine="{about.get("engine")}"'
        )


def overflowed(optimizer: Optimizer) -> bool:
    """Whether the step under way will change nothing, because a gradient overflowed under a GradScaler.

    Raises UsageError where the gradients are still scaled: rules could not see what they are.
    """
    # Optimizers that unscale inside their kernel (fused) are called even when a gradient overflowed; GradScaler then
    # sets `found_inf`, and `grad_scale` when the gradients that we see are still scaled.
    if getattr(optimizer, "grad_scale", None) is not None:
        raise UsageError("the gradients are still scaled: call scaler.unscale_(optimizer) first, or use tuning.step")
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.item())


@torch.no_grad()
def confine_gradients(params: Params, mask: Mask | None) -> None:
    """Set the gradients of unselected entries to zero, in place (also where they are inf or nan)."""
    if mask is None:
        return
    for name, tensor in params.items():
        if tensor.grad is not None:
            tensor.grad.masked_fill_(~mask[name], 0.0)


def clip_what_trains(recipe: Recipe, live: Live, trained: Mapping[str, Tensor], max_norm: float) -> Tensor:
    """Scale the gradients down to the global norm `max_norm`; return the norm before, a scalar, equal on all ranks.

    Where the selector and the rules ask for it, gradients outside the mask are zeroed first. Raises UsageError for a
    `max_norm` that is no positive number.
    """
    check_max_norm(max_norm)
    if not masks_clip(recipe) or live.mask is None:
        return whole_tensor(torch.nn.utils.clip_grad_norm_(list(trained.values()), max_norm))
    confine_gradients(live.params, live.mask)
    parts = []
    for name, tensor in trained.items():
        local = live.params[name] if name in live.params else local_view(tensor)
        if local.grad is not None:
            place = None if name not in live.params else place_of(live.mask, name, local)
            parts.append((local, packed(local.grad, place)))
    norm = total_norm(parts)
    factor = clip_factor(norm, max_norm)
    for local, _ in parts:
        assert local.grad is not None
        local.grad.mul_(factor)
    return norm


def innermost(optimizer: object) -> object:
    """Return the torch optimizer inside wrappers such as accelerate's."""
    while not isinstance(optimizer, Optimizer) or hasattr(optimizer, "optimizer"):
        inner = getattr(optimizer, "optimizer", None)
        if inner is None:
            return optimizer
        optimizer = inner
    return optimizer


def check_optimizer_class(cls: type[Optimizer]) -> None:
    """Raise UsageError for an optimizer whose step wants a closure, such as LBFGS: it takes many steps within one."""
    step = getattr(cls, "step", None)  # a function that makes an optimizer has none; `servable` sees its product
    closure = None if step is None else inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UsageError(
            f"{cls.__name__} evaluates closures, forward and backward many times within one step, and cannot be "
            "served: masks and rules hold for one step at a time; use another optimizer, such as torch.optim.AdamW"
        )


def servable(optimizer: object, trained: Mapping[str, Tensor]) -> Optimizer:
    """Return the innermost torch optimizer.

    Raises UsageError when it evaluates closures, or does not hold every tensor that trains.
    """
    inner = innermost(optimizer)
    if not isinstance(inner, Optimizer):
        raise UsageError(f"attach needs a torch optimizer, got {type(optimizer).__name__}")
    check_optimizer_class(type(inner))
    held = {id(p) for group in inner.param_groups for p in group["params"]}
    missing = [name for name, tensor in trained.items() if id(tensor) not in held]
    if missing:
        raise UsageError(f"the optimizer does not hold {len(missing)} tensors that train, such as {missing[0]!r}")
    return inner


def masks_clip(recipe: Recipe) -> bool:
    """Whether clipping sees masked gradients; a rule that copies a release's order holds whatever others would do.

    Under a mask that changes a rule that holds values alone does not ask for it: moments are to see the dense gradient.
    """
    if recipe.selector is None or not (recipe.selector.static or recipe.selector.confines_clip):
        return False
    rules = [r for r in recipe.update if recipe.selector.static or not getattr(r, "holds", False)]
    wishes = [rule.masks_clip for rule in rules if hasattr(rule, "masks_clip")]
    return bool(wishes) and all(wishes)


def take_step(optimizer: Optimizer, scaler: torch.amp.GradScaler | None, clipped: bool) -> None:
    """Call the optimizer's step, through `scaler` with unscaled gradients where there is one.

    `clipped` says that these gradients were clipped. Raises UsageError where they were still scaled then.
    """
    if scaler is None:
        optimizer.step()
        return
    if unscale_once(scaler, optimizer) and clipped:
        raise UsageError(
            "tuning.clip saw gradients that were still scaled, so it clipped to another norm than was asked for: call "
            "scaler.unscale_(optimizer) before tuning.clip"
        )
    scaler.step(optimizer)
    scaler.update()


def unscale_once(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> bool:
    """Unscale the gradients unless the caller has already; return whether they were scaled until now."""
    if not scaler.is_enabled():
        return False
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise
        return False
    return True
