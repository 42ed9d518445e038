"""The engine whose optimizer applies the update rules itself: it checks, lets selectors observe, and counts steps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from subnetune.core.types import Live
from subnetune.engine.child import Host
from subnetune.engine.reference import ReferenceEngine, confine_gradients, masks_clip
from subnetune.engine.served import ServedOptimizer
from subnetune.update.mask_gradient import MaskGradient


class ServedEngine(ReferenceEngine):
    """Hangs on a `ServedOptimizer` as the reference engine does on any other, and leaves the rules to it."""

    optimizer: ServedOptimizer

    def __init__(self, host: Host, optimizer: ServedOptimizer, why: str) -> None:
        super().__init__(host, optimizer, why)
        self.name = optimizer.engine

    @torch.no_grad()
    def clip(self, trained: Mapping[str, Tensor], max_norm: float) -> Tensor:
        """Let the step scale the gradients of what trains to the norm `max_norm`; return the norm before."""
        recipe = self._host.recipe
        return self.optimizer.clip(max_norm, masks_clip(recipe), at_once=self._watched(self._host.live()))

    def skipped(self) -> None:
        """Scale the gradients now: what accumulates on top of them is not to be scaled by the step to come."""
        self.optimizer.settle()

    def enter(self, stack: ExitStack, live: Live) -> None:
        """Give a selector that watches this step the gradients that the optimizer works with."""
        if live.mask is not None and self._watched(live):
            rules = [rule for rule in self._host.recipe.update if isinstance(rule, MaskGradient)]
            if rules:
                confine_gradients(live.params, live.mask)

    def _watched(self, live: Live) -> bool:
        selector = self._host.recipe.selector
        return selector is not None and selector.watches(live.state)
