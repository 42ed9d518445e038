"""Run directories that no grid made, as the rows of one: `runs/demo`, or any folder that `train` wrote into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnetune.experiment.config import RunConfig, load_config
from subnetune.experiment.grid.cells import NOT_IN_HASH, Cell, Group
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.rows import SETTINGS, Row
from subnetune.experiment.rundir import RunDir, read_json

# One of these beside a `config.yaml` says that a run wrote it.
_OF_RUNS = ("metrics.json", "log.jsonl", "environment.json", "labels.json", "checkpoints", ".lock")
# The training examples and the seed tell rows of one group apart, or are columns of their own.
_NO_LABEL = NOT_IN_HASH | {"seed", "task", "train_file", "dev_file", "text", "label", "regression", "method"}
_IN_GROUP = frozenset(("max_train", "holdout"))


class RunsFolder(GridFolder):
    """A folder of run directories: a cell's name is the path of its run below the folder. Final."""

    def cell(self, cell: Cell | str) -> Path:
        """The run directory of a row's name."""
        return self.path / (cell if isinstance(cell, str) else cell.name)


@dataclass(frozen=True)
class _Run:
    name: str
    run: RunDir
    config: RunConfig

    @property
    def group(self) -> tuple[str, str, int | None]:
        own = self.config.train_file or self.config.dev_file
        task = self.config.task or (own.stem if own is not None else "own files")
        held = "" if self.config.holdout is None else f" ({self.config.holdout:g} of train held out)"
        return f"{task}{held}", self.config.method, self.config.max_train

    def values(self) -> dict[str, Any]:
        return plain_values(self.config)


def plain_values(config: RunConfig) -> dict[str, Any]:
    """Return the options of a run that decide its result, those of files and folders by their names alone."""
    values = {name: value for name, value in config.values().items() if name not in NOT_IN_HASH}
    for name in ("model", "train_file", "dev_file", "peft_config"):
        if values.get(name):
            values[name] = Path(str(values[name])).name
    return values


def run_directories(path: Path) -> list[Path]:
    """Return every run directory at or below `path`, sorted."""
    files = [path / "config.yaml", *sorted(path.glob("*/**/config.yaml"))]
    found = [file.parent for file in files if file.is_file()]
    return [folder for folder in found if any((folder / name).exists() for name in _OF_RUNS)]


def plain_rows(path: Path) -> list[Row]:
    """Return a row per run at or below `path`, sorted by task, method, train size and seed.

    A method's label says besides what differs between its runs but for the seed, so that no two runs count as one.
    """
    runs = [
        _Run(str(p.relative_to(path)), RunDir(p), load_config(p / "config.yaml", {})) for p in run_directories(path)
    ]
    labels = _labels(runs)
    found = []
    for run, label in zip(runs, labels, strict=True):
        task, _, size = run.group
        found.append(Row(Group(task, label, size), run.config.seed, run.name, _result(run), {}))
    order = [row.group.method for row in found]
    return sorted(
        found, key=lambda row: (row.group.task, row.group.train_size or 0, order.index(row.group.method), row.seed)
    )


def _labels(runs: Sequence[_Run]) -> list[str]:
    differing: dict[tuple[str, str, int | None], list[str]] = {}
    for run in runs:
        alike = [other.values() for other in runs if other.group == run.group]
        names = dict.fromkeys(name for values in alike for name in values if name not in _NO_LABEL | _IN_GROUP)
        differing[run.group] = [name for name in names if len({repr(values.get(name)) for values in alike}) > 1]
    labels = []
    for run in runs:
        values = run.values()
        said = [f"{name}={values[name]}" for name in differing[run.group] if name in values]
        labels.append(" ".join([run.config.method, *said]))
    keys = [(run.group, label, run.config.seed) for run, label in zip(runs, labels, strict=True)]
    return [
        f"{label} [{run.name}]" if keys.count(key) > 1 else label
        for run, label, key in zip(runs, labels, keys, strict=True)
    ]


def _result(run: _Run) -> CellResult | None:
    """Return what a run came to, or None where it is not finished."""
    if not run.run.metrics.is_file():
        return None
    metrics = read_json(run.run.metrics)
    if metrics.get("status") != "finished":
        lines = str(metrics.get("message", "")).strip().splitlines()
        return CellResult("failed", error={"type": str(metrics.get("error", "")), "message": lines[0] if lines else ""})
    environment = read_json(run.run.environment) if run.run.environment.is_file() else {}
    config = run.config
    known = {name: getattr(config, name) for name in SETTINGS if name in RunConfig.model_fields}
    measured = {
        "steps": metrics.get("steps"),
        "train_examples": config.max_train,
        "precision": "bf16" if config.bf16 else "fp32",
        "engine": str(environment.get("engine", "")).partition(":")[0],
        "with": " ".join(map(str, config.with_)),
    }
    names = ("metric", "value", "evaluation", "majority", "trained", "total", "delta_bytes", "seconds")
    settings = {name: value for name, value in (known | measured).items() if value not in (None, "")}
    return CellResult(
        "done", **{n: metrics[n] for n in names if n in metrics}, settings=settings, environment=environment
    )
