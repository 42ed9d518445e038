"""The outer loop: one object that primes a model step by step, and can be saved in between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from subnetune.core.hashing import draw_seed
from subnetune.core.randomness import forked_randomness
from subnetune.core.types import Setting
from subnetune.prepare.priming.algorithms import ALGORITHMS
from subnetune.prepare.priming.borrowed import borrow
from subnetune.prepare.priming.checked import check_finite
from subnetune.prepare.priming.episodes import Episodes
from subnetune.prepare.priming.first_order import Measured
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.outer import Outer
from subnetune.prepare.priming.rates import Rates

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Primer:
    """Primes `setting.model` in place. A context: on the way out modes, adapters and dropout are what they were.

    `index`: the outer steps that were taken. `norm`: of the last step's outer gradient, before clipping.
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
            self._undo = undo.pop_all()

    def step(self) -> Measured:
        """Take an outer step; return its episodes' mean losses. Raises NumericError before anything moves."""
        prime, found = self.prime, []
        with forked_randomness(), torch.enable_grad():
            torch.manual_seed(draw_seed(self._setting.seed, self.index, "priming: dropout"))
            for number in range(self.index * prime.task_batch, (self.index + 1) * prime.task_batch):
                self.learner.fresh.draw(number)
                gradient, first = ALGORITHMS[prime.algorithm], number * prime.inner_steps
                found.append(gradient(self.learner, self._episodes.next(), first, self.rates, 1 / prime.task_batch))
                self._outer.keep_its_own()
        losses = Measured(*(torch.stack(values).mean() for values in zip(*found, strict=True)))
        self.norm = self._outer.norm()
        try:
            check_finite(prime, self.index, float(losses.query), self.norm)
            self._outer.step(self.index, self.norm)
        finally:
            self._outer.clear()
        self.index += 1
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed priming needs beside the model's weights: tensors and plain values."""
        return {"index": self.index, "recipe": repr(self.prime), **self._outer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, with the weights of that moment in the model. CheckpointError: it is another's."""
        self._outer.load_state_dict(state, repr(self.prime))
        self.index = int(state["index"])
        self._episodes.skip(self.index * self.prime.task_batch)

    def __enter__(self) -> Primer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._undo.close()
