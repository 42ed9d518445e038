"""How a grid is doing, on stderr: a table on a terminal, else a line for each cell that ends."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from subnetune.experiment.grid.cells import Cell
from subnetune.experiment.grid.plan import Plan

_SECONDS_BETWEEN_TABLES = 1.0


class Display:
    """Shows a plan; a context manager. `workers` share what is left to do."""

    def __init__(self, workers: int, console: Console | None = None) -> None:
        self._workers = workers
        self._console = console or Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._shown = 0.0

    def ended(self, plan: Plan, cell: Cell, running: int) -> None:
        """Say what a cell came to, in one line: where there is a table, above it."""
        state = state_line(plan, running, self._workers)
        line = f"{cell_name(cell)}: {outcome(plan, cell)}"
        self._console.print(line if self._live is not None else f"{state}; {line}")

    def update(self, plan: Plan, running: Iterable[Cell]) -> None:
        """Show the table again, once a second at most."""
        if self._live is None or time.monotonic() - self._shown < _SECONDS_BETWEEN_TABLES:
            return
        self._shown = time.monotonic()
        self._live.update(table(plan, list(running), self._workers), refresh=True)

    def say(self, text: str) -> None:
        """Say something, in a line of its own."""
        self._console.print(text)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def cell_name(cell: Cell) -> str:
    """Return a cell's name for readers: `rte bitfit 300 examples seed 42`, for a search with what it tries."""
    task, method, size = cell.group
    tried = " ".join(f"{name} {value}" for name, value in cell.setting.items()) if cell.stage == "search" else ""
    parts = [task, method, f"{size} examples" if size is not None else "", f"seed {cell.seed}"]
    return " ".join(filter(None, [*parts, f"(search: {tried})" if tried else ""]))


def outcome(plan: Plan, cell: Cell) -> str:
    """Return what a cell came to: `accuracy 0.5271`, or why it failed."""
    result = plan.results[cell.name]
    if result.error is not None:
        return f"failed: {result.error['type']}: {result.error['message']}"
    return f"{result.metric} {result.value:.4f}" if result.value is not None else f"{result.metric} is not a number"


def state_line(plan: Plan, running: int, workers: int) -> str:
    """Return `12/40 done, 1 failed, 2 running, about 14 min left`."""
    failed = len(plan.failed())
    parts = [f"{len(plan.done())}/{plan.total} done"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{running} running"] if running else []
    left = seconds_left(plan, workers)
    parts += [f"about {duration(left)} left"] if left else []
    return ", ".join(parts)


def seconds_left(plan: Plan, workers: int) -> float | None:
    """Return how long the cells without a result will take: the mean of the method's done cells each, else of all.

    None where no cell is done, 0 where all have results.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    for cell in plan.done():
        seconds[cell.group.method].append(plan.results[cell.name].seconds)
    every = [value for values in seconds.values() for value in values]
    if not every:
        return None
    left = Counter(cell.group.method for cell in plan.open())
    for group in plan.waiting:
        left[group.method] += len(plan.grid.seeds_of(group.task))
    means = {method: _mean(seconds.get(method) or every) for method in left}
    return sum(count * means[method] for method, count in left.items()) / max(1, min(workers, left.total()))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def duration(seconds: float) -> str:
    """Return `40 s`, `14 min` or `3.2 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def table(plan: Plan, running: list[Cell], workers: int) -> Table:
    """Return the state per task and method."""
    shown = Table(title=state_line(plan, len(running), workers), title_justify="left")
    shown.add_column("task")
    shown.add_column("method")
    for heading in ("done", "running", "failed", "of"):
        shown.add_column(heading, justify="right")
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for name, cells in (("done", plan.done()), ("failed", plan.failed()), ("running", running), ("of", plan.cells())):
        for cell in cells:
            counts[cell.group.task, cell.group.method][name] += 1
    for group in plan.waiting:
        counts[group.task, group.method]["of"] += len(plan.grid.seeds_of(group.task))
    for (task, method), found in sorted(counts.items(), key=lambda item: _place(plan, *item[0])):
        shown.add_row(task, method, *(str(found[name] or "") for name in ("done", "running", "failed", "of")))
    return shown


def _place(plan: Plan, task: str, method: str) -> tuple[int, int]:
    return list(plan.grid.tasks).index(task), list(plan.grid.methods).index(method)
