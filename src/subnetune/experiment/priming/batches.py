"""The examples of a priming: each task's training split under the common labels, in passes of seeded orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subnetune.core.errors import DataError
from subnetune.experiment.data import Collator, Encoded, encode, epoch_order
from subnetune.experiment.priming.config import PrimeConfig
from subnetune.experiment.priming.plan import Plan
from subnetune.experiment.session import load_data, load_tokenizer, say_dropped
from subnetune.tasks.types import Labels, Split, Task

Say = Callable[[str], None]


class Material(NamedTuple):
    """What a priming reads: `batches` by task, each a callable that gives the next pass; `data`: their fingerprints.

    `examples`: how many each task has.
    """

    batches: dict[str, Passes]
    data: dict[str, str]
    examples: dict[str, int]


class Passes:
    """Passes over a task's examples. The n-th call gives the n-th pass: its order is a function of seed, name and n."""

    def __init__(self, name: str, encoded: Encoded, collate: Collator, batch_size: int, seed: int) -> None:
        self._name, self._encoded, self._collate = name, encoded, collate
        self._batch_size, self._seed, self._count = batch_size, seed, 0

    def __call__(self) -> Iterator[dict[str, Tensor]]:
        order = epoch_order(len(self._encoded), self._seed, self._count, stream=f"priming: {self._name}")
        self._count += 1
        return self._run(order)

    def _run(self, order: list[int]) -> Iterator[dict[str, Tensor]]:
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
        encoded = _labelled(renamed(found.train, found.task, plan.task), plan.task, tokenizer, config.max_length)
        batches[task.name] = Passes(task.name, encoded, collate, config.batch_size, config.seed)
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


def _labelled(split: Split, task: Task, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenise a split, without sentences in which no sub-word has a tag: a batch of them would have no loss."""
    encoded = encode(split, task, tokenizer, max_length)
    if encoded.counts is None or 0 not in encoded.counts:
        return encoded
    kept = [i for i, count in enumerate(encoded.counts) if count]
    if not kept:
        raise DataError(f"{task.name}: the tokenizer makes no sub-word of any word to prime on")
    return encoded.select(kept)
