"""Cost against quality: which methods no other one beats in both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from subnetune.experiment.comparison import Block, Comparison, Entry
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.figures.canvas import SMALL, WIDTH, settings, sheet, short
from subnetune.experiment.report.figures.costs import byte_ticks, limits, time_ticks
from subnetune.experiment.report.figures.figure import Figure, finish
from subnetune.experiment.report.figures.labels import Box, place
from subnetune.experiment.report.figures.palette import INK, MUTED, colour_of, marker_of
from subnetune.experiment.report.figures.runs import listed, numbers_of
from subnetune.experiment.report.numbers import duration, score, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Ticks = Callable[[float, float], tuple[list[float], list[str]]]
_HIGH = 170.0  # of a panel, in points
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 58.0, 16.0, 12.0, 46.0, 56.0


class _Cost(NamedTuple):
    label: str
    word: str
    of: Callable[[Entry], float | None]
    ticks: Ticks


_COSTS = (
    _Cost("wall time of a run", "time", lambda entry: entry.seconds, time_ticks),
    _Cost("peak memory beyond the start of a run", "memory", lambda entry: entry.peak_memory_bytes, byte_ticks),
    _Cost("size of the delta file", "delta", lambda entry: entry.delta_bytes, byte_ticks),
)


def pareto(comparison: Comparison, rows: Sequence[Row]) -> list[Figure]:
    """Return for each task and train size a plot of the mean score against mean time, peak memory and delta bytes.

    Methods that no other one beats in both are on the front: filled marks on a line. Costs that are not known (0, or
    missing) are left out, and so are tasks on which fewer than two methods have a score.
    """
    found = []
    for block in comparison.blocks:
        entries = [entry for entry in block.entries if entry.summary.mean is not None]
        costs = [cost for cost in _COSTS if sum(_drawn(cost, entry) for entry in entries) > 1]
        if block.kind == "task" and costs:
            found.append(_plot(block, entries, costs, rows))
    return found


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names whose (cost, quality) no other point beats: none has a lower cost and at least the quality, or
    a higher quality at no higher cost. By rising cost; equal points are all on it."""
    best, found = float("-inf"), list[str]()
    cheapest: dict[float, float] = {}
    for cost, quality in points.values():
        cheapest[cost] = max(quality, cheapest.get(cost, float("-inf")))
    for cost, quality in sorted(cheapest.items()):
        if quality > best:
            best = quality
            found += [name for name, point in points.items() if point == (cost, quality)]
    return found


def _drawn(cost: _Cost, entry: Entry) -> bool:
    return (cost.of(entry) or 0) > 0  # an axis of powers has no place for 0


def _plot(block: Block, entries: Sequence[Entry], costs: Sequence[_Cost], rows: Sequence[Row]) -> Figure:
    numbers = numbers_of(block, rows)
    height = _TOP + len(costs) * _HIGH + (len(costs) - 1) * _GAP + _BOTTOM
    fronts: dict[str, list[str]] = {}
    with settings():
        drawing, panels = sheet(
            height, rows=len(costs), left=_LEFT, right=_RIGHT, top=_TOP, bottom=_BOTTOM, gap=(0, _GAP)
        )
        for axes, cost in zip(panels, costs, strict=True):
            points = {
                entry.method: (cost.of(entry) or 0.0, entry.summary.mean)
                for entry in entries
                if _drawn(cost, entry) and entry.summary.mean is not None
            }
            fronts[cost.word] = front(points)
            _panel(axes, points, fronts[cost.word], numbers, cost)
            axes.set_ylabel(f"mean {block.metric}" if len(block.metric) < 16 else "mean score")
        return finish(
            drawing,
            name=("cost", block.task, str(block.train_size or "all")),
            title=f"{block.title}: cost against {block.metric}",
            caption=_caption(fronts, entries, block, rows),
            table=_table(entries, fronts),
        )


def _panel(
    axes: Axes, points: Mapping[str, tuple[float, float]], best: Sequence[str], numbers: Mapping[str, int], cost: _Cost
) -> None:
    left, right = limits([x for x, _ in points.values()])
    values = [y for _, y in points.values()]
    room = 0.14 * (max(values) - min(values)) or max(0.01, 0.02 * abs(values[0]))
    low, high = min(values) - room, max(values) + room
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    ticks, words = cost.ticks(left, right)
    axes.set_xticks(ticks, labels=words)
    axes.set_xticks([], minor=True)
    axes.locator_params(axis="y", nbins=5)
    axes.set_xlabel(f"{cost.label} (logarithmic)")
    corners = [points[name] for name in best]
    axes.plot(
        [*(x for x, _ in corners), right], [*(y for _, y in corners), corners[-1][1]],
        drawstyle="steps-post", color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)),
    )  # fmt: skip
    for name, (x, y) in points.items():
        colour = colour_of(numbers[name])
        axes.plot(
            [x], [y], linestyle="none", marker=marker_of(numbers[name]), markersize=8.0, markeredgecolor=colour,
            markeredgewidth=1.5, markerfacecolor=colour if name in best else "none", clip_on=False, zorder=3,
        )  # fmt: skip
    wide = WIDTH - _LEFT - _RIGHT
    origin = axes.transAxes.transform((0, 0))

    def in_points(at: tuple[float, float]) -> tuple[float, float]:
        x, y = axes.transData.transform(at) - origin
        return float(x), float(y)

    steps: list[Box] = []
    for (x, y), (next_x, next_y) in itertools.pairwise([*map(in_points, corners), (wide, in_points(corners[-1])[1])]):
        steps += [(x, y - 1, next_x, y + 1), (next_x - 1, y, next_x + 1, next_y)]
    texts = [short(name, 26) for name in points]
    bounds = (2, 2, wide + _RIGHT - 2, _HIGH + 8)
    places = place([in_points(point) for point in points.values()], texts, bounds, SMALL, steps)
    for point, text, where in zip(points.values(), texts, places, strict=True):
        axes.annotate(
            text, point, xytext=(where.dx, where.dy), textcoords="offset points", ha=where.align, va="center",
            fontsize=SMALL, color=INK, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4}
            if where.far else None,
        )  # fmt: skip


def _caption(fronts: Mapping[str, Sequence[str]], entries: Sequence[Entry], block: Block, rows: Sequence[Row]) -> str:
    always = [entry.method for entry in entries if all(entry.method in names for names in fronts.values())]
    said = [f"On the front of every cost: {listed(always)}" if always else "No method is on the front of every cost"]
    said.append("Filled marks on the dashed line are those that none beats in both; to the left is cheaper")
    absent = {cost.word: [e.method for e in entries if not _drawn(cost, e)] for cost in _COSTS if cost.word in fronts}
    said += [f"Not in the panel of {word}, because unknown or 0: {listed(who)}" for word, who in absent.items() if who]
    said.append("Scores and costs are means over seeds")
    if "time" in fronts:
        said[-1] += ", times medians, as measured, whatever else the machine did"
    cheap = {name for names in fronts.values() for name in names}
    nothing = [e.method for e in entries if e.method in cheap and e.summary.n and e.summary.at_majority == e.summary.n]
    if nothing:
        said.append(
            f"On a front, but in no run better than always the same answer, which costs nothing: {listed(nothing)}"
        )
    mixed = mixed_machines(
        [row for row in rows if (row.group.task, row.group.train_size) == (block.task, block.train_size)]
    )
    if mixed and "time" in fronts:
        said.append(f"Times are not of one kind: {mixed}; differences between them say little")
    return ". ".join(said) + "."


def mixed_machines(rows: Sequence[Row]) -> str:
    """Return in words why the rows' seconds may not be compared ("" where nothing is known to speak against it)."""
    done = [row.result for row in rows if row.result is not None and row.state == "done"]
    said = []
    for name, noun in (("device", "devices"), ("machine", "machines"), ("threads", "numbers of threads")):
        kinds = sorted({str(result.environment[name]) for result in done if name in result.environment})
        if len(kinds) > 1:
            said.append(f"runs had different {noun} ({', '.join(kinds)})")
    return " and ".join(said)


def _table(entries: Sequence[Entry], fronts: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("method", "mean", "time", "peak memory", "delta", "on the front of")]
    for entry in entries:
        on = ", ".join(word for word, names in fronts.items() if entry.method in names)
        rows.append(
            (entry.method, score(entry.summary.mean), duration(entry.seconds), size(entry.peak_memory_bytes),
             size(entry.delta_bytes or None), on or "–")
        )  # fmt: skip
    return rows
