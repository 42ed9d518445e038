"""The score of always saying the same: the level that a run must pass to have learned anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from subnetune.tasks.metrics import compute_metrics
from subnetune.tasks.types import Split, TaskData


def majority_scores(data: TaskData) -> dict[str, dict[str, float]]:
    """Return the task's metrics, per evaluation split, of one answer for all of its examples.

    For classes the answer is the most frequent training class, of equals the one with the smallest id; for words the
    most frequent tag, for all of them (no entity, as a rule); for scores it is the mean training score (whose
    correlations are 0.0 by the definition in `tasks.metrics`). Where there is no training split (HANS), each evaluation
    split lends its own majority or mean. Splits without labels are left out.
    """
    found = {}
    for name, split in data.evaluation.items():
        if split.labels is None:
            continue
        source = data.train if data.train.labels else split
        if split.tags is not None:
            tag = _most_frequent([tag for row in source.tags or () for tag in row])
            found[name] = compute_metrics(data.task, [[tag] * len(row) for row in split.tags], split.tags)
            continue
        answer = _mean(source) if data.task.kind == "regression" else _most_frequent(source.labels or [])
        found[name] = compute_metrics(data.task, np.full(len(split), answer), split.labels, split.groups)
    return found


def _most_frequent(labels: Iterable[Any]) -> int:
    counts = Counter(labels)
    return int(min(counts, key=lambda label: (-counts[label], label)))


def _mean(split: Split) -> float:
    return float(np.mean(np.asarray(split.labels or [0.0])))
