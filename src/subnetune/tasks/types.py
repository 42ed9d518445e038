"""What a task is, and the examples that come with it: `Task`, `Split`, `TaskData`."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from subnetune.core.errors import DataError, UsageError

Kind = Literal["classification", "regression", "tokens"]
Labels = list[int] | list[float] | list[list[int]]


class DataWarning(UserWarning):
    """Something about the data that the reader of a result must know, such as examples shared by train and dev."""


@dataclass(frozen=True)
class Task:
    """A task without its data.

    `kind`: one class or one score per example, or one tag per word ("tokens"). `labels` are the class names (the tags)
    by id, () for regression; the first of `metrics` is the headline; `pair` says that an example is two texts.
    `entailment_or_not`: predictions of a three-way model (entailment, neutral, contradiction) are read as entailment or
    not.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    pair: bool
    entailment_or_not: bool = False

    @property
    def outputs(self) -> int:
        """How many numbers a model predicts per example or word: the classes, or 1 for regression."""
        return 1 if self.kind == "regression" else len(self.labels)


@dataclass(frozen=True)
class Split:
    """Examples in the order of their file.

    `pairs` holds the second texts, None for a task of single texts. `labels` are class ids or scores, None where the
    split has none (a test set). `ids` are the examples' positions in the split they were read into, kept by `take` and
    `holdout`. `dropped` counts the items left out for want of a gold label. `groups` names a subset per example (the
    heuristics of HANS). `words` are each example's words where each word has a label: `labels` are then lists of tag
    ids, one per word, and `texts` the words joined by spaces.
    """

    texts: list[str]
    pairs: list[str] | None = None
    labels: Labels | None = None
    ids: list[int] = field(default_factory=list)
    name: str = ""
    dropped: int = 0
    groups: list[str] | None = None
    words: list[list[str]] | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            object.__setattr__(self, "ids", list(range(len(self.texts))))
        for column in ("pairs", "labels", "ids", "groups", "words"):
            values = getattr(self, column)
            if values is not None and len(values) != len(self.texts):
                raise DataError(f"split {self.name!r}: {len(self.texts)} texts but {len(values)} {column}")
        if self.words is not None and self.labels is not None:
            for i, (words, tags) in enumerate(zip(self.words, self.labels, strict=True)):
                if not isinstance(tags, list) or len(tags) != len(words):
                    raise DataError(f"split {self.name!r}, example {i}: wanted a tag for each of {len(words)} words")

    @property
    def tags(self) -> list[list[int]] | None:
        """The labels of a split of words: tag ids per example. None where there are none."""
        if self.words is None or self.labels is None:
            return None
        return [label for label in self.labels if isinstance(label, list)]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, positions: Sequence[int]) -> Split:
        """Return the examples at `positions` (of this split), in that order."""
        return replace(
            self,
            texts=[self.texts[i] for i in positions],
            pairs=None if self.pairs is None else [self.pairs[i] for i in positions],
            labels=None if self.labels is None else _at(self.labels, positions),
            ids=[self.ids[i] for i in positions],
            groups=None if self.groups is None else [self.groups[i] for i in positions],
            words=None if self.words is None else [self.words[i] for i in positions],
        )

    def take(self, n: int, seed: int, stratified: bool | None = None) -> Split:
        """Return at most `n` examples in file order, the same ones for the same seed on every machine.

        The draw is a keyed hash of seed and id: it uses no random state. Without `stratified`, classes keep their
        shares where labels are class ids (each share rounded, the sizes adding up to `n`). A split of `n` or fewer
        examples is returned as it is. UsageError if `n` is no positive integer.
        """
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise UsageError(f"take: n must be an integer >= 1, got {n!r}")
        return self if n >= len(self) else self.select(self._draw(n, seed, stratified))

    def holdout(self, size: float, seed: int, stratified: bool | None = None) -> tuple[Split, Split]:
        """Return (rest, held): `size` examples (int), or that fraction of them (float in (0, 1)), are held out.

        Drawn as in `take`. UsageError if either part would be empty.
        """
        if isinstance(size, bool) or not isinstance(size, int | float):
            raise UsageError(f"holdout: size must be a number of examples or a fraction, got {size!r}")
        if isinstance(size, float) and not 0.0 < size < 1.0:
            raise UsageError(f"holdout: a fraction must lie in (0, 1), got {size!r}")
        n = size if isinstance(size, int) else round(size * len(self))
        if not 1 <= n < len(self):
            raise UsageError(
                f"holdout: cannot hold out {n} of {len(self)} examples of {self.name!r}; both parts need one"
            )
        held = self._draw(n, seed, stratified)
        chosen = set(held)
        rest = [i for i in range(len(self)) if i not in chosen]
        return self.select(rest), replace(self.select(held), name=f"{self.name}_held")

    def _draw(self, n: int, seed: int, stratified: bool | None) -> list[int]:
        """Return `n` positions in ascending order."""
        classes = self.labels is not None and all(isinstance(label, int) for label in self.labels)
        if stratified and not classes:
            raise UsageError(f"cannot stratify {self.name!r}: its labels are not class ids; pass stratified=False")
        order = sorted(range(len(self)), key=lambda i: hashlib.sha256(f"{seed}:{self.ids[i]}".encode()).digest())
        if stratified is False or not classes or self.labels is None:
            return sorted(order[:n])
        pools: dict[int, list[int]] = defaultdict(list)
        for i in order:
            label = self.labels[i]
            assert isinstance(label, int)  # what `classes` says
            pools[label].append(i)
        quota = {label: n * len(pool) // len(self) for label, pool in pools.items()}
        # The places left by rounding down go to the largest remainders; ties to the smaller label.
        by_remainder = sorted(pools, key=lambda label: (-(n * len(pools[label]) % len(self)), label))
        for label in by_remainder[: n - sum(quota.values())]:
            quota[label] += 1
        return sorted(i for label, pool in pools.items() for i in pool[: quota[label]])

    def examples(self) -> list[tuple[str, str | None]]:
        """Return (text, second text or None) per example."""
        if self.pairs is None:
            return [(text, None) for text in self.texts]
        return list(zip(self.texts, self.pairs, strict=True))


def _at(labels: Labels, positions: Sequence[int]) -> Labels:
    return [labels[i] for i in positions]  # type: ignore[return-value]  # of one kind, as `labels` are


@dataclass(frozen=True)
class TaskData:
    """A task with its examples. `train` is empty where it was not asked for, or where the task has none (HANS).

    `evaluation` maps a split's name to it: {"dev": ...}; MNLI has "dev_matched" and "dev_mismatched", the demo "dev"
    and "ood". The first one is the one that selection and headline refer to.
    """

    task: Task
    train: Split
    evaluation: dict[str, Split]

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of the task's definition and every example and label."""
        digest = hashlib.sha256()
        head = [self.task.name, self.task.kind, self.task.labels, self.task.pair]
        digest.update(json.dumps(head).encode())
        for name, split in [("train", self.train), *self.evaluation.items()]:
            digest.update(json.dumps([name, len(split)]).encode())
            labels = split.labels if split.labels is not None else [None] * len(split)
            texts: Sequence[str | list[str]] = split.words if split.words is not None else split.texts
            pairs = split.pairs if split.pairs is not None else [None] * len(split)
            for text, pair, label in zip(texts, pairs, labels, strict=True):
                digest.update(json.dumps([text, pair, label]).encode())
        return digest.hexdigest()

    def overlap(self) -> dict[str, int]:
        """Return per evaluation split how many of its examples (texts, whatever the label) are in train too."""
        seen = set(self.train.examples())
        return {name: sum(e in seen for e in split.examples()) for name, split in self.evaluation.items()}

    def warn_about_overlap(self) -> TaskData:
        """Warn (DataWarning) of evaluation examples that are in train too; return self."""
        for name, count in self.overlap().items():
            if count:
                warnings.warn(
                    f"{self.task.name}: {count} of {len(self.evaluation[name])} examples of {name!r} are also in train",
                    DataWarning,
                    stacklevel=3,
                )
        return self
