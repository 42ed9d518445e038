"""From texts to batches: tokenised once, padded per batch, in an order that is a pure function of seed and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subnetune.core.errors import DataError, UsageError
from subnetune.experiment.alignment import IGNORED, align
from subnetune.tasks.types import Split, Task

Example = dict[str, list[int]]  # what the tokenizer makes of one example: input_ids, attention_mask, ...


class Encoded(NamedTuple):
    """A tokenised split in file order. `labels` (examples,) are int64 class ids or float32 scores, None if unknown.

    Of a split of words, `labels` is None: each example has its own, one per sub-word (see `align`), and `places` says
    where each word begins.
    """

    examples: list[Example]
    labels: Tensor | None
    places: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def counts(self) -> list[int] | None:
        """How many labels each example has, where that is not one each: a loss is a mean over labels."""
        if self.places is None:
            return None
        return [sum(label != IGNORED for label in example.get("labels", ())) for example in self.examples]

    def select(self, positions: Sequence[int]) -> Encoded:
        """Return the examples at `positions`, in that order."""
        labels = None if self.labels is None else self.labels[list(positions)]
        places = None if self.places is None else [self.places[i] for i in positions]
        return Encoded([self.examples[i] for i in positions], labels, places)


class Micro(NamedTuple):
    """One forward and backward pass: which examples, and the weight of their mean loss in the optimizer step."""

    indices: list[int]
    weight: float


def encode(split: Split, task: Task, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenise every example of `split` once, pairs cut from the longer text first, at `max_length` tokens.

    Words with tags are aligned with their sub-words (`align`). Raises DataError where the split is empty, UsageError
    for a tokenizer that cannot be aligned.
    """
    if len(split) == 0:
        raise DataError(f"task {task.name!r}: the split {split.name!r} has no examples")
    if task.kind == "tokens":
        aligned, places = align(split, task, tokenizer, max_length)
        return Encoded(aligned, None, places)
    columns = tokenizer(split.texts, split.pairs, truncation=True, max_length=max_length, padding=False)
    examples = [{key: list(columns[key][i]) for key in columns} for i in range(len(split))]
    if split.labels is None:
        return Encoded(examples, None)
    kind = torch.int64 if task.kind == "classification" else torch.float32
    return Encoded(examples, torch.tensor(split.labels, dtype=kind))


class Collator:
    """Turn examples into one batch, padded to the longest of them on the tokenizer's side. Final, no state."""

    def __init__(self, tokenizer: Any, device: torch.device) -> None:
        if tokenizer.pad_token_id is None:
            raise DataError("the tokenizer has no padding token; set one (pad_token) in the model's tokenizer files")
        self._fill = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "labels": IGNORED,
        }
        self._left = tokenizer.padding_side == "left"
        self._device = device

    def __call__(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return {input_ids, attention_mask, ...: (batch, longest)} and `labels` where there are any.

        They are (batch,), or of words (batch, longest), -100 where there is none.
        """
        rows = [encoded.examples[i] for i in indices]
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, Tensor] = {}
        for key in rows[0]:
            padded = torch.full((len(rows), longest), self._fill.get(key, 0), dtype=torch.int64)  # (batch, longest)
            for target, row in zip(padded, rows, strict=True):
                values = torch.tensor(row[key], dtype=torch.int64)
                start = self.start(len(values), longest)
                target[start : start + len(values)] = values
            batch[key] = padded.to(self._device)
        if encoded.labels is not None:
            batch["labels"] = encoded.labels[list(indices)].to(self._device)
        return batch

    def start(self, length: int, longest: int) -> int:
        """Return where an example of `length` tokens begins in a batch that is padded to `longest`."""
        return longest - length if self._left else 0


def stream_seed(seed: int, stream: str, index: int = 0) -> int:
    """Return a 63-bit seed for one use of randomness, so that no two uses share a sequence."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def epoch_order(size: int, seed: int, epoch: int, stream: str = "order") -> list[int]:
    """Return a permutation of `size` examples that depends on the seed and the epoch alone (own generator)."""
    generator = torch.Generator().manual_seed(stream_seed(seed, stream, epoch))
    order: list[int] = torch.randperm(size, generator=generator).tolist()
    return order


def steps_per_epoch(size: int, batch_size: int, accumulate: int, world: int = 1) -> int:
    """Return how many optimizer steps one pass over `size` examples takes; the last one may be partial."""
    return -(-size // (batch_size * accumulate * world))


def plan_epoch(
    order: Sequence[int],
    batch_size: int,
    accumulate: int,
    rank: int = 0,
    world: int = 1,
    counts: Sequence[int] | None = None,
) -> list[list[Micro]]:
    """Return the micro-batches of this rank, one list per optimizer step of the epoch.

    A step takes `batch_size * accumulate * world` examples; the last one what is left. The weights make the step's
    gradient the mean over its examples, however they fall into micro-batches and ranks (DDP averages over ranks, so
    the weights of all ranks add up to `world`). `counts` says how many labels each example has where a batch's loss is
    the mean over labels: the step's gradient is then the mean over its labels. A rank without an example in the last
    step repeats one at weight 0.
    """

    def size(indices: Sequence[int]) -> int:
        return len(indices) if counts is None else sum(counts[i] for i in indices)

    steps = []
    wide = batch_size * world
    for start in range(0, len(order), wide * accumulate):
        group = order[start : start + wide * accumulate]
        micros = []
        for offset in range(0, len(group), wide):
            mine = list(group[offset + rank * batch_size : min(offset + wide, offset + (rank + 1) * batch_size)])
            micros.append(Micro(mine, size(mine) * world / size(group)) if mine else Micro([group[0]], 0.0))
        steps.append(micros)
    return steps


def check_spread(model: nn.Module, size: int, batch_size: int, accumulate: int, steps: int, world: int = 1) -> None:
    """Raise UsageError where a model with batch normalisation would get a training batch of one example.

    `size` examples an epoch, `steps` of the run: some rank's share of a step may be what is left over.
    """
    if not any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        return
    plans = (plan_epoch(range(size), batch_size, accumulate, rank, world) for rank in range(world))
    if any(len(micro.indices) == 1 for plan in plans for micros in plan[:steps] for micro in micros):
        raise UsageError(
            f"{size} training examples in batches of {batch_size} leave a batch of one, which has no spread for this "
            "model's batch normalisation: change --batch-size or --max-train by one or more"
        )


def eval_batches(encoded: Encoded, batch_size: int) -> list[list[int]]:
    """Return batches of example numbers, longest examples first: little padding, and the same batches in every run."""
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded.examples[i]["input_ids"]), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def scoring_batches(
    encoded: Encoded, collate: Collator, batch_size: int, seed: int
) -> Callable[[], Iterator[dict[str, Tensor]]]:
    """Return a callable that gives a fresh pass over the examples, each time in the same seeded order of its own.

    What scorers (Fisher, movement) read before step 0: not the order of any training epoch, and no global random state.
    """

    def batches() -> Iterator[dict[str, Tensor]]:
        order = epoch_order(len(encoded), seed, 0, stream="scoring")
        for start in range(0, len(order), batch_size):
            yield collate(encoded, order[start : start + batch_size])

    return batches
