"""`subnetune compare`: tasks x methods x seeds in one folder, gone on with until every cell has its result."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subnetune.cli.options import PANELS, given_values, option_flag
from subnetune.core.errors import UsageError

if TYPE_CHECKING:
    from subnetune.experiment.grid.config import GridConfig
    from subnetune.experiment.grid.folder import GridFolder
    from subnetune.experiment.grid.plan import Plan

# Options of runs that are flags here too: all runs share them. A grid file may also give them per task or method.
COMMON = (
    *(name for name in PANELS["Training"] if name != "seed"),
    *("max_length", "max_eval", "with_", "keep", "cycle", "options", "save_steps", "eval_batch_size"),
    *("threads", "track"),
)
GRID = {
    "preset": "NAME",
    "tasks": "NAME[,NAME]",
    "methods": "NAME[,NAME]",
    "seeds": "N or A,B[,C]",
    "train_size": "N[,N]",
    "train_seed": "INTEGER",
    "baseline": "METHOD",
    "model": "TEXT",
    "data_dir": "PATH",
    "transfer": "NAME[,NAME]",
    "probes": "NAME[,NAME]",
    "max_transfer": "INTEGER",
    "analyse": "WHICH",
    "artefacts": "WHICH",
}
SEARCH = {
    "lr": "Search these learning rates on held-out training data first, such as 1e-4,4e-4.",
    "keep": "Search these fractions too, for the methods that have one.",
    "holdout": "The share of train that the search holds out. Default: 0.3.",
    "train_size": "Train the search on so many examples at most. Default: as many as the runs.",
}


def _takes_a_grid(function: Callable[..., None]) -> Callable[..., None]:
    """Give the command the flags of a grid, of its search, and of the options that all runs share, as `flags`."""
    from subnetune.experiment.grid.config import BUDGET, GridConfig

    own = [p for n, p in inspect.signature(function, eval_str=True).parameters.items() if n != "flags"]
    fields = {name: str(GridConfig.model_fields[name].description) for name in GRID}
    grid = [_text(name, name, GRID[name], meaning, "Grid") for name, meaning in fields.items()]
    search = [_text(f"search_{name}", f"search-{name}", "NUMBERS", text, "Search") for name, text in SEARCH.items()]
    shared = [option_flag(name, BUDGET.get(name)) for name in COMMON]

    def command(**given: Any) -> None:
        flags = _flags({name: given.pop(name) for name in GRID})
        found = {name: given.pop(f"search_{name}") for name in SEARCH}
        if any(value is not None for value in found.values()):
            flags["search"] = {name: _searched(name, text) for name, text in found.items() if text is not None}
        common = given_values((name, given.pop(name)) for name in COMMON)
        function(flags={**flags, **({"common": common} if common else {})}, **given)

    parameters = [*own, *grid, *search, *shared]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    return command


def _text(name: str, spelled: str, metavar: str, meaning: str, panel: str) -> inspect.Parameter:
    flag = typer.Option(f"--{spelled.replace('_', '-')}", help=meaning, metavar=metavar, rich_help_panel=panel)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, flag])


def _flags(given: Mapping[str, str | None]) -> dict[str, object]:
    """The grid's flags that were given. Their fields read texts, but for numbers."""
    from subnetune.experiment.strict_yaml import parse_value

    return {
        name: parse_value(text, f"--{name.replace('_', '-')}") if GRID[name] == "INTEGER" else text
        for name, text in given.items()
        if text is not None
    }


def _searched(name: str, text: str) -> object:
    from subnetune.experiment.strict_yaml import parse_value

    if name in ("holdout", "train_size"):
        return parse_value(text, f"--search-{name.replace('_', '-')}")
    return [parse_value(part.strip(), f"--search-{name}") for part in text.split(",")]


@_takes_a_grid
def compare(
    flags: dict[str, object],
    config: Annotated[
        Path | None, typer.Option("--config", help="A grid file; flags win over it.", metavar="FILE")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", help="The grid's folder: one to make, or one to go on with.", metavar="FOLDER")
    ] = Path("runs/compare"),
    workers: Annotated[int, typer.Option("--workers", help="Cells at once; they share the cores.", min=1)] = 1,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and what is done; run nothing.")] = False,
) -> None:
    """Compare methods over tasks, seeds and train sizes: one run each, statistics, and a table.

    What is finished is never run twice: the same command goes on where it was stopped or killed, and so does
    `--output FOLDER` alone. Several of these, also on other machines, may serve one folder at once. Failed cells are
    shown as failed; the exit code is 1 only where no run has a score.
    """
    from subnetune.experiment.grid.checks import check
    from subnetune.experiment.grid.examples import left_out
    from subnetune.experiment.grid.folder import GridFolder
    from subnetune.experiment.grid.plan import Plan

    folder = GridFolder(output)
    folder.check_is_grid()
    grid = _definition(folder, config, flags)
    check(grid, inputs=False)
    plan = Plan(folder, grid)
    if dry_run:
        _print_cells(plan)
        return
    if plan.open() or (retry_failed and plan.failed()):
        check(grid)
        for name, reason in left_out(grid).items():
            print(f"{name} is left out: {reason}", file=sys.stderr)
    _say_what_stays(folder, grid, plan)
    folder.write_grid(grid)
    _run(plan, workers, retry_failed)
    _finish(folder, grid, plan)
    if plan.failed() and not any(cell.stage == "run" for cell in plan.done()):
        raise typer.Exit(1)  # a script must not take a table without a number for a comparison


def _definition(folder: GridFolder, config: Path | None, flags: Mapping[str, object]) -> GridConfig:
    """Return the grid that file and flags describe; where they do not say what to compare, the folder's, changed."""
    from subnetune.experiment.grid.config import load_grid
    from subnetune.experiment.grid.places import anchored

    whole = config is not None or "preset" in flags or {"tasks", "methods"} <= flags.keys()
    if not whole and folder.definition.is_file():
        print(f"going on with the grid of {folder.definition}", file=sys.stderr)
        return anchored(load_grid(folder.definition, flags))
    return anchored(load_grid(config, flags))


def _say_what_stays(folder: GridFolder, grid: GridConfig, plan: Plan) -> None:
    """Say where finished cells were measured as an earlier definition says: they are not run again for that."""
    before = folder.grid() if folder.definition.is_file() else grid
    names = ("transfer", "probes", "max_transfer", "analyse")
    changed = [name for name in names if getattr(before, name) != getattr(grid, name)]
    count = len([cell for cell in plan.done() if cell.stage == "run"])
    if changed and count:
        print(f"{count} finished cells stay as they were: {', '.join(changed)} changed since", file=sys.stderr)
    if strangers := plan.strangers():
        print(f"{strangers} finished cells belong to an earlier definition; they are left alone", file=sys.stderr)


def _run(plan: Plan, workers: int, again: bool) -> None:
    from subnetune.experiment.grid.live import Display, state_line
    from subnetune.experiment.grid.workers import Scheduler, retry_failed
    from subnetune.experiment.signals import Stopped

    if again and (count := retry_failed(plan)):
        print(f"{count} failed cells are run again", file=sys.stderr)
    scheduler = Scheduler(plan, display := Display(workers), workers)
    print(f"{plan.folder.path}: {state_line(plan, 0, workers)}", file=sys.stderr)
    with display:
        stop = scheduler.run()
    if stop is not None:
        print(f"stopped by {stop.name}: {state_line(plan, 0, workers)}; the same command goes on", file=sys.stderr)
        raise Stopped(stop)
    if failed := plan.failed():
        some = f"{len(failed)} of {plan.total} cells failed; `--retry-failed` runs them again"
        print(f"{some}. The first: {failed[0].name}, see {plan.folder.log(failed[0])}", file=sys.stderr)


def _finish(folder: GridFolder, grid: GridConfig, plan: Plan) -> None:
    """Write `results.csv` and `statistics.csv`, and print the table."""
    from subnetune.core.files import atomic_write
    from subnetune.experiment.comparison import compare_rows, statistics_csv, table_text
    from subnetune.experiment.grid.rows import csv_text, rows

    found = rows(folder, grid)
    atomic_write(folder.path / "results.csv", csv_text(found).encode())
    if grid.reference is None:
        raise UsageError("a grid without methods compares nothing")
    comparison = compare_rows(found, grid.reference)
    atomic_write(folder.path / "statistics.csv", statistics_csv(comparison).encode())
    print(table_text(comparison).rstrip("\n"))


def _print_cells(plan: Plan) -> None:
    """Print every cell and what is known of it, one a line."""
    from subnetune.experiment.grid.claims import holder
    from subnetune.experiment.grid.live import cell_name, outcome, state_line

    for cell in plan.cells():
        result = plan.results.get(cell.name)
        who = holder(plan.folder.lock(cell)) if result is None else None
        at_work = f"process {who.pid} on {who.host} works on it" if who is not None and who.alive else ""
        shown = outcome(plan, cell) if result is not None else at_work
        state = result.state if result is not None else "running" if at_work else "open"
        print(f"{state:<9}{cell_name(cell)}{': ' if shown else ''}{shown}  [{cell.name}]")
    for group in plan.waiting:
        count = len(plan.grid.seeds_of(group.task))
        print(f"{'later':<9}{group.task} {group.method}: {count} seeds, when its search has chosen")
    print(state_line(plan, 0, 1))
