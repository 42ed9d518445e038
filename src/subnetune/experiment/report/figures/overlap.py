"""How much the entries that runs chose are the same: a triangle of Jaccard indices per group of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subnetune.experiment.report.figures.canvas import SMALL, WIDTH, settings, sheet, short, width_of, write
from subnetune.experiment.report.figures.figure import Figure, finish
from subnetune.experiment.report.figures.found import number
from subnetune.experiment.report.figures.heat import squares
from subnetune.experiment.report.figures.palette import MUTED
from subnetune.experiment.report.numbers import plain, train_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Group = Mapping[str, Any]
Square = list[list[float | None]]
_MOST_LABELS = 10
_MOST_CELLS = 150  # in one drawing
_CELL = 23.0  # how high a square is, in points
_WORDS = {
    "seeds": ("children of different seeds", "seed", "method"),
    "tasks": ("children of different tasks", "task", "method"),
    "methods": ("children of different methods", "method", "task"),
}


def overlap_figures(overlaps: Mapping[str, Any]) -> list[Figure]:
    """Return the plots of `subnetune.experiment.analysis.overlaps`: what differs between the runs (seeds, tasks or
    methods), on each task and train size; where there are many panels, several plots."""
    found: dict[tuple[str, str, int | None], list[Group]] = {}
    for group in overlaps.get("groups") or ():
        if group.get("between") in _WORDS and len(group["labels"]) > 1 and _pairs(_square(group, "jaccard")):
            task = str(group.get("task") or "") if group["between"] == "seeds" else ""
            found.setdefault((group["between"], task, group.get("train_size")), []).append(group)
    return [
        _plot(key, part, index)
        for key, groups in found.items()
        for index, part in enumerate(_in_parts(groups))
    ]  # fmt: skip


def _in_parts(groups: Sequence[Group]) -> list[list[Group]]:
    """Return the groups in order, in parts that are not too large for one drawing."""
    parts: list[list[Group]] = []
    room = 0
    for group in groups:
        cells = min(len(group["labels"]), _MOST_LABELS) ** 2
        if not parts or cells > room:
            parts.append([])
            room = _MOST_CELLS
        parts[-1].append(group)
        room -= cells
    return parts


def _square(group: Group, name: str) -> Square:
    table = group.get(name) or []
    return [[number(value) for value in line[:_MOST_LABELS]] for line in table[:_MOST_LABELS]]


def _pairs(square: Square) -> list[float]:
    """Return what stands below the diagonal, as far as it is known."""
    return [value for i, line in enumerate(square) for value in line[:i] if value is not None]


def _plot(key: tuple[str, str, int | None], groups: Sequence[Group], index: int) -> Figure:
    between, task, size = key
    what, thing, other = _WORDS[between]
    most = max(min(len(group["labels"]), _MOST_LABELS) for group in groups)
    columns = 2 if most <= 5 and len(groups) > 1 else 1
    rows = -(-len(groups) // columns)
    named = [_names([short(str(label), 18) for label in group["labels"][:_MOST_LABELS]]) for group in groups]
    left = 14 + width_of([name for long, _ in named for name in long], SMALL)
    gap = 18 + left if columns == 2 else 0.0
    right = 10.0 if columns == 2 else max(10.0, WIDTH - left - most * 52.0)
    where = f"{task}, " if task else ""
    title = f"{where}{train_size(size)} training examples: overlap of {what}"
    with settings():
        drawing, panels = sheet(
            24 + rows * _CELL * most + (rows - 1) * 66 + 44, rows=rows, columns=columns,
            left=left, right=right, top=24, bottom=44, gap=(gap, 66),
        )  # fmt: skip
        for axes in panels[len(groups) :]:
            drawing.delaxes(axes)
        for axes, group, (long, brief) in zip(panels, groups, named, strict=False):
            _panel(axes, group, long, brief, f"{group.get(other) or ''}", columns)
            axes.set_xlabel(thing)
        return finish(
            drawing,
            name=("overlap", between, task, str(size or "all"), str(index)),
            title=title,
            caption=_caption(groups, what, other),
            table=_table(groups, thing, other),
        )


def _names(labels: list[str]) -> tuple[list[str], list[str]]:
    """Return the labels of rows and of columns: numbers stand for what is too long for a column."""
    if all(len(label) <= 5 for label in labels):
        return labels, labels
    return [f"{i}. {label}" for i, label in enumerate(labels, 1)], [str(i) for i in range(1, len(labels) + 1)]


def _panel(axes: Axes, group: Group, long: Sequence[str], brief: Sequence[str], head: str, columns: int) -> None:
    jaccard, chance = _square(group, "jaccard"), _square(group, "chance")
    lower: Square = [[value if x < y else None for x, value in enumerate(line)] for y, line in enumerate(jaccard)]
    by_chance = _pairs(chance)
    alike = _alike(by_chance)
    level = f" (chance {plain(sum(by_chance) / len(by_chance))})" if alike and by_chance else ""
    if alike:  # nothing stands above the diagonal: the first row and the last column are empty
        lower, long, brief = [line[:-1] for line in lower[1:]], long[1:], brief[:-1]
    squares(axes, lower, lambda value: plain(value), rows=long, columns=brief, most=1.0)
    axes.set_title(short(head, (30 if columns == 2 else 60) - len(level)) + level, fontsize=SMALL)
    for y, line in enumerate([] if alike else chance):
        for x, value in enumerate(line):
            if x > y and value is not None:
                write(axes, x, y, plain(value), ha="center", va="center_baseline", color=MUTED, style="italic")


def _alike(by_chance: Sequence[float]) -> bool:
    return not by_chance or max(by_chance) - min(by_chance) < 0.03


def _caption(groups: Sequence[Group], what: str, other: str) -> str:
    said = []
    for group in groups:
        values, levels = _pairs(_square(group, "jaccard")), _pairs(_square(group, "chance"))
        mean = sum(values) / len(values)
        level = f", {plain(sum(levels) / len(levels))} by chance" if levels else ""
        name = str(group.get(other) or "")
        said.append(f"{name + ': ' if name else ''}{plain(mean)}{level}")
    text = [f"Mean Jaccard index of the entries that {what} have selected: {'; '.join(said[:6])}"]
    if len(said) > 6:
        text[0] += f"; and {len(said) - 6} more"
    text.append(
        "1 is the same choice, 0 nothing in common; chance is two random choices of the same sizes in each tensor"
    )
    if any(not _alike(_pairs(_square(group, "chance"))) for group in groups):
        text[-1] += ", in italics above the diagonal where it differs from pair to pair"
    if any(len(group["labels"]) > _MOST_LABELS for group in groups):
        text.append(f"The first {_MOST_LABELS} are shown")
    return ". ".join(text) + "."


def _table(groups: Sequence[Group], thing: str, other: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(other, f"one {thing}", f"other {thing}", "Jaccard", "chance")]
    for group in groups:
        labels, chance = [str(label) for label in group["labels"]], _square(group, "chance")
        for y, line in enumerate(_square(group, "jaccard")):
            for x, value in enumerate(line[:y]):
                if value is not None:
                    level = chance[y][x] if y < len(chance) and x < len(chance[y]) else None
                    rows.append((str(group.get(other) or ""), labels[x], labels[y], plain(value, 4), plain(level, 4)))
    return rows
