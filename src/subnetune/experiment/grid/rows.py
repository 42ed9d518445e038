"""A grid as rows, one a cell, whatever became of it: what statistics, tables and reports are made of."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from subnetune.experiment.grid.cells import Cell, Group, groups, run_cells, search_cells
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.places import without_folders
from subnetune.experiment.sheets import as_text


@dataclass(frozen=True)
class Row:
    """A cell of stage "run". `result` is None while it is missing; `name` is its folder's, "" while its search runs."""

    group: Group
    seed: int
    name: str
    result: CellResult | None
    setting: Mapping[str, Any]

    @property
    def state(self) -> Literal["done", "failed", "missing"]:
        """What became of it."""
        return "missing" if self.result is None else self.result.state

    @property
    def value(self) -> float | None:
        """The headline, a fraction; None where the cell is missing or failed."""
        return self.result.value if self.result is not None and self.result.state == "done" else None


def rows(folder: GridFolder, grid: GridConfig | None = None) -> list[Row]:
    """Return a row for each cell of stage "run", in the order of the grid's definition."""
    grid = grid or folder.grid()
    found = []
    for group in groups(grid):
        setting = folder.chosen(grid, group)
        if setting is None:
            result = _without_setting(folder, grid, group)
            found += [Row(group, seed, "", result, {}) for seed in grid.seeds_of(group.task)]
            continue
        found += [_row(folder, cell) for cell in run_cells(grid, group, setting)]
    return found


def _without_setting(folder: GridFolder, grid: GridConfig, group: Group) -> CellResult | None:
    """Return what becomes of runs whose search chose nothing: failed where it is finished, None where it is not."""
    results = [folder.result(cell) for cell in search_cells(grid, group)]
    if any(result is None for result in results):
        return None
    first = next((result.error for result in results if result is not None and result.error), None) or {}
    said = f"no setting of its search could be run; the first: {first.get('type', '')}: {first.get('message', '')}"
    return CellResult("failed", error={"type": "Search", "message": said})


def search_rows(folder: GridFolder, grid: GridConfig | None = None) -> list[Row]:
    """Return a row for each cell of the searches: what was tried on held-out training data."""
    grid = grid or folder.grid()
    return [_row(folder, cell) for group in groups(grid) for cell in search_cells(grid, group)]


def _row(folder: GridFolder, cell: Cell) -> Row:
    return Row(cell.group, cell.seed, folder.name_of(cell), folder.result(cell), cell.setting)


# The settings that every row records, so that no comparison hides an unequal budget.
SETTINGS = (
    *("lr", "keep", "epochs", "steps", "train_examples", "batch_size", "schedule", "warmup", "weight_decay", "clip"),
    *("dropout", "max_length", "precision", "engine", "threads", "accumulate", "policy", "gradients", "with"),
)


def csv_text(found: Sequence[Row]) -> str:
    """Return `results.csv`: a row per cell, its scores by split and metric (also of transfer and probes), and its cost.

    Columns whose names hold `seconds` or `memory` differ from run to run; all others are the same bytes.
    """
    scores = sorted({key for row in found if row.result for key in _scores(row.result)})
    head = ["task", "method", "train_size", "seed", "state", "metric", "value", "majority", "at_majority"]
    head += [*scores, *SETTINGS, "trained", "total", "delta_bytes", "seconds", "peak_memory_bytes", "error", "cell"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in found:
        writer.writerow(_cells(row, scores))
    return out.getvalue()


def _cells(row: Row, scores: Iterable[str]) -> list[object]:
    task, method, size = row.group
    result = row.result or CellResult("failed")
    known = _scores(result)
    level = next(iter(result.majority.values()), {}).get(result.metric)
    done = row.state == "done"
    return [
        *(
            as_text(task),
            as_text(method),
            "all" if size is None else size,
            row.seed,
            row.state,
            result.metric,
            _number(row.value),
        ),
        *(_number(level), str(result.at_majority).lower() if done and result.at_majority is not None else ""),
        *(_number(known.get(name)) for name in scores),
        *(result.settings.get(name, row.setting.get(name, "")) for name in SETTINGS),
        *((result.trained, result.total, result.delta_bytes) if done else ("", "", "")),
        *((result.seconds, result.peak_memory_bytes) if done else ("", "")),
        as_text(without_folders(f"{result.error['type']}: {result.error['message']}")) if result.error else "",
        row.name,
    ]


def _scores(result: CellResult) -> dict[str, float]:
    """Return every score under one name: `dev/f1`, `transfer/hans/accuracy`, `probe/cola/matthews_correlation`."""
    parts = {"": result.evaluation, "transfer/": result.transfer, "probe/": result.probes}
    return {
        f"{kind}{split}/{metric}": value
        for kind, found in parts.items()
        for split, metrics in found.items()
        for metric, value in metrics.items()
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
