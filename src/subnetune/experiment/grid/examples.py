"""Whether the examples that a grid reads are here and are enough, told before the first run."""

from __future__ import annotations

import warnings

from subnetune.core.errors import DataError, MissingDataError, UsageError
from subnetune.experiment.grid.cells import Cell, Group, search_of, searched_size, settings_of, values_of
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.session import load_data
from subnetune.experiment.transfer import reason, said_together
from subnetune.tasks import DataWarning, find_task, load_task


def left_out(grid: GridConfig) -> dict[str, str]:
    """Return the sets of `transfer` and `probes` whose files are not here, by name, with the reason.

    No run evaluates on them, and each lists them. Raises DataError for a set that is here and malformed: a run would
    fail by it after it was trained.
    """
    absent: list[dict[str, str]] = [{}, {}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # told in each run
        kinds = ((grid.transfer, ("dev",), ""), (grid.probes, ("train", "dev"), "as a probe: "))
        for (names, splits, prefix), found in zip(kinds, absent, strict=True):
            for name in names:
                try:
                    load_task(name, grid.data_dir, splits=splits)
                except MissingDataError as error:
                    found[find_task(name).name] = prefix + reason(error)
    return said_together(*absent)


def _short_searches(grid: GridConfig, task: str, found: int) -> list[str]:
    """Return what is wrong with searches: they too take a train size, of what they do not hold out."""
    searches = [
        search
        for method in grid.methods
        if len(settings_of(grid, method)) > 1 and (search := search_of(grid, method)) is not None
    ]
    said = []
    for size in grid.train_size:
        # What the runs themselves lack is said by itself; a search that takes all that is left is never short.
        if size is not None and size > found:
            continue  # said by itself
        wanted = [(search.holdout, searched_size(search, size)) for search in searches]  # None: all that is left
        short = [(holdout, least) for holdout, least in wanted if (least or 0) > found - round(holdout * found)]
        if short:
            holdout, least = max(short)
            said.append(
                f"{task} has {found - round(holdout * found)} training examples beside the {holdout:g} that a search "
                f"holds out, fewer than train_size {least}; lower holdout, or give the search a smaller train_size"
            )
    return list(dict.fromkeys(said))


def check_examples(grid: GridConfig) -> None:
    """Raise for tasks whose own data are not what the grid needs, all of them at once.

    MissingDataError where files are absent, UsageError where a train size is more than the task's file holds: a run
    would take the whole file, under a name that says another size. Files that are here and broken fail their own cells.
    """
    absent: list[str] = []
    short: list[str] = []
    for task in grid.tasks:
        group = Group(task, next(iter(grid.methods)), None)
        run = Cell(group, 0, "run", values_of(grid, group, 0, {}), {}).config()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)
                found = len(load_data(run).train)
        except MissingDataError as error:
            absent.append(str(error))
            continue
        except DataError as error:
            if run.data_dir is not None and not run.data_dir.is_dir():
                absent.append(str(error))
            continue
        if not found:
            short.append(f"{task} has no training examples")
        short += [
            f"{task} has {found} training examples, fewer than train_size {size}; write `all` for the whole file"
            for size in grid.train_size
            if size is not None and size > found
        ]
        short += _short_searches(grid, task, found)
    if absent:
        raise MissingDataError("\n".join(absent))
    if short:
        raise UsageError("\n".join(short))
