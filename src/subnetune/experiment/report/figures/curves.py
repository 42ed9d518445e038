"""Training curves: the loss of every run against its steps, and its scores where it was evaluated on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from subnetune.experiment.grid.folder import GridFolder
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.figures.canvas import TEXT, settings, sheet, short
from subnetune.experiment.report.figures.figure import Figure, finish
from subnetune.experiment.report.figures.logs import Array, Log, binned, median, read_log, smooth
from subnetune.experiment.report.figures.palette import INK, colour_of
from subnetune.experiment.report.figures.runs import by_task, listed, methods_of, title_of
from subnetune.experiment.report.numbers import plain, score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_POINTS = 200  # of one line, at most
_ALL_POINTS = 2400  # of a plot: about 40 kB
_REACH = 2  # parts on both sides that the median is smoothed over


class _Run(NamedTuple):
    seed: int
    failed: bool
    log: Log


def curves(folder: GridFolder, rows: Sequence[Row]) -> list[Figure]:
    """Return for each task and train size a plot of the training losses, and one of the scores where runs were
    evaluated more than once. A panel is a method, a line is a run. Runs that are not finished are left out."""
    numbers = methods_of(rows)
    found: list[Figure] = []
    for (task, size), group in by_task(rows).items():
        runs: dict[str, list[_Run]] = {}
        for row in group:
            if row.name and row.state != "missing":
                log = read_log(folder.run(row.name).log)
                runs.setdefault(row.group.method, []).append(_Run(row.seed, row.state == "failed", log))
        name = (task, str(size or "all"))
        found += _losses(runs, numbers, title_of(task, size), name) + _scores(runs, numbers, title_of(task, size), name)
    return found


def _losses(
    every: Mapping[str, Sequence[_Run]], numbers: Mapping[str, int], where: str, name: tuple[str, str]
) -> list[Figure]:
    runs = {method: [run for run in found if run.log.losses] for method, found in every.items()}
    runs = {method: found for method, found in runs.items() if found}
    if not runs:
        return []
    last = max(max(run.log.losses) for found in runs.values() for run in found)
    lines = sum(len(found) + 1 for found in runs.values())
    bins = max(8, min(_POINTS, last, _ALL_POINTS // lines))
    middle = (np.arange(bins) + 0.5) * last / bins + 0.5
    drawn = {method: [binned(run.log.losses, last, bins) for run in found] for method, found in runs.items()}
    typical: dict[str, Array] = {}
    with settings():
        drawing, panels = _panels(list(runs))
        for axes, (method, found) in zip(panels, runs.items(), strict=False):
            colour = colour_of(numbers[method])
            for run, values in zip(found, drawn[method], strict=True):
                style = (0, (2, 2)) if run.failed else "-"
                _line(axes, middle, values, color=colour, linewidth=0.8, alpha=0.6, linestyle=style)
            good = [values for run, values in zip(found, drawn[method], strict=True) if not run.failed]
            if good:
                typical[method] = smooth(median(good), _REACH)
                _line(axes, middle, typical[method], color=INK, linewidth=1.8)
        everything = np.concatenate([values for found in drawn.values() for values in found])
        top = _top(everything[~np.isnan(everything)])
        low = min(0.0, float(np.nanmin(everything)))
        panels[0].set_ylim(low, top)
        panels[0].set_xlim(0, last)
        _say_axes(drawing, panels, "training loss")
        cut = float(np.nanmax(everything)) > top
        return [
            finish(
                drawing,
                name=("loss", *name),
                title=f"{where}: training loss",
                caption=_loss_caption(runs, typical, last / bins, cut),
                table=_loss_table(runs, last),
            )
        ]


def _scores(
    every: Mapping[str, Sequence[_Run]], numbers: Mapping[str, int], where: str, name: tuple[str, str]
) -> list[Figure]:
    """Plot the first score that runs were evaluated by, if one of them was evaluated at more than one step."""
    key = next((key for found in every.values() for run in found for key in run.log.scores), None)
    if key is None:
        return []
    runs = {m: [(run, run.log.scores[key]) for run in found if key in run.log.scores] for m, found in every.items()}
    runs = {method: found for method, found in runs.items() if found}
    if all(len(points) < 2 for found in runs.values() for _, points in found):
        return []
    steps = max(max(points) for found in runs.values() for _, points in found)
    table: list[tuple[str, ...]] = [("method", "seed", f"{key} by step")]
    most = max(5, min(_POINTS, _ALL_POINTS // sum(len(found) for found in runs.values())))
    few = sum(min(len(points), most) for found in runs.values() for _, points in found) <= _ALL_POINTS // 4
    with settings():
        drawing, panels = _panels(list(runs))
        for axes, (method, found) in zip(panels, runs.items(), strict=False):
            dots: list[tuple[int, float]] = []
            for run, points in found:
                kept = _some(points, most)
                axes.plot(
                    list(kept), list(kept.values()), color=colour_of(numbers[method]), linewidth=0.9, clip_on=False,
                    linestyle=(0, (2, 2)) if run.failed else "-",
                )  # fmt: skip
                dots += kept.items() if few else ()
                said = ", ".join(f"{step}: {score(value)}" for step, value in _some(points).items())
                table.append((method, str(run.seed), said))
            axes.plot(
                [step for step, _ in dots], [value for _, value in dots], color=colour_of(numbers[method]),
                linestyle="none", marker="o", markersize=3.5, clip_on=False,
            )  # fmt: skip
        panels[0].set_xlim(0, steps * 1.02)
        _say_axes(drawing, panels, key)
        caption = (
            f"Each line is one run{', each dot an evaluation' if few else ''}; the last score is the one compared."
        )
        return [
            finish(drawing, name=("evaluation", *name), title=f"{where}: {key} while training", caption=caption,
                   table=table)
        ]  # fmt: skip


def _panels(methods: Sequence[str]) -> tuple[Drawing, list[Axes]]:
    columns = min(len(methods), 2 if len(methods) <= 4 else 3)
    rows = -(-len(methods) // columns)
    high = 170 if columns < 3 else 118
    drawing, panels = sheet(
        70 + rows * high + (rows - 1) * 34, rows=rows, columns=columns, left=64, right=18, top=26, bottom=44,
        gap=(22, 34), share=True,
    )  # fmt: skip
    for axes, method in zip(panels, methods, strict=False):
        axes.set_title(short(method, {1: 60, 2: 28}.get(columns, 18)))
        axes.locator_params(axis="x", nbins={1: 6, 2: 4}.get(columns, 2))
        axes.locator_params(axis="y", nbins=4)
    for number, axes in enumerate(panels[len(methods) :], start=len(methods)):
        drawing.delaxes(axes)
        panels[number - columns].tick_params(labelbottom=True)
    return drawing, panels[: len(methods)]


def _say_axes(drawing: Drawing, panels: Sequence[Axes], what: str) -> None:
    drawing.text(0.5, 0.012, "optimizer step", ha="center", va="bottom", fontsize=TEXT)
    boxes = [axes.get_position() for axes in panels]
    middle = (max(box.y1 for box in boxes) + min(box.y0 for box in boxes)) / 2
    drawing.text(0.006, middle, short(what, 40), ha="left", va="center", rotation=90, fontsize=TEXT)


def _line(axes: Axes, x: Array, y: Array, **look: Any) -> None:
    there = ~np.isnan(y)
    axes.plot(x[there], y[there], **look)


def _top(values: Array) -> float:
    """Return where the axis ends: above all values, but for a few that are far above the others."""
    high = float(values.max())
    usual = float(np.quantile(values, 0.98))
    return high * 1.04 + 1e-9 if high <= 2.5 * usual else usual * 1.5


def _some(points: Mapping[int, float], most: int = 12) -> dict[int, float]:
    steps = list(points)
    kept = {steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)} if len(steps) > most else set(steps)
    return {step: value for step, value in points.items() if step in kept}


def _loss_caption(runs: Mapping[str, Sequence[_Run]], typical: Mapping[str, Array], width: float, cut: bool) -> str:
    said = []
    ends = {method: float(line[~np.isnan(line)][-1]) for method, line in typical.items()}
    if ends:
        low, high = min(ends, key=lambda m: ends[m]), max(ends, key=lambda m: ends[m])
        said.append(f"{low} ends with the lowest median training loss, {plain(ends[low], 3)}")
        if ends[high] > ends[low]:
            said[0] += f", {high} with the highest, {plain(ends[high], 3)}"
    parts = f"means of about {round(width)} steps" if width >= 1.5 else "step by step"
    said.append(f"Thin lines are single seeds ({parts}), the thick one is their median over seeds, smoothed")
    said.append("The loss is what each method minimises, its own penalties and second passes included")
    failed = [method for method, found in runs.items() if any(run.failed for run in found)]
    if failed:
        said.append(f"Dashed lines are runs that failed ({listed(failed)}); the median is without them")
    if cut:
        said.append("The axis ends below a few far higher losses")
    return ". ".join(said) + "."


def _loss_table(runs: Mapping[str, Sequence[_Run]], last: int) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("method", "seed", "steps", "first tenth", "middle tenth", "last tenth")]
    for method, found in runs.items():
        for run in found:
            steps = max(run.log.losses)
            tenths = binned(run.log.losses, steps, min(10, steps))
            thirds = (tenths[0], tenths[len(tenths) // 2], tenths[-1])
            rows.append((method, f"{run.seed}{' (failed)' if run.failed else ''}", str(steps),
                         *(plain(float(value), 4) for value in thirds)))  # fmt: skip
    return rows
