"""Whether a model's classes are those of a task, and how its predictions read as the task's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from subnetune.core.errors import NumericError, UsageError
from subnetune.tasks.conll import OUTSIDE
from subnetune.tasks.label_maps import inference_reading, is_inference
from subnetune.tasks.types import Task


@dataclass(frozen=True)
class Fit:
    """A model with the classes `classes` (() for scores) on `task`."""

    classes: tuple[str, ...]
    task: Task

    @staticmethod
    def of(classes: tuple[str, ...], task: Task) -> Fit:
        """Return the fit of a classifier and a task of classes, whose names must agree, and their order too.

        A task of entailment or not also takes the classes of any NLI task whose first is entailment: the others, one
        or two, all mean that it is not. A model that was never told its classes (LABEL_0, LABEL_1, ...) is taken in
        the task's order, which is said on stderr. Tags of words are matched by name where the entity types of one are
        among those of the other (see `reading`), which is said too. Raises UsageError, naming both lists, for all else.
        """
        if classes == task.labels or (task.entailment_or_not and is_inference(classes)):
            return Fit(classes, task)
        if classes == tuple(f"LABEL_{i}" for i in range(len(task.labels))):
            wanted = ", ".join(task.labels)
            print(f"the delta's classes have no names ({', '.join(classes)}): read as {wanted}", file=sys.stderr)
            return Fit(task.labels, task)
        if task.kind == "tokens" and tags_agree(classes, task.labels):
            if set(classes) != set(task.labels):
                print(_unlike(classes, task), file=sys.stderr)
            return Fit(classes, task)
        raise UsageError(
            f"the delta predicts {len(classes)} classes ({', '.join(classes) or 'no names'}), task {task.name!r} has "
            f"{len(task.labels)}: {', '.join(task.labels)}; is it another task's delta?"
        )

    @staticmethod
    def across(model: nn.Module, task: Task) -> Fit:
        """Return the fit of a tuned model and a task that it was not made for, by the published label maps.

        More than `of` takes: classes of inference also read as those of another question (`tasks.label_maps`). Less: a
        model that was never told its classes means nothing elsewhere. Raises UsageError, in a few words, for what no
        map covers.
        """
        config: Any = model.config
        scores = getattr(config, "problem_type", None) == "regression"
        classes = () if scores else tuple(config.id2label[i] for i in range(config.num_labels))
        if scores != (task.kind == "regression"):
            raise UsageError(f"the model predicts {'scores' if scores else 'classes'}, {task.name} asks for the other")
        if tags_words(type(model).__name__) != (task.kind == "tokens"):
            labels, asks = ("texts", "words") if task.kind == "tokens" else ("words", "texts")
            raise UsageError(f"the model labels {labels}, {task.name} asks for labels of {asks}")
        if task.kind == "tokens":
            mapped = tags_agree(classes, task.labels)
        else:
            mapped = is_inference(classes) and inference_reading(task) is not None
        if classes == task.labels or mapped:
            return Fit(classes, task)
        raise UsageError(
            f"no published map from the model's classes ({', '.join(classes)}) to {', '.join(task.labels)}"
        )

    @property
    def reading(self) -> tuple[int, ...]:
        """Which of the task's classes each output of the model is read as, by id; () for scores.

        A tag that the task does not have is read as O: it does not annotate that type. A type that the model does not
        have is never said, and its spans count as missed.
        """
        if self.task.kind == "tokens":
            named = [label if label in self.task.labels else OUTSIDE for label in self.classes]
            return tuple(map(self.task.labels.index, named))
        meant = None if self.classes == self.task.labels else inference_reading(self.task)
        if meant is None:
            return tuple(range(len(self.classes)))
        entailed, otherwise = map(self.task.labels.index, meant)
        return (entailed, *(otherwise for _ in self.classes[1:]))

    @property
    def columns(self) -> tuple[str, ...]:
        """What the model's outputs are called: the task's classes where they stand for them in order, else its own."""
        return self.task.labels if self.reading == tuple(range(len(self.task.labels))) else self.classes

    def label(self, values: Tensor) -> str:
        """Return the task's label for the outputs of one example, (outputs,), as the metrics count it."""
        return self.task.labels[self.reading[int(values.argmax())]]

    def predictions(self, logits: Tensor) -> NDArray[Any]:
        """Return what `compute_metrics` takes: scores as they are, else the ids of the task's classes (examples,).

        `logits`: (examples, outputs). Raises NumericError for values that are not finite.
        """
        values: NDArray[Any] = logits.numpy()
        if not self.classes:
            return values
        if not np.isfinite(values).all():
            raise NumericError(f"{self.task.name}: {int((~np.isfinite(values)).sum())} logits are not finite numbers")
        ids: NDArray[Any] = np.asarray(self.reading, dtype=np.int64)[values.argmax(axis=1)]
        return ids


def tags_words(task_class: str) -> bool:
    """Say whether a model class of transformers labels each word instead of the text."""
    return "TokenClassification" in task_class


def tags_agree(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Say whether two tag sets have O, and the entity types of one are all among those of the other."""
    if OUTSIDE not in one or OUTSIDE not in other:
        return False
    first, second = ({tag[2:] for tag in tags if tag[:2] in ("B-", "I-")} for tags in (one, other))
    return bool(first and second) and (first <= second or second <= first)


def _unlike(classes: tuple[str, ...], task: Task) -> str:
    more = [tag for tag in classes if tag not in task.labels]
    if more:
        return f"{task.name} does not annotate what the model tags {', '.join(more)}: read as {OUTSIDE}"
    lacking = [tag for tag in task.labels if tag not in classes]
    return f"the model has no tags {', '.join(lacking)}, which {task.name} annotates: they count as missed"
