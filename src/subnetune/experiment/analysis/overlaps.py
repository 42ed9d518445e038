"""Which entries the runs of a grid chose: how alike the children of different seeds, tasks and methods are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from subnetune.experiment.analysis.jaccard import MaskFile, pairwise

if TYPE_CHECKING:
    from subnetune.experiment.grid.folder import GridFolder
    from subnetune.experiment.grid.rows import Row


def overlaps(folder: GridFolder, rows: Sequence[Row]) -> dict[str, Any]:
    """Return how much the static masks of finished runs overlap: `{"groups": [group], "without": [method], "why"}`.

    A group compares runs that differ in one thing, `between`: "seeds" (of one task and method), "tasks" (of one
    method and seed), or "methods" (of one task and seed); the seed is the first that several of them have. It has
    "task", "method", "train_size" and "seed", null for what differs; the `labels` of its runs in the order of `rows`;
    their `density` (selected / entries of the mask's tensors); the square tables `jaccard` and `chance` (see
    `Overlap`), on the tensors that two masks share, null where they share none. `without` are methods that left no
    mask: everything trains, or the mask changes. `why` says why there is no group, or is null.

    Reads the masks' packed bits, one tensor at a time. Raises CheckpointError for a damaged mask file.
    """
    done = [row for row in rows if row.state == "done" and row.name]
    found = [row for row in done if folder.run(row.name).mask.is_file()]
    groups = [_group(folder, *parts) for parts in (*_seeds(found), *_tasks(found), *_methods(found))]
    having = {row.group.method for row in found}
    without = list(dict.fromkeys(row.group.method for row in done if row.group.method not in having))
    why = None
    if not groups:
        why = "fewer than two finished runs with a static mask have something in common"
    return {"groups": groups, "without": without, "why": why}


_Parts = tuple[str, list["Row"]]


def _seeds(rows: Iterable[Row]) -> Iterator[_Parts]:
    yield from (("seeds", runs) for runs in _together(rows, "task", "method", "train_size") if len(runs) > 1)


def _tasks(rows: Iterable[Row]) -> Iterator[_Parts]:
    yield from _first_seed("tasks", _together(rows, "method", "train_size"))


def _methods(rows: Iterable[Row]) -> Iterator[_Parts]:
    yield from _first_seed("methods", _together(rows, "task", "train_size"))


def _together(rows: Iterable[Row], *names: str) -> list[list[Row]]:
    """Return the rows that agree in `names`, in order."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row.group, name) for name in names), []).append(row)
    return list(found.values())


def _first_seed(between: str, groups: Iterable[list[Row]]) -> Iterator[_Parts]:
    for runs in groups:
        by_seed: dict[int, list[Row]] = {}
        for row in runs:
            by_seed.setdefault(row.seed, []).append(row)
        several = [alike for alike in by_seed.values() if len(alike) > 1]
        if several:
            yield between, several[0]


def _group(folder: GridFolder, between: str, runs: list[Row]) -> dict[str, Any]:
    names = {"seeds": "seed", "tasks": "task", "methods": "method"}
    shared = {**runs[0].group._asdict(), "seed": runs[0].seed}
    label = names[between]
    square = pairwise([MaskFile(folder.run(row.name).mask) for row in runs])
    own = [square[i][i] for i in range(len(runs))]
    return {
        "between": between,
        **{name: None if name == label else value for name, value in shared.items()},
        "labels": [str(row.seed if label == "seed" else getattr(row.group, label)) for row in runs],
        "density": [one.first / one.entries if one.entries else None for one in own],
        "jaccard": [[pair.jaccard for pair in line] for line in square],
        "chance": [[pair.chance for pair in line] for line in square],
    }
