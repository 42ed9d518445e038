"""A grid's folder: its definition, its cells and what each of them came to.

grid.yaml              the definition, as of the last `compare`
cells/NAME/            a run directory, see RunDir; and in it:
    cell.json          which cell of the grid it is
    memory.json        how much memory its training took
    result.json        what it came to, written last: the cell is done or failed, and is not run again
    analysis/          what `subnetune.experiment.analysis` found, JSON and npz
locks/NAME             who works on a cell; gone when nobody does
logs/NAME.log          what the cell's processes have said
journal.jsonl          a line for each start and each end of a cell
report.html, report.md, results.csv, statistics.csv     what `report` writes
"""

from __future__ import annotations

import functools
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.files import atomic_write
from subnetune.experiment.grid.cells import Cell, Group, read_cell, search_cells, settings_of
from subnetune.experiment.grid.config import GridConfig, load_grid
from subnetune.experiment.result import Evaluation, no_better
from subnetune.experiment.rundir import RunDir, read_json, write_json

State = Literal["done", "failed"]


@dataclass(frozen=True)
class CellResult:
    """What a cell came to.

    `value` is the headline `metric` on the first evaluation split, as in `RunResult`. `majority` has the same shape as
    `evaluation`: what predicting the most frequent training class (for scores: their mean) would have. `transfer` and
    `probes` have metrics per task (and split: `mnli/dev_matched`), `transfer_majority` and `probe_majority` what always
    the same answer scores there, `skipped` the reasons why a set was left out.
    `settings` are the options that matter for comparing: lr, epochs, batch_size, schedule, warmup, weight_decay, clip,
    dropout, steps, train_examples, max_length, keep, precision, engine, threads, accumulate, policy, gradients, with.
    `max_transfer` is the grid's when transfer sets and probes were measured. `peak_memory_bytes` is beyond the process
    before the model was loaded; None where no process saw all of the training. A failed cell has `error` and nothing
    else that counts.
    """

    state: State
    metric: str = ""
    value: float | None = None
    evaluation: Evaluation = field(default_factory=dict)
    majority: Evaluation = field(default_factory=dict)
    transfer: Evaluation = field(default_factory=dict)
    probes: Evaluation = field(default_factory=dict)
    transfer_majority: Evaluation = field(default_factory=dict)
    probe_majority: Evaluation = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    max_transfer: int | None = None
    trained: int = 0
    total: int = 0
    delta_bytes: int = 0
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] | None = None

    @property
    def at_majority(self) -> bool | None:
        """Whether the run learned nothing: by none of the task's metrics is it above always saying the same.

        None where that level is not known.
        """
        split, levels = next(iter(self.majority.items()), ("", {}))
        if self.value is None:
            return None
        return no_better({**self.evaluation.get(split, {}), self.metric: self.value}, levels, self.metric)

    @staticmethod
    def from_json(values: Mapping[str, Any], path: Path) -> CellResult:
        """Return the result in `values`. Raises CheckpointError where fields are missing or unknown."""
        try:
            return CellResult(**values)
        except TypeError as error:
            raise CheckpointError(f"{path}: not the result of a cell ({error})") from error


@dataclass(frozen=True)
class GridFolder:
    """The paths inside a grid's folder, and its cells' results."""

    path: Path

    @property
    def definition(self) -> Path:
        """The grid, resolved: `grid.yaml`."""
        return self.path / "grid.yaml"

    def cell(self, cell: Cell | str) -> Path:
        """The run directory of a cell."""
        return self.path / "cells" / (cell if isinstance(cell, str) else self.name_of(cell))

    def name_of(self, cell: Cell) -> str:
        """The name of a cell's folder.

        Where files that count by their content are not here any more, because the grid was moved to another machine,
        say, the cell is found by what it was told.
        """
        if cell.here or (self.path / "cells" / cell.name).is_dir():
            return cell.name
        return self._told.get(cell.description, cell.name)

    @functools.cached_property
    def _told(self) -> dict[str, str]:
        files = self.path.glob("cells/[!.]*/cell.json")
        newest_last = sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.parent.name))
        return {read_cell(file).description: file.parent.name for file in newest_last}

    def lock(self, cell: Cell | str) -> Path:
        """The file that says who works on a cell."""
        return self.path / "locks" / (cell if isinstance(cell, str) else cell.name)

    def log(self, cell: Cell | str) -> Path:
        """The file of what a cell's processes say."""
        return self.path / "logs" / f"{cell if isinstance(cell, str) else cell.name}.log"

    @property
    def journal(self) -> Path:
        """A line for each start and each end of a cell."""
        return self.path / "journal.jsonl"

    def run(self, cell: Cell | str) -> RunDir:
        """The run directory of a cell, with its files."""
        return RunDir(self.cell(cell))

    def grid(self) -> GridConfig:
        """Return the definition. Raises UsageError where there is none."""
        if not self.definition.is_file():
            raise UsageError(f"{self.path} holds no grid (no {self.definition.name}); `subnetune compare` makes one")
        return load_grid(self.definition, {})

    def write_grid(self, grid: GridConfig) -> None:
        """Write the definition, in place of an earlier one. Raises UsageError for a folder of something else."""
        self.check_is_grid()
        self.path.mkdir(parents=True, exist_ok=True)
        text = grid.to_yaml().encode()
        if not self.definition.is_file() or self.definition.read_bytes() != text:
            atomic_write(self.definition, text)  # first: another worker may come while the folders are being made
        for part in ("cells", "locks", "logs"):
            (self.path / part).mkdir(exist_ok=True)

    def check_is_grid(self) -> None:
        """Raise UsageError where there is something else already."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"the output {self.path} is a file; a grid needs a folder")
        if self.path.is_dir() and not self.definition.is_file():
            others = [p.name for p in self.path.iterdir() if not p.name.startswith(f".{self.definition.name}.")]
            if others:
                raise UsageError(f"{self.path} holds something that is no grid ({others[0]}); choose another --output")

    def note(self, event: str, cell: Cell, **more: object) -> None:
        """Add a line to the journal. One write, so that workers do not cut each other's lines."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        about = {"time": now, "event": event, "cell": cell.name, "host": socket.gethostname(), "pid": os.getpid()}
        descriptor = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, (json.dumps({**about, **more}) + "\n").encode())
        finally:
            os.close(descriptor)

    def seen(self, cell: Cell) -> CellResult | None:
        """Return `result`, also where another machine has just written it: a file that is made here and removed again
        makes a shared file system forget what it remembered of the folder."""
        folder = self.cell(cell)
        folder.mkdir(parents=True, exist_ok=True)
        look = folder / f".look.{secrets.token_hex(8)}"
        look.touch()
        look.unlink()
        return self.result(cell)

    def result(self, cell: Cell | str) -> CellResult | None:
        """Return what a cell came to, or None where it is not finished."""
        path = self.cell(cell) / "result.json"
        return CellResult.from_json(read_json(path), path) if path.is_file() else None

    def write_result(self, cell: Cell | str, result: CellResult) -> None:
        """Write what a cell came to: from now on it is not run again."""
        self.cell(cell).mkdir(parents=True, exist_ok=True)
        write_json(self.cell(cell) / "result.json", asdict(result))

    def chosen(self, grid: GridConfig, group: Group) -> dict[str, Any] | None:
        """Return the setting that a group's search chose ({} where there is none); None while it is not finished.

        The best mean over the search's seeds; of equals the first in the order of the search. A setting with a failed
        cell counts as the worst; where every setting has one, nothing is chosen, and None it stays.
        """
        cells = search_cells(grid, group)
        if not cells:
            return settings_of(grid, group.method)[0]
        return best_setting(cells, [self.result(cell) for cell in cells])


def best_setting(cells: Sequence[Cell], results: Sequence[CellResult | None]) -> dict[str, Any] | None:
    """Return the setting that the results of search cells choose, see `GridFolder.chosen`."""
    if any(result is None for result in results):
        return None
    scores: dict[str, list[float]] = {}
    for cell, result in zip(cells, results, strict=True):
        good = result is not None and result.state == "done" and result.value is not None
        scores.setdefault(repr(dict(cell.setting)), []).append(result.value if good else -math.inf)  # type: ignore[arg-type, union-attr]
    means = {key: sum(values) / len(values) for key, values in scores.items()}
    best = max(means, key=lambda key: means[key])  # the first of equals: dicts keep the order
    if means[best] == -math.inf:
        return None
    return next(dict(cell.setting) for cell in cells if repr(dict(cell.setting)) == best)
