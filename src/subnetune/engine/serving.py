"""The engine whose optimizer applies the update rules itself: it checks, lets selectors observe, and counts steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from subnetune.core.errors import UsageError
from subnetune.core.recipe import Selector
from subnetune.engine.child import Host
from subnetune.engine.reference import ReferenceEngine, confine_gradients, masks_clip, unscale_once
from subnetune.engine.served import ServedOptimizer
from subnetune.update.mask_gradient import MaskGradient


class ServedEngine(ReferenceEngine):
    """Hangs on a `ServedOptimizer` as the reference engine does on any other, and leaves the rules to it."""

    optimizer: ServedOptimizer

    def __init__(self, host: Host, optimizer: ServedOptimizer, why: str) -> None:
        super().__init__(host, optimizer, why)
        self.name = optimizer.engine
        # Most selectors never look at gradients: what there is to see is then not put together.
        self._observes = type(host.recipe.selector).observe is not Selector.observe if host.recipe.selector else False
        self._scaled = False  # whether the step under way is a GradScaler's

    @torch.no_grad()
    def clip(self, trained: Callable[[], Mapping[str, Tensor]], max_norm: float) -> Tensor:
        """Let the step scale the gradients of what trains to the norm `max_norm`; return the norm before."""
        selector = self._host.recipe.selector
        watched = selector is not None and self._observes and selector.watches(self._host.live().state)
        return self.optimizer.clip(max_norm, masks_clip(self._host.recipe), at_once=watched)

    def around(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return what a forward pass runs inside."""
        lean = self.optimizer.lean
        return nullcontext() if lean is None or lean.exchange is None else lean.exchange.around(module)

    def expect(self, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, clipped: bool) -> None:
        """Have the replicas' mean gradients where `scaler` looks for overflows. UsageError where it has looked before.

        `optimizer` is what the scaler knows, `clipped` whether gradients were clipped for this step.
        """
        self._scaled = scaler is not None and scaler.is_enabled()
        lean = self.optimizer.lean
        if scaler is None or not self._scaled or lean is None or lean.exchange is None:
            return
        if not clipped:
            lean.ready()
        if clipped or not unscale_once(scaler, optimizer):
            raise UsageError(
                "under a GradScaler packed gradients of several ranks are averaged in tuning.step, so that neither "
                "scaler.unscale_ nor tuning.clip can come before: train in bfloat16 without a scaler, or use "
                'gradients="dense"'
            )

    def skipped(self) -> None:
        """Scale the gradients now: what accumulates on top of them is not to be scaled by the step to come.

        Packed gradients that overflowed are dropped: a loop that calls `model.zero_grad()` does not reach them.
        """
        self.optimizer.settle()
        if self._scaled and self.optimizer.lean is not None:
            self.optimizer.lean.drop()

    def made_up(self, optimizer: Optimizer) -> bool:
        """Return False: who asks a served optimizer for states by parameter is refused before any step."""
        return False

    def remove(self, closed: bool = False) -> None:
        """Take the hooks off the optimizer and the model; the optimizer takes no further step in any case."""
        super().remove()
        self.optimizer.close()
        if self.optimizer.lean is not None:
            self.optimizer.lean.close()

    def enter(self, stack: ExitStack) -> None:
        """Check the gradients, and give them to a selector that watches this step."""
        self.optimizer.check_clipped()
        selector = self._host.recipe.selector
        if selector is None or not self._observes:
            return
        live = self._host.live(self.optimizer)
        if selector.watches(live.state):
            if live.mask is not None and any(isinstance(rule, MaskGradient) for rule in self._host.recipe.update):
                confine_gradients(live.params, live.mask)
            selector.observe(live.state, live.params, live.mask, live.step)
