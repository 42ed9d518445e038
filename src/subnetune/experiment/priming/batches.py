"""The examples of a priming: each task's training split under the common labels, in passes of changing orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subnetune.core.errors import DataError
from subnetune.experiment.data import Collator, Encoded, encode
from subnetune.experiment.parts import with_loss
from subnetune.experiment.priming.config import PrimeConfig
from subnetune.experiment.priming.plan import Plan
from subnetune.experiment.session import load_data, load_tokenizer, say_dropped
from subnetune.tasks.types import Labels, Split, Task

Say = Callable[[str], None]


class Material(NamedTuple):
    """What a priming reads: `batches` by task, each a callable that gives a pass; `data`: their fingerprints.

    `examples`: how many each task has.
    """

    batches: dict[str, Passes]
    data: dict[str, str]
    examples: dict[str, int]


class Passes:
    """Passes over a task's examples, each in an order that torch's random state gives when its first batch is taken.

    `Prime` seeds that for every batch by seed, task and number: the orders of its episodes are a function of these,
    whatever else has read the examples before (scores do so once, and not again on a resume).
    """

    def __init__(self, encoded: Encoded, collate: Collator, batch_size: int) -> None:
        self._encoded, self._collate, self._batch_size = encoded, collate, batch_size

    def __call__(self) -> Iterator[dict[str, Tensor]]:
        order: list[int] = torch.randperm(len(self._encoded)).tolist()
        for start in range(0, len(order), self._batch_size):
            yield self._collate(self._encoded, order[start : start + self._batch_size])


def load_material(config: PrimeConfig, plan: Plan, device: torch.device, say: Say) -> Material:
    """Return the training examples of all tasks. Raises DataError and UsageError as `load_data` does."""
    tokenizer = load_tokenizer(config.as_run())
    collate = Collator(tokenizer, device)
    batches, data, examples = {}, {}, {}
    for task in plan.tasks:
        found = load_data(config.as_run(task.name), ("train",))
        say_dropped(found, lambda line, name=task.name: say(f"{name}: {line}"))  # type: ignore[misc]
        split = renamed(found.train, found.task, plan.task)
        encoded = encode(split, plan.task, tokenizer, config.max_length)
        encoded = with_loss(encoded, task.name, lambda line, name=task.name: say(f"{name}: {line}"))  # type: ignore[misc]
        batches[task.name] = Passes(encoded, collate, config.batch_size)
        data[task.name], examples[task.name] = found.fingerprint(), len(encoded)
    return Material(batches, data, examples)


def renamed(split: Split, task: Task, whole: Task) -> Split:
    """Return a task's split with the ids that its labels have in `whole`. Raises DataError where it has no labels."""
    if split.labels is None:
        raise DataError(f"task {task.name!r}: the split {split.name!r} has no labels to prime with")
    ids = [whole.labels.index(label) for label in task.labels]
    if ids == list(range(len(ids))):
        return split
    return replace(split, labels=_mapped(split.labels, ids))


def _mapped(labels: Labels, ids: list[int]) -> Any:
    return [[ids[i] for i in label] if isinstance(label, list) else ids[int(label)] for label in labels]
