"""The page as plain values: sections with sentences, tables and figures, before anything is HTML or Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from subnetune.experiment.report.cells import failed_table, missing_lines, runs_table, search_table, skipped_lines
from subnetune.experiment.report.glance import coverage_table, glance_table
from subnetune.experiment.report.numbers import plural
from subnetune.experiment.report.reproduce import Reproduction, reproduction, without_folders
from subnetune.experiment.report.source import Runs
from subnetune.experiment.report.table import Table
from subnetune.experiment.report.tables import budget_table, cost_table, differences_table, scores_table

if TYPE_CHECKING:
    from subnetune.experiment.report.figures.figure import Figure

_SENTENCES = re.compile(r"(?<=[.;]) (?=[A-Z])")


@dataclass(frozen=True)
class Plots:
    """A section of figures, small multiples of one kind. `text` says how to read them."""

    key: str
    title: str
    text: str
    figures: tuple[Figure, ...]
    shown: int = 8  # so many at once; the others are folded away


@dataclass(frozen=True)
class Page:
    """All that the page says. `cells` counts what is done, failed, missing."""

    title: str
    facts: tuple[tuple[str, str], ...]
    verdicts: tuple[str, ...]
    cells: Mapping[str, int]
    glance: Table
    elsewhere: Table  # transfer sets and probes
    coverage: Table
    missing: tuple[str, ...]
    skipped: tuple[str, ...]
    plots: tuple[Plots, ...]
    tables: tuple[Table, ...]  # that the filter narrows
    failed: Table
    search: Table
    reproduction: Reproduction
    tasks: tuple[str, ...]  # what the filter offers
    methods: tuple[str, ...]
    sizes: tuple[str, ...]

    @property
    def total(self) -> int:
        """How many cells there are."""
        return sum(self.cells.values())


def make_page(runs: Runs, files: Mapping[str, str]) -> Page:
    """Return the page of `runs`, its figures drawn. `files` are the texts that are written beside it, by name."""
    comparison = runs.comparison
    made = (
        scores_table(comparison),
        differences_table(comparison),
        cost_table(comparison),
        budget_table(comparison),
        runs_table(runs.rows),
    )
    tables = tuple(table for table in made if table.lines)
    lines = [line for table in tables for line in table.lines]
    cells = {state: comparison.cells.get(state, 0) for state in ("done", "failed", "missing")}
    # Then the first verdict says so, and the page has a line of its own for that.
    incomplete = 0 < cells["done"] < sum(cells.values())
    return Page(
        title=title_of(runs),
        facts=_facts(runs),
        verdicts=comparison.verdicts[1:] if incomplete else comparison.verdicts,
        cells=cells,
        glance=glance_table(comparison),
        elsewhere=glance_table(comparison, elsewhere=True),
        coverage=coverage_table(runs.rows),
        missing=tuple(missing_lines(runs.rows)),
        skipped=tuple(skipped_lines(runs.rows)),
        plots=_plots(runs),
        tables=tables,
        failed=failed_table([*runs.rows, *runs.searches]),
        search=search_table(runs),
        reproduction=reproduction(runs, files),
        tasks=tuple(dict.fromkeys(line.task for line in lines)),
        methods=tuple(dict.fromkeys(line.method for line in lines)),
        sizes=tuple(dict.fromkeys(line.size for line in lines)),
    )


def title_of(runs: Runs) -> str:
    """`4 methods on 3 tasks, 5 seeds`, with names where there is one alone."""
    methods, tasks = runs.methods, runs.tasks
    who = methods[0] if len(methods) == 1 else plural(len(methods), "method")
    where = tasks[0] if len(tasks) == 1 else plural(len(tasks), "task")
    counts = {len({row.seed for row in runs.rows if row.group.task == task}) for task in tasks}
    seeds = plural(max(counts), "seed")
    return f"{who} on {where}, {seeds if len(counts) == 1 else f'{min(counts)} to {seeds}'}"


def _facts(runs: Runs) -> tuple[tuple[str, str], ...]:
    models = dict.fromkeys(str(runs.values(row).get("model", "")) for row in runs.rows if row.name)
    sizes = ["the whole file" if size is None else f"{size:,}" for size in runs.sizes]
    found = [
        ("Model", ", ".join(name for name in models if name) or (without_folders(runs.grid).model if runs.grid else ""))
    ]
    if runs.grid is not None and runs.grid.preset:
        found.append(("Protocol", runs.grid.preset))
    found += [
        ("Tasks", _some(runs.tasks)),
        ("Methods", _some(runs.methods)),
        ("Baseline", runs.comparison.baseline),
        ("Seeds", _some([str(seed) for seed in runs.seeds])),
        ("Training examples", ", ".join(sizes)),
    ]
    return tuple((name, text) for name, text in found if text)


def _some(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def _plots(runs: Runs) -> tuple[Plots, ...]:
    from subnetune.experiment.analysis import overlaps
    from subnetune.experiment.report import figures

    found = (
        Plots(
            "distributions",
            "Scores by seed",
            "Runs are compared seed by seed: whether marks overlap does not say whether methods differ, the table of "
            "differences does.",
            tuple(figures.distributions(runs.comparison, runs.rows)),
        ),
        Plots(
            "pareto",
            "Cost against quality",
            "More score for less is up and to the left.",
            tuple(figures.pareto(runs.comparison, runs.rows)),
        ),
        Plots(
            "curves",
            "Training curves",
            "From each run's log.",
            tuple(figures.curves(runs.folder, runs.rows)),
        ),
        Plots(
            "analysis",
            "Masks and representations",
            "Which entries were chosen, how far they moved, and what became of the representations.",
            tuple(figures.analysis(runs.folder, runs.rows, overlaps(runs.folder, runs.rows))),
        ),
    )
    return tuple(_say_once(plots) for plots in found if plots.figures)


def _say_once(plots: Plots) -> Plots:
    """Return the section with the sentences that all captions share said in its text, and not below each figure."""
    parts = [_SENTENCES.split(figure.caption) for figure in plots.figures]
    shared = [one for one in parts[0] if len(parts) > 1 and all(one in others for others in parts)]
    captions = [" ".join(one for one in caption if one not in shared) for caption in parts]
    figures = tuple(f._replace(caption=caption) for f, caption in zip(plots.figures, captions, strict=True))
    return replace(plots, text=" ".join([plots.text, *shared]), figures=figures)
