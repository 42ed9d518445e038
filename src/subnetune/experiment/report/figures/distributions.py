"""Every seed's score by method: what a mean is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from subnetune.experiment.comparison import Block, Comparison, Entry
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.figures.canvas import SMALL, WIDTH, settings, sheet, short, width_of, write
from subnetune.experiment.report.figures.figure import Figure, finish
from subnetune.experiment.report.figures.palette import INK, MUTED, colour_of, marker_of
from subnetune.experiment.report.figures.runs import Point, listed, numbers_of, scores_of
from subnetune.experiment.report.numbers import score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 34.0  # points per method
_DOT = 6.0  # the size of a dot, in points


def distributions(comparison: Comparison, rows: Sequence[Row]) -> list[Figure]:
    """Return a plot for each block where any run has a score: tasks and their mean first, then transfer and probes.

    A row is a method: each seed's score as a dot, from two seeds on their mean as a bar and their range as a line.
    """
    found = []
    for block in sorted(comparison.blocks, key=lambda block: block.kind not in ("task", "mean")):
        points = {entry.method: scores_of(entry) for entry in block.entries}
        if any(points.values()):
            found.append(_plot(block, points, rows))
    return found


def _plot(block: Block, points: dict[str, list[Point]], rows: Sequence[Row]) -> Figure:
    names = {method: short(method, 22) for method in points}
    counts = {entry.method: _counts(entry, len(points[entry.method])) for entry in block.entries}
    left = 16 + width_of(list(names.values()), SMALL)
    right = 14 + width_of([line for lines in counts.values() for line in lines], SMALL)
    height = 74 + _LINE * len(names)
    numbers = numbers_of(block, rows)
    with settings():
        drawing, (axes,) = sheet(height, left=left, right=right, top=24, bottom=50)
        low, high = _limits(block, points)
        axes.set_xlim(low, high)
        axes.set_ylim(len(names) - 0.5, -0.5)
        wide = WIDTH - left - right
        for line, entry in enumerate(block.entries):
            _row(axes, line, points[entry.method], numbers[entry.method], (high - low) / wide)
            failed = range(min(entry.summary.failed, 12))
            axes.plot(
                [low + (high - low) * (4 + 8 * number) / wide for number in failed], [line for _ in failed],
                marker="x", markersize=5.5, markeredgewidth=1.4, color=MUTED, linestyle="none", clip_on=False,
            )  # fmt: skip
            lines = counts[entry.method]
            for number, text in enumerate(lines):
                height = line + 0.42 * (number - (len(lines) - 1) / 2)
                write(axes, 1.0 + 8 / wide, height, text, within="y", va="center", ha="left")
        axes.set_yticks(range(len(names)), labels=list(names.values()))
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(block.metric)
        _majority(axes, block.majority)
        return finish(
            drawing,
            name=("scores", block.kind, block.task, str(block.train_size or "all")),
            title=f"{block.title}: {block.metric} of every seed",
            caption=_caption(block, points),
            table=_table(block, points),
        )


def _row(axes: Axes, line: int, points: Sequence[Point], number: int, unit: float) -> None:
    """Draw a method's runs around the height `line`; `unit` is how much of the score a point (1/72 inch) is."""
    if not points:
        return
    values = [point.value for point in points]
    colour, marker = colour_of(number), marker_of(number)
    mean = sum(values) / len(values)
    if len(values) > 1:
        axes.plot([min(values), max(values)], [line, line], color=colour, linewidth=1.2, alpha=0.7)
        axes.plot([mean, mean], [line - 0.3, line + 0.3], color=INK, linewidth=2.2, solid_capstyle="butt")
    heights = stacked(values, _DOT * 1.1 * unit)
    step = min(_DOT * 1.1, 0.8 * _LINE / max(1.0, max(heights) - min(heights))) / _LINE
    for low in (False, True):
        chosen = [index for index, point in enumerate(points) if point.low == low]
        axes.plot(
            [values[index] for index in chosen],
            [line - heights[index] * step for index in chosen],
            linestyle="none", marker=marker, markersize=_DOT, markeredgewidth=1.1, markeredgecolor=colour,
            markerfacecolor="none" if low else colour, clip_on=False,
        )  # fmt: skip


def stacked(values: Sequence[float], width: float) -> list[float]:
    """Return how many dots above (or, negative, below) its line each value's dot stands, so that no two dots that are
    nearer than `width` cover each other: the nearest free height to the line, above before below. No randomness."""
    heights = [0.0] * len(values)
    placed: list[int] = []
    for index in sorted(range(len(values)), key=lambda i: (values[i], i)):
        near = {heights[other] for other in placed if values[index] - values[other] < width}
        heights[index] = next(h for k in range(len(values) + 1) for h in (float(k), float(-k)) if h not in near)
        placed.append(index)
    return heights


def _majority(axes: Axes, level: float | None) -> None:
    """Draw what always the same answer scores, or write which side of the plot it is on."""
    if level is None:
        return
    words = "always the same answer"
    low, high = axes.get_xlim()
    if low <= level <= high:
        axes.axvline(level, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
        side = "right" if level > (low + high) / 2 else "left"
        write(axes, level, 1.0, words, within="x", va="bottom", ha=side)
    elif level < low:
        write(axes, 0.0, 1.0, f"← {words}: {score(level)}", within="axes", va="bottom", ha="left")
    else:
        write(axes, 1.0, 1.0, f"{words}: {score(level)} →", within="axes", va="bottom", ha="right")


def _limits(block: Block, points: dict[str, list[Point]]) -> tuple[float, float]:
    """Return the ends of the axis. The majority level is within them, unless it would squeeze the scores together."""
    values = [point.value for found in points.values() for point in found]
    low, high = min(values), max(values)
    if block.majority is not None:
        both = min(low, block.majority), max(high, block.majority)
        if low == high or both[1] - both[0] <= 3 * (high - low):
            low, high = both
    margin = 0.06 * (high - low) or max(0.01, 0.02 * abs(high))
    failed = min(4, max(entry.summary.failed for entry in block.entries))
    return low - margin * (1 + 0.8 * failed), high + margin  # room for the crosses of runs that failed


def _counts(entry: Entry, number: int) -> list[str]:
    counts = ((entry.summary.failed, "failed"), (entry.missing, "missing"))
    without = ", ".join(f"{count} {word}" for count, word in counts if count)
    return [f"n = {number}", without] if without else [f"n = {number}"]


def _caption(block: Block, points: dict[str, list[Point]]) -> str:
    means = {method: sum(p.value for p in found) / len(found) for method, found in points.items() if found}
    ends = list(dict.fromkeys((max(means.values()), min(means.values()))))
    said = [
        "; ".join(
            f"{word} mean: {_who([m for m in means if means[m] == end], points)}, {score(end)}"
            for word, end in zip(("Highest", "lowest"), ends, strict=False)
        )
    ]
    said.append("Each mark is one seed's run, the bar their mean, the line their range; one seed has neither")
    if block.kind == "mean":
        said.append("A seed counts where every task has a score of it")
    if any(point.low for found in points.values() for point in found):
        said.append("Hollow marks are runs no better than always the same answer")
    if any(entry.summary.failed for entry in block.entries):
        said.append("Crosses at the left edge are runs that failed: they have no score and are in no mean")
    return ". ".join(said) + "."


def _who(methods: Sequence[str], points: dict[str, list[Point]]) -> str:
    return listed([f"{method} (n = {len(points[method])})" for method in methods])


def _table(block: Block, points: dict[str, list[Point]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("method", "n", "mean", "min", "max", "failed", "missing", "scores by seed")]
    for entry in block.entries:
        values = [point.value for point in points[entry.method]]
        mean = sum(values) / len(values) if values else None
        several = len(values) > 1
        ends = (score(min(values)), score(max(values))) if several else (score(None), score(None))
        by_seed = ", ".join(f"{point.seed}: {score(point.value)}" for point in points[entry.method])
        failed, missing = str(entry.summary.failed), str(entry.missing)
        rows.append((entry.method, str(len(values)), score(mean), *ends, failed, missing, by_seed or score(None)))
    return rows
