"""What a run is made of before its recipe: examples, tokenizer, batches for scoring, and the model with its head.

`train` and `score` both build on these, so that the same options, seed and examples give the same selection.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subnetune.core.errors import DataError
from subnetune.experiment.config import RunConfig
from subnetune.experiment.data import Collator, Encoded, encode, scoring_batches
from subnetune.experiment.environment import seed_everything
from subnetune.experiment.session import load_data, load_model, load_tokenizer
from subnetune.tasks.types import Task, TaskData


class Examples(NamedTuple):
    """The data of a run, its tokenizer, the tokenised training examples, and `batches` that scorers read them in."""

    data: TaskData
    tokenizer: Any
    train: Encoded
    collate: Collator
    batches: Callable[[], Iterator[dict[str, Tensor]]]


def load_examples(
    config: RunConfig, batch_size: int, device: torch.device, splits: Sequence[str] = ("train", "dev")
) -> Examples:
    """Return the examples of `splits`, train among them. Raises UsageError and DataError as `load_data` does.

    Of tagged words, training examples without one sub-word that has a tag are left out, which is said on stderr: a
    batch of nothing else would have no loss.
    """
    data = load_data(config, splits)
    tokenizer = load_tokenizer(config)
    train = encode(data.train, data.task, tokenizer, config.max_length)
    train = with_loss(train, data.task.name, lambda line: print(f"train: {line}", file=sys.stderr))
    collate = Collator(tokenizer, device)
    return Examples(data, tokenizer, train, collate, scoring_batches(train, collate, batch_size, config.seed))


def with_loss(encoded: Encoded, name: str, say: Callable[[str], None]) -> Encoded:
    """Return the training examples of a task that have a loss, and say how many have none: words without a sub-word.

    Raises DataError where none is left.
    """
    if encoded.counts is None or 0 not in encoded.counts:
        return encoded
    kept = [i for i, count in enumerate(encoded.counts) if count]
    if not kept:
        raise DataError(f"{name}: the tokenizer makes no sub-word of any word to train on")
    say(f"{len(encoded) - len(kept)} examples have no word that the tokenizer knows: left out")
    return encoded.select(kept)


def load_seeded_model(config: RunConfig, task: Task, device: torch.device) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the model in training mode on `device`, and the names of what loading initialised newly.

    A new head is drawn from a seed of its own, whatever was drawn before.
    """
    seed_everything(config.seed, "head")
    model, new = load_model(config, task)
    return model.to(device).train(), new
