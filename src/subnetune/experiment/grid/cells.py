"""The cells of a grid: one run each, named by what differs from the defaults."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from subnetune.core.errors import UsageError
from subnetune.experiment.config import RunConfig, build_recipe, resolve
from subnetune.experiment.grid.config import BUDGET, GridConfig, Search
from subnetune.experiment.rundir import read_json

Stage = Literal["search", "run"]
# What changes where or how fast a cell runs, not what comes out (threads: the last digits, if anything).
NOT_IN_HASH = frozenset(("output", "resume", "data_dir", "threads", "save_steps", "eval_batch_size", "track"))


class Group(NamedTuple):
    """What one search chooses for: the cells that differ in their seed alone."""

    task: str
    method: str  # the label of the grid
    train_size: int | None


@dataclass(frozen=True)
class Cell:
    """One run of a grid. `values` are `RunConfig`'s, without where it is run; `setting` is what a search varies.

    `stage` "search" evaluates on held-out training data, "run" on the task's own evaluation splits.
    """

    group: Group
    seed: int
    stage: Stage
    values: Mapping[str, Any] = field(hash=False)
    setting: Mapping[str, Any] = field(hash=False)
    analyse: bool = False  # representations and loss surface too
    keep: bool = True  # deltas, masks and checkpoints stay when the cell is done

    @property
    def name(self) -> str:
        """The name of the cell's folder: readable parts, and the hash of all that differs from the defaults."""
        size = "" if self.group.train_size is None else f"-n{self.group.train_size}"
        stage = "search-" if self.stage == "search" else ""
        text = f"{stage}{self.group.task}-{self.group.method}{size}-seed{self.seed}"
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in text)[:80].lstrip(".-")
        return f"{safe}-{self.digest[:10]}"

    @property
    def digest(self) -> str:
        """Return the sha256 (hex) of what decides the result: equal runs have equal names, whatever the grid says."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """Return the options that differ from their defaults; a model's folder counts by its name alone."""
        found = {k: v for k, v in self.values.items() if k not in NOT_IN_HASH}
        if Path(str(found.get("model", ""))).is_dir():
            found["model"] = Path(str(found["model"])).resolve().name
        for name in ("train_file", "dev_file", "peft_config"):
            if found.get(name):
                found[name] = Path(str(found[name])).name
        return found

    def config(self, **more: Any) -> RunConfig:
        """Return the run, resolved. `more` says where and how it runs (output, threads, resume)."""
        return resolve(RunConfig.from_values({**self.values, **more}))


def budget_of(method: str) -> dict[str, Any]:
    """Return the options that all methods of a grid share, but for what the method's card says is its own."""
    from subnetune.methods import get

    own = get(method).card.own
    return {name: value for name, value in BUDGET.items() if name not in own}


def values_of(grid: GridConfig, group: Group, seed: int, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run: budget, then `common`, the task's, the method's, and what a search chose."""
    task, method = grid.tasks[group.task], dict(grid.methods[group.method])
    method.pop("search", None)
    name = str(method.pop("method", group.method))
    source = {} if "train_file" in task else {"task": group.task}
    values: dict[str, Any] = {"model": grid.model, **source, "method": name, **budget_of(name), "seed": seed}
    if grid.data_dir is not None and source:
        values["data_dir"] = str(grid.data_dir)
    options: dict[str, Any] = {}
    for part in (grid.common, task, method, setting):
        options |= part.get("options", {})
        values |= part
    if options:
        values["options"] = options
    if group.train_size is not None:
        values |= {"max_train": group.train_size, "train_seed": grid.train_seed}
    return _plain(values)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the checked values as a file would hold them, defaults left out (what was said or not hashes alike)."""
    run = RunConfig.from_values(values)
    return run.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True) | {
        name: values[name] for name in ("method", "seed", "model") if name in values
    }


def groups(grid: GridConfig) -> list[Group]:
    """Return every task x method x train size, tasks outermost."""
    return [Group(*key) for key in itertools.product(grid.tasks, grid.methods, grid.train_size)]


def run_cells(grid: GridConfig, group: Group, setting: Mapping[str, Any]) -> Iterator[Cell]:
    """Yield the cells of a group, one a seed, with what its search chose ({} where there is none)."""
    for number, seed in enumerate(grid.seeds_of(group.task)):
        keep = grid.artefacts == "all" or (grid.artefacts == "first" and number == 0)
        analyse = grid.analyse == "all" or (grid.analyse == "first" and number == 0)
        yield Cell(group, seed, "run", values_of(grid, group, seed, setting), setting, analyse, keep)


def search_of(grid: GridConfig, label: str) -> Search | None:
    """Return the search of a method: the grid's, with what the method's own entry says in its place."""
    own = grid.methods[label].get("search")
    if own is None:
        return grid.search
    below = grid.search.model_dump() if grid.search else {}
    try:
        return Search.model_validate({**below, **own})
    except ValueError as error:
        raise UsageError(f"methods.{label}.search: {error}") from None


def settings_of(grid: GridConfig, label: str) -> list[dict[str, Any]]:
    """Return what the search of a method tries, in order; [{}] where there is nothing to search."""
    from subnetune.methods import get

    search = search_of(grid, label)
    if search is None:
        return [{}]
    entry = grid.methods[label]
    axes: dict[str, tuple[Any, ...]] = {}
    if search.lr and "lr" not in entry:
        axes["lr"] = search.lr
    if search.keep and "keep" not in entry and "keep" in get(str(entry.get("method", label))).options:
        axes["keep"] = search.keep
    found = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    names = {name: values for name, values in search.options.items() if name not in entry.get("options", {})}
    for name, values in names.items():
        found = [{**one, "options": {**one.get("options", {}), name: value}} for one in found for value in values]
    return found


def search_cells(grid: GridConfig, group: Group) -> list[Cell]:
    """Return the cells that choose a group's setting: none where there is nothing to choose between."""
    settings, search = settings_of(grid, group.method), search_of(grid, group.method)
    if len(settings) < 2 or search is None:
        return []
    cells = []
    for seed in search.seeds:
        for setting in settings:
            values = values_of(grid, group, seed, setting) | {"holdout": search.holdout, "train_seed": grid.train_seed}
            if search.max_eval is not None:
                values["max_eval"] = search.max_eval
            cells.append(Cell(group, seed, "search", _plain(values), setting, keep=False))
    return cells


def read_cell(path: Path) -> Cell:
    """Return the cell that `write_cell` described in `path`."""
    found = read_json(path)
    group = Group(found["task"], found["method"], found["train_size"])
    return Cell(
        group, found["seed"], found["stage"], found["values"], found["setting"], found["analyse"], found["keep"]
    )


def describe_cell(cell: Cell) -> dict[str, Any]:
    """Return what `read_cell` reads."""
    return {
        **cell.group._asdict(),
        "seed": cell.seed,
        "stage": cell.stage,
        "setting": dict(cell.setting),
        "values": dict(cell.values),
        "analyse": cell.analyse,
        "keep": cell.keep,
    }


def check(grid: GridConfig) -> None:
    """Check every run of the grid as `train` would, before the first one starts. Raises UsageError that names the cell.

    Recipes are built, so options that a method does not have, or refuses, are found here and not in the fortieth run.
    """
    for group in groups(grid):
        first = grid.seeds_of(group.task)[0]
        for setting in settings_of(grid, group.method):
            try:
                build_recipe(Cell(group, first, "run", values_of(grid, group, first, setting), setting).config())
            except UsageError as error:
                raise UsageError(f"{group.task}, {group.method}: {error}") from None
