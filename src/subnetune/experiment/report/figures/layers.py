"""What became of each layer and role: how much of it trains, how far it moved, what its representations still say."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subnetune.experiment.report.figures.canvas import SMALL, settings, sheet, short, width_of, write
from subnetune.experiment.report.figures.figure import Figure, finish
from subnetune.experiment.report.figures.found import (
    Lines,
    averaged,
    in_order,
    layer_tick,
    number,
    ratio,
    rows_in,
    thinned,
)
from subnetune.experiment.report.figures.heat import squares
from subnetune.experiment.report.figures.lines import named_lines, room_for
from subnetune.experiment.report.figures.palette import MUTED
from subnetune.experiment.report.figures.runs import listed
from subnetune.experiment.report.numbers import NONE, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> the analysis of each run
_HIGH, _GAP, _TOP, _BOTTOM = 165.0, 54.0, 28.0, 44.0
_SQUARE = 23.0  # how high a square is, in points


def layer_figures(found: Found, numbers: Mapping[str, int], where: str, name: tuple[str, str]) -> list[Figure]:
    """Return the plots of `geometry.json` by layer and by role, and of `cka.json`, as far as runs have them."""
    density = _lines(found, "geometry", "layers", lambda row: ratio(row, "selected", "entries"))
    distance = _lines(found, "geometry", "layers", lambda row: ratio(row, "distance", "norm"))
    plots = [_geometry(density, distance, found, numbers, where, name), _roles(found, where, name)]
    return [plot for plot in (*plots, _similarity(found, numbers, where, name)) if plot is not None]


def _lines(found: Found, part: str, table: str, value: Callable[[Mapping[str, Any]], float | None]) -> Lines:
    lines = {
        method: averaged([{str(row["name"]): value(row) for row in rows_in(run, part, table)} for run in runs])
        for method, runs in found.items()
    }
    return {method: values for method, values in lines.items() if values}


def _over(found: Found, part: str) -> str:
    """Return how many runs of each method a plot of a part of the analysis is over."""
    counts = {sum(part in run for run in runs) for runs in found.values()} - {0}
    low, high = min(counts, default=0), max(counts, default=0)
    return "One run per method" if high == 1 else f"Means over seeds, n = {low if low == high else f'{low} to {high}'}"


def _values(lines: Lines) -> Iterator[float]:
    return (value for values in lines.values() for value in values.values())


def _geometry(
    density: Lines, distance: Lines, found: Found, numbers: Mapping[str, int], where: str, name: tuple[str, str]
) -> Figure | None:
    shown = [
        (lines, label)
        for lines, label in ((density, "selected"), (distance, "distance / norm"))
        if any(value > 0 for value in _values(lines))
    ]
    if not shown:
        return None
    title = "how much of each layer trains, and how far it moved"
    if len(shown) == 1:
        title = "how much of each layer trains" if shown[0][0] is density else "how far each layer moved"
    said = []
    if distance in [lines for lines, _ in shown]:
        far = {method: max(values, key=lambda layer: values[layer]) for method, values in distance.items()}
        most = max(far, key=lambda method: distance[method][far[method]])
        what = {"other": "what lies in no layer, such as a pooler (other)"}.get(far[most], far[most])
        said.append(
            f"{most} moves most: {plain(100 * distance[most][far[most]], 1)} % of the norm of {what}. "
            "Distance is the Euclidean norm of the change over that of the base's weights; a new head has no base"
        )
    if density in [lines for lines, _ in shown]:
        said.append("Selected is the share of a layer's entries that train: all of them, or those of a fixed mask")
        without = [method for method in found if method not in density]
        if without:
            said.append(f"What trains changes from step to step, or is not known: {listed(without)}")
    if any(_scale(list(_values(lines)), whole=False)[2] and min(_values(lines)) == 0 for lines, _ in shown):
        said.append("Marks on the lower edge are 0")
    said.append(_over(found, "geometry"))
    return _panels(shown, numbers, f"{where}: {title}", ". ".join(said) + ".", ("layers", *name))


def _similarity(found: Found, numbers: Mapping[str, int], where: str, name: tuple[str, str]) -> Figure | None:
    cka = _lines(found, "cka", "layers", lambda row: number(row.get("cka")))
    rank = _lines(found, "cka", "layers", lambda row: number(row.get("effective_rank_tuned")))
    before = _lines(found, "cka", "layers", lambda row: number(row.get("effective_rank_base")))
    shown = [(lines, label) for lines, label in ((cka, "CKA to the base"), (rank, "effective rank")) if lines]
    if not shown:
        return None
    said = []
    if cka:
        least = {method: min(values, key=lambda layer: values[layer]) for method, values in cka.items()}
        most = min(least, key=lambda method: cka[method][least[method]])
        said.append(f"{most} leaves the base furthest: {plain(cka[most][least[most]], 3)} at {least[most]}")
        said.append("CKA is 1 where a layer says the same of the examples as before the run")
    if rank:
        said.append("The effective rank counts the directions that a layer's representations use: a fall is a collapse")
    if rank and before:
        said.append("The dashed grey line is the base's")
    examples = {
        int(run["cka"]["examples"]) for runs in found.values() for run in runs if run.get("cka", {}).get("layers")
    }
    if len(examples) == 1:
        said.append(f"On {examples.pop()} examples")
    said.append(_over(found, "cka"))
    reference = next(iter(before.values()), None)
    return _panels(
        shown, numbers, f"{where}: representations against the base's", ". ".join(said) + ".", ("cka", *name), reference
    )


def _panels(
    shown: Sequence[tuple[Lines, str]],
    numbers: Mapping[str, int],
    title: str,
    caption: str,
    name: tuple[str, ...],
    reference: Mapping[str, float] | None = None,
) -> Figure:
    layers = in_order(layer for lines, _ in shown for values in lines.values() for layer in values)
    place = {layer: index for index, layer in enumerate(layers)}
    methods = list(dict.fromkeys(method for lines, _ in shown for method in lines))
    high = max(_HIGH, 14.0 * len(methods) + 10)
    height = _TOP + len(shown) * high + (len(shown) - 1) * _GAP + _BOTTOM
    with settings():
        drawing, panels = sheet(
            height, rows=len(shown), left=52, right=room_for(methods), top=_TOP, bottom=_BOTTOM, gap=(0, _GAP)
        )
        for axes, (lines, label) in zip(panels, shown, strict=True):
            points = {m: [(place[x], values[x]) for x in layers if x in values] for m, values in lines.items()}
            axes.set_xlim(-0.25, len(layers) - 0.75)
            base = reference if reference is not None and label == "effective rank" else {}
            values = [*(y for found in points.values() for _, y in found), *base.values()]
            low, top, log = _scale(values, whole=label.startswith("CKA"))
            if log:
                axes.set_yscale("log")
                points = {m: [(x, max(y, low)) for x, y in found] for m, found in points.items()}
                _decades(axes, low, top)
            axes.set_ylim(low, top)
            if not log:
                axes.locator_params(axis="y", nbins=5)
            axes.set_xticks(range(len(layers)), labels=thinned([layer_tick(layer) for layer in layers]))
            axes.set_title(label + (" (logarithmic)" if log else ""), fontweight="normal")
            if base:
                there = [x for x in layers if x in base]
                dashes = (0, (3, 2))
                axes.plot(
                    [place[x] for x in there], [base[x] for x in there], color=MUTED, linewidth=1.2, linestyle=dashes
                )
            named_lines(axes, points, numbers, high)
        panels[-1].set_xlabel("layer")
        table = _table([(label, lines) for lines, label in shown], layers)
        return finish(drawing, name=name, title=title, caption=caption, table=table)


def _scale(values: Sequence[float], *, whole: bool) -> tuple[float, float, bool]:
    """Return the ends of the axis, and whether it is logarithmic: where the values differ by more than 30 times.
    Values of 0 then stand on the lower edge. `whole` values are shares of which 1 is all."""
    high = max(values)
    if whole:  # up to 1; from a tenth below the lowest, so that what is left of 1 can be seen
        low = math.floor(10 * min(values) - 0.2) / 10
        return low, max(1.0, high) + 0.03 * (1 - low), False
    positive = [value for value in values if value > 0]
    if positive and max(positive) > 30 * min(positive):
        return min(positive) / 2, high * 1.5, True
    return 0.0, high * 1.08 if high > 0 else 1.0, False


def _decades(axes: Axes, low: float, high: float) -> None:
    ticks = [step * 10.0**power for power in range(-12, 7) for step in (1, 3)]
    inside = [tick for tick in ticks if low <= tick <= high]
    inside = [tick for tick in inside if len(inside) <= 5 or f"{tick:e}"[0] == "1"]
    inside = inside[:: -(-len(inside) // 5)]
    axes.set_yticks(inside, labels=[f"{tick:g}" for tick in inside])
    axes.set_yticks([], minor=True)


def _roles(found: Found, where: str, name: tuple[str, str]) -> Figure | None:
    """Tables of squares: methods x roles, of what trains and of how far it moved, in percent."""
    shown = [
        (lines, label)
        for lines, label in (
            (_lines(found, "geometry", "roles", lambda row: ratio(row, "selected", "entries")), "selected, %"),
            (_lines(found, "geometry", "roles", lambda row: ratio(row, "distance", "norm")), "distance / norm, %"),
        )
        if any(value > 0 for value in _values(lines))
    ]
    if not shown:
        return None
    roles = list(dict.fromkeys(role for lines, _ in shown for values in lines.values() for role in values))
    heights = [_SQUARE * len(lines) for lines, _ in shown]
    left = 14 + width_of([short(method, 20) for lines, _ in shown for method in lines], SMALL)
    with settings():
        drawing, panels = sheet(
            54 + sum(heights) + 56 * (len(shown) - 1), rows=len(shown), left=left, right=8, top=28, bottom=26,
            gap=(0, 56), shares=heights,
        )  # fmt: skip
        for axes, (lines, label) in zip(panels, shown, strict=True):
            values = [[lines[m].get(role) for role in roles] for m in lines]
            percent = [[None if v is None else 100 * v for v in line] for line in values]
            most = max(v for line in percent for v in line if v is not None)
            squares(
                axes, percent, _percent, rows=[short(m, 20) for m in lines],
                columns=[{"embeddings": "embed."}.get(role, short(role, 9)) for role in roles], most=most,
            )  # fmt: skip
            axes.set_title(label, fontweight="normal")
            for y, line in enumerate(percent):
                for x, value in enumerate(line):
                    if value is None:
                        write(axes, x, y, NONE, ha="center", va="center_baseline", color=MUTED)
        return finish(
            drawing,
            name=("roles", *name),
            title=f"{where}: what trains and what moves, by role",
            caption="Percent of the entries of each role that train, and how far the role moved: the norm of the "
            f"change over that of the base's weights. {_over(found, 'geometry')}; a dash is what a run does not have.",
            table=_table([(label, lines) for lines, label in shown], roles, 100.0),
        )


def _percent(value: float) -> str:
    if value == 0 or value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.995 else f"{value:.2g}" if value >= 0.001 else "<0.001"


def _table(shown: Sequence[tuple[str, Lines]], names: Sequence[str], factor: float = 1.0) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("method", "what", *names)]
    for label, lines in shown:
        for method, values in lines.items():
            cells = (f"{factor * values[name]:.4g}" if name in values else NONE for name in names)
            rows.append((method, label, *cells))
    return rows
