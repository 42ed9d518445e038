"""The losses of both loops: over a task's own classes where heads are matched, under the inner forward rules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from subnetune.core.errors import DataError
from subnetune.core.types import Batch, Forward, ForwardRule, Live, Output

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Losses:
    """Losses of a batch of a named task, scalars."""

    def __init__(self, prime: Prime, forward: Forward) -> None:
        self._forward = forward
        matched = prime.head == "matched"
        self._classes = dict(zip(prime.tasks, prime.classes, strict=True)) if matched else {}
        self._rules = prime.inner.forward

    def query(self, model: nn.Module, batches: Sequence[Batch], task: str) -> Tensor:
        """Return the mean of the batches' losses."""
        run = self._run(task)
        return torch.stack([run(model, batch).loss for batch in batches]).mean()

    def support(self, model: nn.Module, batch: Batch, task: str, live: Live) -> Tensor:
        """Return the loss that fine-tuning has, its forward rules included."""
        run = self._run(task)
        for rule in reversed(self._rules):
            run = partial(_under, rule, run, live)
        return run(model, batch).loss

    def _run(self, task: str) -> Forward:
        return partial(_over, self._forward, self._classes[task], task) if self._classes else self._forward


def _under(rule: ForwardRule, run: Forward, live: Live, module: nn.Module, batch: Batch) -> Output:
    return rule(run, module, batch, live)


def _over(run: Forward, classes: tuple[int, ...], task: str, module: nn.Module, batch: Batch) -> Output:
    """Run the model and take the cross entropy over `classes` alone; labels below 0 do not count."""
    labels = batch.get("labels")
    if labels is None or labels.is_floating_point():
        raise DataError(f"Prime: head='matched' needs batches with class ids as 'labels', and task {task!r} has none")
    out = run(module, batch)
    if max(classes) >= out.logits.shape[-1]:
        raise DataError(f"Prime: task {task!r} has class {max(classes)}, the head {out.logits.shape[-1]} outputs")
    own, counted = torch.full_like(labels, -100), labels >= 0
    for place, one in enumerate(classes):
        own[labels == one] = place
    if bool((own[counted] < 0).any()):
        raise DataError(f"Prime: task {task!r} has labels outside its classes {classes}")
    logits = out.logits[..., list(classes)]
    return Output(nn.functional.cross_entropy(logits.flatten(0, -2), own.flatten()), logits)
