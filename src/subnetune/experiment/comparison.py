"""What a grid says: per task and train size each method's scores, its difference to the baseline, and verdicts in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from subnetune.experiment.grid.rows import Row
from subnetune.experiment.statistics import Difference, Summary


@dataclass(frozen=True)
class Entry:
    """A method on one task (or on the mean of tasks) at one train size."""

    method: str
    summary: Summary
    difference: Difference | None  # to the baseline; None for the baseline itself
    expected: int  # cells that the grid has here
    missing: int  # of them not finished yet
    trained: int  # entries that train
    total: int
    delta_bytes: float | None  # means over seeds
    seconds: float | None
    peak_memory_bytes: float | None
    settings: dict[str, Any] = field(default_factory=dict)  # what all its runs share, by the names of rows.SETTINGS


@dataclass(frozen=True)
class Block:
    """One table: a task at a train size, or a transfer set, a probe, the mean of all tasks. Scores are fractions.

    `kind` is "task", "transfer", "probe" or "mean"; `majority` is the score of always saying the same, where known.
    """

    kind: str
    task: str
    train_size: int | None
    metric: str
    majority: float | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Comparison:
    """All that statistics say about a grid. `verdicts` are sentences, the most general first."""

    baseline: str
    blocks: tuple[Block, ...]
    verdicts: tuple[str, ...]
    cells: dict[str, int]  # how many are "done", "failed", "missing"


def compare_rows(rows: Sequence[Row], baseline: str) -> Comparison:
    """Return the comparison of every method with `baseline`, paired by seed; Holm over each block's methods."""
    raise NotImplementedError


def table_text(comparison: Comparison) -> str:
    """Return the tables and verdicts as plain text: no times, no memory, the same bytes for the same scores."""
    raise NotImplementedError


def statistics_csv(comparison: Comparison) -> str:
    """Return `statistics.csv`: a row per block and method."""
    raise NotImplementedError
