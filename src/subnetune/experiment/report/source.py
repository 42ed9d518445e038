"""What a report is made from: the runs of a folder, a grid's or plain ones, and what statistics say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnetune.core.errors import UsageError
from subnetune.experiment.comparison import Comparison, compare_rows
from subnetune.experiment.config import load_config
from subnetune.experiment.grid.cells import groups, read_cell
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import GridFolder
from subnetune.experiment.grid.rows import Row, rows, search_rows
from subnetune.experiment.report.plain import RunsFolder, plain_rows, plain_values


@dataclass(frozen=True)
class Runs:
    """The rows of a folder. `grid` is None for plain run directories; `searches` were scored on held-out train."""

    folder: GridFolder
    grid: GridConfig | None
    rows: tuple[Row, ...]
    searches: tuple[Row, ...]
    comparison: Comparison

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in order."""
        return list(dict.fromkeys(row.group.task for row in self.rows))

    @property
    def methods(self) -> list[str]:
        """The labels of the methods, in order."""
        return list(dict.fromkeys(row.group.method for row in self.rows))

    @property
    def sizes(self) -> list[int | None]:
        """The train sizes, in order; None is the whole file."""
        return list(dict.fromkeys(row.group.train_size for row in self.rows))

    @property
    def seeds(self) -> list[int]:
        """The seeds, in order."""
        return list(dict.fromkeys(row.seed for row in self.rows))

    def chosen(self, row: Row) -> bool:
        """Whether the setting of a search's row is the one that its group's runs take."""
        return self.grid is not None and self.folder.chosen(self.grid, row.group) == dict(row.setting)

    def values(self, row: Row) -> Mapping[str, Any]:
        """Return the options of a run that decide its result; {} where the run is not known yet, or was not begun."""
        if self.grid is None:
            return plain_values(load_config(self.folder.run(row.name).config, {}))
        path = self.folder.cell(row.name) / "cell.json"
        return read_cell(path).identity() if row.name and path.is_file() else {}


def read_runs(path: Path) -> Runs:
    """Return the runs in `path`: a grid's folder, or any folder with run directories in it.

    A grid may still be running: cells without a result are missing. Raises UsageError where there is no run at all,
    CheckpointError for results that are damaged.
    """
    if not path.is_dir():
        raise UsageError(f"{path} is no folder; `subnetune report` wants one that `compare` or `train` wrote into")
    folder = GridFolder(path)
    if folder.definition.is_file():
        grid = folder.grid()
        found, searches = rows(folder, grid), search_rows(folder, grid)
        baseline = grid.reference or groups(grid)[0].method
        return Runs(folder, grid, tuple(found), tuple(searches), compare_rows(found, baseline))
    found = plain_rows(path)
    if not found:
        raise UsageError(
            f"{path} holds no runs (no grid.yaml, and no config.yaml of a run below it); "
            "`subnetune compare` and `subnetune train` make some"
        )
    labels = [row.group.method for row in found]
    baseline = next((label for label in labels if label.split()[0] == "full"), labels[0])
    return Runs(RunsFolder(path), None, tuple(found), (), compare_rows(found, baseline))
