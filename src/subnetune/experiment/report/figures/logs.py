"""The log of a run as numbers, and few enough of them to draw."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


class Log(NamedTuple):
    """Training losses by step, and scores by "split metric" and step, both sorted by step."""

    losses: dict[int, float]
    scores: dict[str, dict[int, float]]


def read_log(path: Path) -> Log:
    """Return what `log.jsonl` holds; a line that was cut short or is no entry is left out, no file is an empty log."""
    losses: dict[int, float] = {}
    scores: dict[str, dict[int, float]] = {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            continue
        if _is_number(entry.get("loss")):
            losses[entry["step"]] = float(entry["loss"])
        splits = entry.get("evaluation")
        for split, metrics in splits.items() if isinstance(splits, dict) else ():
            for metric, value in metrics.items() if isinstance(metrics, dict) else ():
                if _is_number(value):
                    scores.setdefault(f"{split} {metric}", {})[entry["step"]] = float(value)
    return Log(dict(sorted(losses.items())), {name: dict(sorted(found.items())) for name, found in scores.items()})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def binned(losses: dict[int, float], last: int, bins: int) -> Array:
    """Return the mean loss of each of `bins` equal parts of the steps 1 to `last`; NaN where a part has none."""
    steps = np.fromiter(losses, dtype=np.int64, count=len(losses))
    values = np.fromiter(losses.values(), dtype=np.float64, count=len(losses))
    index = np.clip((steps - 1) * bins // max(1, last), 0, bins - 1)
    sums = np.bincount(index, weights=values, minlength=bins)
    counts = np.bincount(index, minlength=bins)
    means: Array = np.divide(sums, counts, out=np.full(bins, np.nan), where=counts > 0)
    return means


def smooth(values: Array, reach: int) -> Array:
    """Return the mean of each value and up to `reach` on both sides of it, as many on one as on the other, so that the
    ends stay where they are. NaN counts for nothing, and stays."""
    found = np.full(len(values), np.nan)
    for index in range(len(values)):
        side = min(reach, index, len(values) - 1 - index)
        window = values[index - side : index + side + 1]
        if not np.isnan(values[index]):
            found[index] = window[~np.isnan(window)].mean()
    return found


def median(lines: list[Array]) -> Array:
    """Return the median of several lines at each place, over those that have a value there."""
    stack = np.vstack(lines)  # (lines, places)
    found = np.full(stack.shape[1], np.nan)
    for place in np.flatnonzero(~np.isnan(stack).all(axis=0)):
        column = stack[:, place]
        found[place] = np.median(column[~np.isnan(column)])
    return found
