"""Rows of a grid made by hand: what a grid's folder would give, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subnetune.experiment.grid.cells import Group
from subnetune.experiment.grid.folder import CellResult
from subnetune.experiment.grid.rows import Row


def made_row(
    task: str,
    method: str,
    seed: int,
    value: float | None,
    *,
    size: int | None = 500,
    majority: float | None = None,
    metric: str = "accuracy",
    setting: Mapping[str, Any] | None = None,
    **more: Any,
) -> Row:
    """Return a finished cell; `value` None: one that is missing, nan: one that failed."""
    group, setting = Group(task, method, size), setting or {}
    if value is None:
        return Row(group, seed, "", None, setting)
    name = f"{task}-{method}-{seed}"
    if value != value:
        return Row(group, seed, name, CellResult("failed", error={"type": "NumericError", "message": "nan"}), setting)
    levels = {} if majority is None else {"dev": {metric: majority}}
    values: dict[str, Any] = {
        "evaluation": {"dev": {metric: value}},
        "trained": 10,
        "total": 100,
        "delta_bytes": 40,
        "seconds": 1.5,
        "peak_memory_bytes": 7,
    }
    result = CellResult("done", metric=metric, value=value, majority=levels, **values | more)
    return Row(group, seed, name, result, setting)


def made_rows(task: str, scores: Mapping[str, Sequence[float | None]], **more: Any) -> list[Row]:
    """Return a row per method and score; the seeds are 0, 1, 2, ... in the order of the scores."""
    return [
        made_row(task, method, seed, value, **more)
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]
