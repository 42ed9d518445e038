"""Squared gradients of single examples: by hooks in one backward pass a batch where that is right, else one by one."""

from __future__ import annotations

import logging
from typing import ClassVar

from torch import Tensor

from subnetune.core.types import Batch, Setting
from subnetune.score.both_ways import checked_example
from subnetune.score.by_hooks import HookedBatch
from subnetune.score.example_sums import ExampleSums
from subnetune.score.examples import batch_size, examples, single, with_labels
from subnetune.score.owners import NotByHooks, Owner, owners
from subnetune.score.squares import add_squares
from subnetune.score.tap import Kinds

log = logging.getLogger(__name__)


class PerSample:
    """Add the squared gradient of each example to `totals`, batch after batch.

    An example of the first batch is scored both ways, and one of every batch and of every class is compared at the top
    of the model: hooks serve only where they give what the loop gives, up to rounding. `hooked` and `looped` count
    examples, `reason` says why hooks ended, if they did.
    """

    singly: ClassVar[bool] = True

    def __init__(self, setting: Setting, totals: dict[str, Tensor], clip: float | None, training: bool) -> None:
        self.setting, self.clip, self.sums = setting, clip, ExampleSums(clip, totals)
        self.hooked, self.looped, self.reason = 0, 0, ""
        self._owners: list[Owner] = []
        self._checked: Kinds = set()
        self._classes: set[int] = set()  # of which an example was compared
        try:
            if training:
                raise NotByHooks("in training mode every example alone draws its own dropout")
            self._owners = owners(setting.model, setting.params)
        except NotByHooks as unfit:
            self._end_hooks(unfit)

    def __call__(self, batch: Batch) -> int:
        """Return the number of examples with a label. Raises NumericError for what is not finite."""
        batch = with_labels(batch)
        size, before = batch_size(batch), self.hooked + self.looped
        if size > 1 and not self.reason:
            try:
                self._by_hooks(batch, f"one of pieces {before} to {before + size - 1} (per-sample estimator)")
                self.hooked += size
                return size
            except NotByHooks as unfit:
                self._end_hooks(unfit)
        for row in range(size):
            loss = self.setting.forward(self.setting.model, single(batch, row)).loss
            piece = f"piece {before + row} (per-sample estimator)"
            add_squares(loss, self.setting.params, self.sums.totals, self.clip, piece)
            self.looped += 1
        return size

    def _by_hooks(self, batch: Batch, piece: str) -> None:
        if not self._checked:
            self._checked = checked_example(self.setting, self._owners, examples(batch, slice(2)), self.clip, piece)
        hooked = HookedBatch(self.setting, self._owners, batch)
        if not hooked.kinds() <= self._checked:
            raise NotByHooks("a module takes part that did not in the first batch, or in another way")
        hooked.backward(self.sums, hooked.factors(self._classes), piece)

    def _end_hooks(self, unfit: NotByHooks) -> None:
        self.reason = str(unfit)
        log.info("Fisher: one backward pass for each example, since %s", self.reason)
