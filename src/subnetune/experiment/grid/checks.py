"""What is checked before a grid's first run: that every run can be meant, and that its model and data are here."""

from __future__ import annotations

from collections.abc import Iterable

from subnetune.core.errors import UsageError, nearest
from subnetune.experiment.config import RunConfig
from subnetune.experiment.grid.cells import OF_METHODS, Cell, groups, search_cells, settings_of, values_of
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.examples import check_examples
from subnetune.experiment.tracking import check_installed


def check(grid: GridConfig, *, inputs: bool = True) -> None:
    """Check every run of the grid as `train` would. Raises UsageError or DataError that says which run is meant.

    Recipes are built, so options that a method does not have, or refuses, are found here and not in the fortieth run.
    Without `inputs`, model and data are not looked for: there is nothing to run.
    """
    _check_common(grid)
    lengths: dict[int, RunConfig] = {}
    bf16, tracked = False, dict[str, None]()
    for group in groups(grid):
        if group.train_size != grid.train_size[0]:
            continue  # the same options
        seed = grid.seeds_of(group.task)[0]
        try:
            for setting in settings_of(grid, group.method):
                run = Cell(group, seed, "run", values_of(grid, group, seed, setting), setting).config()
                lengths.setdefault(run.max_length, run)
                bf16 |= run.bf16
                tracked |= dict.fromkeys(run.track)
            for cell in search_cells(grid, group)[:1]:
                cell.config()
        except UsageError as error:
            raise UsageError(f"{group.task}, {group.method}: {error}") from None
    if not inputs:
        return
    check_installed(tuple(tracked))
    _check_model(grid, lengths.values())
    check_examples(grid)
    if bf16:
        from subnetune.experiment.environment import autocast
        from subnetune.experiment.session import pick_device

        autocast(pick_device(), True)


def _check_common(grid: GridConfig) -> None:
    """Refuse options for all methods that none of them has."""
    from subnetune.methods import get

    known = {option for label, entry in grid.methods.items() for option in get(entry.get("method", label)).options}
    options = grid.common.get("options", {})
    for name in (*OF_METHODS.intersection(grid.common), *(options if isinstance(options, dict) else ())):
        if name not in known:
            raise UsageError(
                f"none of the methods {', '.join(grid.methods)} has an option {name!r}{nearest(name, known)}"
            )


def _check_model(grid: GridConfig, runs: Iterable[RunConfig]) -> None:
    from subnetune.delta.models import resolve_model
    from subnetune.experiment.session import load_tokenizer

    resolve_model(grid.model)
    for run in runs:
        load_tokenizer(run)
