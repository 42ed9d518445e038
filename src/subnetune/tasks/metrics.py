"""Official metrics of a task from a model's predictions. All are fractions, 1.0 is best.

`matthews_correlation`, `pearson` and `spearman` of predictions (or labels) that are all equal are undefined; they are
0.0 here, so that a failed run counts as "no relation" and never as nan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from subnetune.core.errors import DataError, NumericError, UsageError
from subnetune.tasks.spans import Ids, span_scores
from subnetune.tasks.types import Task

Vector: TypeAlias = NDArray[Any]


def compute_metrics(
    task: Task, predictions: ArrayLike | Ids, labels: ArrayLike | Ids, groups: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the task's metrics by name, the headline first.

    `predictions`: logits (n, classes), or class ids (n,) of an integer type; for regression scores (n,) or (n, 1).
    `labels`: (n,). For a task with `entailment_or_not`, the (n, 3) logits or ids of a model with the classes
    entailment, neutral, contradiction are counted as entailment or not. With `groups` (n names) the accuracy in each
    group follows as `accuracy_<group>`. For a task of tags both are sequences of tag ids per example, a tag per word,
    and the metrics are those of `span_scores`. DataError if shapes do not fit, NumericError if a prediction is not
    finite.
    """
    if task.kind == "tokens":
        return span_scores(task, _sequences(task, predictions), _sequences(task, labels))
    truth = np.asarray(labels)
    if truth.ndim != 1 or not len(truth):
        raise DataError(f"{task.name}: metrics need labels of shape (n,) with n >= 1, got {truth.shape}")
    values = np.asarray(predictions)
    if values.shape[:1] != truth.shape:
        raise DataError(f"{task.name}: {values.shape[:1]} predictions for {len(truth)} labels")
    if not np.isfinite(values).all():
        raise NumericError(f"{task.name}: {int((~np.isfinite(values)).sum())} predicted values are not finite numbers")
    guess = _scores(task, values) if task.kind == "regression" else _class_ids(task, values)
    if unknown := [name for name in task.metrics if name not in METRICS]:
        raise UsageError(f"{task.name}: no metric {unknown[0]!r}; there are {', '.join(METRICS)}")
    found = {name: METRICS[name](guess, truth) for name in task.metrics}
    if groups is not None:
        if len(groups) != len(truth):
            raise DataError(f"{task.name}: {len(groups)} groups for {len(truth)} labels")
        member = np.asarray(groups)
        for group in sorted(set(groups)):
            found[f"accuracy_{group}"] = _accuracy(guess[member == group], truth[member == group])
    return found


def _sequences(task: Task, values: Any) -> list[list[int]]:
    try:
        return [[int(value) for value in row] for row in values]
    except TypeError:
        raise DataError(f"{task.name}: metrics need a sequence of tag ids per example, got {type(values)}") from None


def _class_ids(task: Task, values: Vector) -> Vector:
    """Return predicted class ids (n,)."""
    three_way = task.entailment_or_not and len(task.labels) == 2
    if values.ndim == 2:
        three_way = three_way and values.shape[1] == 3
        if values.shape[1] != len(task.labels) and not three_way:
            raise DataError(f"{task.name}: logits for {values.shape[1]} classes, the task has {len(task.labels)}")
        ids: Vector = values.argmax(axis=1)
    elif values.ndim == 1 and np.issubdtype(values.dtype, np.integer):
        ids = values
        limit = 3 if three_way else len(task.labels)
        if ids.min() < 0 or ids.max() >= limit:
            raise DataError(f"{task.name}: predicted class ids must lie in 0..{limit - 1}")
    else:
        raise DataError(
            f"{task.name}: predictions must be logits (n, {len(task.labels)}) or integer class ids (n,), "
            f"got {values.dtype} of shape {values.shape}"
        )
    return np.minimum(ids, 1) if three_way else ids  # neutral and contradiction both mean: not entailed


def _scores(task: Task, values: Vector) -> Vector:
    """Return predicted scores (n,) in double precision."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{task.name}: predictions must be scores (n,) or (n, 1), got shape {values.shape}")
    return values.astype(np.float64)


def _accuracy(guess: Vector, truth: Vector) -> float:
    return float((guess == truth).mean())


def _f1(guess: Vector, truth: Vector) -> float:
    """F1 of class 1; 0.0 where class 1 is neither predicted nor true."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, guess, pos_label=1, average="binary", zero_division=0.0))


def _f1_macro(guess: Vector, truth: Vector) -> float:
    """Plain mean of the classes' F1, over the classes that are predicted or true."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, guess, average="macro", zero_division=0.0))


def _matthews(guess: Vector, truth: Vector) -> float:
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _constant(guess) or _constant(truth) else float(matthews_corrcoef(truth, guess))


def _pearson(guess: Vector, truth: Vector) -> float:
    from scipy.stats import pearsonr

    return 0.0 if _constant(guess) or _constant(truth) else _defined(pearsonr(guess, truth).statistic)


def _spearman(guess: Vector, truth: Vector) -> float:
    """Pearson correlation of the ranks; equal values share their mean rank."""
    from scipy.stats import spearmanr

    return 0.0 if _constant(guess) or _constant(truth) else _defined(spearmanr(guess, truth).statistic)


def _pearson_spearman(guess: Vector, truth: Vector) -> float:
    return (_pearson(guess, truth) + _spearman(guess, truth)) / 2


def _constant(values: Vector) -> bool:
    return bool((values == values[0]).all())


def _defined(value: float) -> float:
    """Return 0.0 for nan: scores that differ by so little that their variance is 0 in double precision."""
    return float(value) if np.isfinite(value) else 0.0


METRICS: dict[str, Callable[[Vector, Vector], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "f1_macro": _f1_macro,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
}
