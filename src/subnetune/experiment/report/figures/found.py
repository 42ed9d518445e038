"""What the analysis of runs left in their folders, by task and method, and how it is averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from subnetune.core.errors import CheckpointError
from subnetune.experiment.grid.folder import GridFolder
from subnetune.experiment.grid.rows import Row

Lines = dict[str, dict[str, float]]  # method -> name of a layer or role -> value


def read_found(folder: GridFolder, row: Row) -> dict[str, Any]:
    """Return the parts of a finished run's analysis that are there; none of damaged ones."""
    from subnetune.experiment.analysis import read_analysis

    if row.state != "done" or not row.name:
        return {}
    try:
        return read_analysis(folder.cell(row.name))
    except CheckpointError:
        return {}


def number(value: object) -> float | None:
    """Return a finite number as a float, and None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def ratio(row: Mapping[str, Any], upper: str, lower: str) -> float | None:
    """Return `row[upper] / row[lower]`; None where one is not known or the lower is 0."""
    above, below = number(row.get(upper)), number(row.get(lower))
    return None if above is None or not below else above / below


def rows_in(found: Mapping[str, Any], part: str, name: str) -> list[Mapping[str, Any]]:
    """Return the rows of a table in an analysis, those that have a name."""
    table = found.get(part, {}).get(name)
    return [row for row in table if isinstance(row, dict) and "name" in row] if isinstance(table, list) else []


def averaged(runs: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    """Return the mean over runs of each name's values, without those that are not known."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for name, value in run.items():
            values.setdefault(name, [])
            if value is not None:
                values[name].append(value)
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def in_order(names: Iterable[str]) -> list[str]:
    """Return layers, each once: embeddings, layers by number, then the others as they come."""
    unique = list(dict.fromkeys(names))

    def place(name: str) -> tuple[int, int]:
        tail = name.removeprefix("layer ")
        if tail.isdigit():
            return (1, int(tail))
        return (0, 0) if name.startswith("embedding") else (2, unique.index(name))

    return sorted(unique, key=place)


def layer_tick(name: str) -> str:
    """Return a layer's name as short as a tick label must be."""
    tail = name.removeprefix("layer ")
    return tail if tail.isdigit() else {"embeddings": "emb.", "adapter": "adapt.", "other": "oth."}.get(name, name[:7])


def thinned(ticks: Sequence[str], most: int = 16) -> list[str]:
    """Return the labels with some of the numbered ones left out where there are more than `most`."""
    step = -(-len(ticks) // most)
    return [tick if not tick.isdigit() or int(tick) % step == 0 else "" for tick in ticks]
