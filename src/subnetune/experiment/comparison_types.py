"""What a comparison consists of: entries in blocks, a block a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from subnetune.experiment.statistics import Difference, Summary


@dataclass(frozen=True)
class Entry:
    """A method on one task (or on the mean of tasks) at one train size.

    On the mean of tasks a seed counts as one: it has a value where every task has one, failed where a task's run did.
    """

    method: str
    summary: Summary
    difference: Difference | None  # to the baseline; None for the baseline itself
    expected: int  # cells that the grid has here
    missing: int  # of them not finished yet, finished without this set, or measured on another part of it
    trained: int  # entries that train
    total: int
    delta_bytes: float | None  # mean over seeds
    seconds: float | None  # median: a machine that stood still for a while is no cost of the method; of tasks the mean
    peak_memory_bytes: float | None  # mean over the runs where it is known; None of tasks where one has none
    settings: dict[str, Any] = field(default_factory=dict)  # what all its runs share, by the names of rows.SETTINGS
    values: Mapping[int, float] = field(default_factory=dict)  # by seed: what the mean is over
    low: frozenset[int] = frozenset()  # the seeds of them that learned nothing


@dataclass(frozen=True)
class Block:
    """One table: a task at a train size, or a transfer set, a probe, the mean of all tasks. Scores are fractions.

    `kind` is "task", "transfer", "probe" or "mean"; `majority` is the score of always saying the same, where known.
    `task` is unique among the blocks of a kind and train size: "rte", "hans (trained on mnli)", "mean of 4 tasks".
    """

    kind: str
    task: str
    train_size: int | None
    metric: str
    majority: float | None
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """The table's name in words."""
        return f"{self.task}, {'all' if self.train_size is None else self.train_size} training examples"


@dataclass(frozen=True)
class Comparison:
    """All that statistics say about a grid. `verdicts` are sentences, the most general first."""

    baseline: str
    blocks: tuple[Block, ...]
    verdicts: tuple[str, ...]
    cells: dict[str, int]  # how many are "done", "failed", "missing"
