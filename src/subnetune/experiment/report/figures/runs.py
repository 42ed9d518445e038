"""What several plots ask of rows: methods in order, the groups of a task, scores by seed, the words of a train size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from subnetune.experiment.comparison import Block, Entry
from subnetune.experiment.grid.rows import Row


class Point(NamedTuple):
    """A run's score. `low` says that it learned nothing: its score is at or below the majority level."""

    seed: int
    value: float
    low: bool = False


def methods_of(rows: Iterable[Row]) -> dict[str, int]:
    """Return the number of each method, in the order of the rows: its colour, marker and dash in every plot."""
    return {method: number for number, method in enumerate(dict.fromkeys(row.group.method for row in rows))}


def numbers_of(block: Block, rows: Iterable[Row]) -> Mapping[str, int]:
    """Return the numbers of a block's methods, those that no row has behind the others."""
    found = methods_of(rows)
    for entry in block.entries:
        found.setdefault(entry.method, len(found))
    return found


def by_task(rows: Iterable[Row]) -> dict[tuple[str, int | None], list[Row]]:
    """Return the rows of each task and train size."""
    found: dict[tuple[str, int | None], list[Row]] = {}
    for row in rows:
        found.setdefault((row.group.task, row.group.train_size), []).append(row)
    return found


def by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return the rows of each method."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.group.method, []).append(row)
    return found


def title_of(task: str, size: int | None) -> str:
    """Return a task at a train size in words, as `Block.title` has it."""
    return f"{task}, {'all' if size is None else size} training examples"


def scores_of(entry: Entry) -> list[Point]:
    """Return the scores that an entry's mean is over, by seed."""
    return [Point(seed, value, seed in entry.low) for seed, value in entry.values.items()]


def listed(names: Sequence[str], most: int = 6) -> str:
    """Return `a, b and c`; of many the first ones, and how many more."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part) if names else "none"
