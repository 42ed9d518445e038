"""The outer loop: one object that primes a model step by step, and can be saved in between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from subnetune.core.types import Setting
from subnetune.prepare.priming.algorithms import gradients
from subnetune.prepare.priming.borrowed import Buffers, borrow
from subnetune.prepare.priming.chance import seeded
from subnetune.prepare.priming.checked import check_finite
from subnetune.prepare.priming.episodes import Episodes
from subnetune.prepare.priming.first_order import Measured
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.outer import Outer
from subnetune.prepare.priming.rates import Rates
from subnetune.prepare.priming.saved import check_state, identity

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Primer:
    """Primes `setting.model` in place. A context: on the way out modes, adapters and dropout are what they were.

    `index`: the outer steps that were taken. `norm`: of the last step's outer gradient, before clipping. Between steps
    heads that are drawn anew, adapters and buffers have the values that they had at the beginning.
    """

    def __init__(self, prime: Prime, setting: Setting) -> None:
        self.prime, self._setting, self.index, self.norm = prime, setting, 0, math.nan
        with ExitStack() as undo:
            added = borrow(prime, setting, undo)
            self.learner = Learner(prime, setting, added)
            undo.callback(self.learner.close)
            self._episodes = Episodes(prime, setting.tasks, setting.seed)
            self.rates = Rates(prime, self.learner.scale, next(setting.model.parameters()).device)
            self._outer = Outer(self.learner, self.rates)
            self._buffers = Buffers(setting.model)
            self._undo = undo.pop_all()

    def step(self) -> Measured:
        """Take an outer step; return its episodes' mean losses. Raises NumericError before anything moves."""
        try:
            with seeded(self._setting.seed, self.index, "dropout"), torch.enable_grad():
                losses = gradients(self.learner, self._episodes, self.index, self.rates)
            self.norm = self._outer.norm()
            check_finite(self.prime, self.index, float(losses.query), self.norm)
            self._outer.step(self.index, self.norm)
        finally:
            self._outer.clear()
            self.learner.fresh.put_back()
            self._buffers.put_back()
        self.index += 1
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed priming needs beside the model's weights: tensors and plain values."""
        own = {**identity(self.prime, self._setting.seed), "index": self.index, "selector": self.learner.masks.state}
        return {**own, **self._outer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, with the weights of that moment in the model. CheckpointError: it is another's."""
        check_state(state, self.prime, self._setting.seed)
        self._outer.load_state_dict(state)
        self._episodes.skip(int(state["index"]) * self.prime.task_batch)
        self.learner.masks.state, self.index = state["selector"], int(state["index"])

    def __enter__(self) -> Primer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._undo.close()
