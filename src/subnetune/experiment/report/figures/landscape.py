"""Slices of the loss surface around what runs found: along lines, and in a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from subnetune.experiment.report.figures.canvas import SMALL, TEXT, WIDTH, settings, sheet, short, write
from subnetune.experiment.report.figures.figure import Figure, finish
from subnetune.experiment.report.figures.found import number, rows_in
from subnetune.experiment.report.figures.heat import opacity
from subnetune.experiment.report.figures.lines import named_lines, room_for
from subnetune.experiment.report.figures.palette import INK, MUTED, SERIES
from subnetune.experiment.report.numbers import NONE, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Sequence[Mapping[str, Any]]]  # method -> the analysis of each run
_HIGH, _GAP, _TOP, _BOTTOM = 165.0, 72.0, 28.0, 44.0
_LEVELS = 7
# Where on a line the run's solution lies, and what its ends are called.
_SOLUTION = {"base to tuned": 1.0}
_AXES = {
    "base to tuned": "0: base, 1: solution",
    "random, filter-normalised": "0: solution, 1: a step as long as the weights",
}


def surface_figures(found: Found, numbers: Mapping[str, int], where: str, name: tuple[str, str]) -> list[Figure]:
    """Return the plots of `surface.json`: losses along each direction, and planes; of each method's first run that
    has them."""
    directions: dict[str, dict[str, Mapping[str, Any]]] = {}
    planes: dict[str, Mapping[str, Any]] = {}
    for method, runs in found.items():
        for run in runs:
            for row in rows_in(run, "surface", "directions"):
                if len(_points(row)) > 1:
                    directions.setdefault(str(row["name"]), {}).setdefault(method, row)
            plane = run.get("surface", {}).get("plane")
            if isinstance(plane, dict) and _grid(plane) is not None:
                planes.setdefault(method, plane)
    # A grid of methods rarely has more than one reason, and each method's run the same one.
    reasons = [
        run["surface"].get("why", {}).get("plane") for runs in found.values() for run in runs if "surface" in run
    ]
    without = [] if planes else list(dict.fromkeys(str(reason) for reason in reasons if reason))
    figures = [_slices(directions, numbers, where, name, without)] if directions else []
    return figures + ([_planes(planes, where, name)] if planes else [])


def _points(row: Mapping[str, Any], what: str = "loss") -> list[tuple[float, float]]:
    pairs = zip(row.get("alphas") or (), row.get(what) or (), strict=False)
    known = [(number(x), number(y)) for x, y in pairs]
    return sorted((x, y) for x, y in known if x is not None and y is not None)


def _slices(
    directions: Mapping[str, Mapping[str, Mapping[str, Any]]],
    numbers: Mapping[str, int],
    where: str,
    name: tuple[str, str],
    without: Sequence[str],
) -> Figure:
    methods = list(dict.fromkeys(method for lines in directions.values() for method in lines))
    high = max(_HIGH, 14.0 * len(methods) + 10)
    table: list[tuple[str, ...]] = [("direction", "method", "loss by place", "score by place")]
    with settings():
        drawing, panels = sheet(
            _TOP + len(directions) * high + (len(directions) - 1) * _GAP + _BOTTOM, rows=len(directions), left=52,
            right=room_for(methods), top=_TOP, bottom=_BOTTOM, gap=(0, _GAP),
        )  # fmt: skip
        for axes, (direction, rows) in zip(panels, directions.items(), strict=True):
            lines = {method: _points(row) for method, row in rows.items()}
            places = [x for points in lines.values() for x, _ in points]
            losses = [y for points in lines.values() for _, y in points]
            axes.set_xlim(min(places), max(places))
            axes.set_ylim(min(0.0, min(losses)), _roof(losses))
            axes.axvline(_SOLUTION.get(direction, 0.0), color=MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
            axes.locator_params(axis="x", nbins=6)
            axes.locator_params(axis="y", nbins=5)
            axes.set_title(short(direction, 50), fontweight="normal")
            axes.set_xlabel(_AXES.get(direction, "place"))
            axes.set_ylabel("loss")
            named_lines(axes, lines, numbers, high, marks=False)
            for method, row in rows.items():
                metric = str(row.get("metric_name") or "score")
                scores = [f"{x:g}: {plain(y, 3)}" for x, y in _points(row, "metric")]
                table.append((direction, method, ", ".join(f"{x:g}: {plain(y, 3)}" for x, y in lines[method]),
                              f"{metric} {', '.join(scores)}" if scores else NONE))  # fmt: skip
        caption = (
            "The loss of one run per method on lines through its solution (the dashed mark). A flat valley is a "
            "solution that small changes do not spoil. The base has the tuned head."
        ) + "".join(f" No plane: {reason}." for reason in without)
        return finish(
            drawing, name=("surface", *name), title=f"{where}: loss around the solutions", caption=caption, table=table
        )


def _roof(losses: Sequence[float]) -> float:
    """Return where the axis ends: a line far from a solution may be many times as high as all that matters."""
    usual, high = float(np.quantile(losses, 0.9)), max(losses)
    return 1.05 * high + 1e-9 if high <= 3 * usual else 1.6 * usual


def _grid(plane: Mapping[str, Any]) -> tuple[Any, Any, Any] | None:
    """Return x, y and losses (rows are y), or None where they are no plane; losses that are not known are NaN."""
    try:
        x, y = (np.asarray([float(v) for v in plane[key]]) for key in ("x", "y"))
        z = np.asarray([[np.nan if v is None else float(v) for v in line] for line in plane["loss"]])
    except (KeyError, TypeError, ValueError):
        return None
    fits = z.ndim == 2 and z.shape == (len(y), len(x)) and min(z.shape) > 1 and np.isfinite(z).any()
    return (x, y, z) if fits else None


def _planes(planes: Mapping[str, Mapping[str, Any]], where: str, name: tuple[str, str]) -> Figure:
    grids = {method: grid for method, plane in planes.items() if (grid := _grid(plane)) is not None}
    losses = np.concatenate([z[np.isfinite(z)] for _, _, z in grids.values()])
    low, high = float(losses.min()), _roof([float(loss) for loss in losses])
    levels = np.linspace(low, max(high, low + 1e-6), _LEVELS + 1)
    columns = min(len(grids), 3 if len(grids) > 4 else 2)
    rows = -(-len(grids) // columns)
    tall = 128.0 if columns == 3 else 150.0
    table: list[tuple[str, ...]] = [("method", "lowest loss", "at", "loss at the solution", "highest loss")]
    with settings():
        drawing, panels = sheet(
            26 + rows * tall + (rows - 1) * 30 + 88, rows=rows, columns=columns, left=46, right=10, top=26, bottom=88,
            gap=(14, 30), share=True,
        )  # fmt: skip
        for axes in panels[len(grids) :]:
            drawing.delaxes(axes)
        for index, (axes, (method, (x, y, z))) in enumerate(zip(panels, grids.items(), strict=False)):
            _plane(axes, x, y, np.ma.masked_invalid(z), levels)
            axes.set_title(short(method, 18 if columns == 3 else 28))
            axes.tick_params(labelbottom=index + columns >= len(grids))
            where_low = np.unravel_index(int(np.nanargmin(z)), z.shape)
            solution = z[int(np.abs(y).argmin()), int(np.abs(x - 1.0).argmin())]
            table.append((method, plain(float(np.nanmin(z)), 3), f"({x[where_low[1]]:g}, {y[where_low[0]]:g})",
                          plain(float(solution), 3), plain(float(np.nanmax(z)), 3)))  # fmt: skip
        drawing.text(0.5, 50 / drawing.get_figheight() / 72, "from the base (0) to the solution (1)", ha="center",
                     va="bottom", fontsize=TEXT)  # fmt: skip
        drawing.text(0.004, 0.56, "across", rotation=90, ha="left", va="center", fontsize=TEXT)
        _key(drawing, levels)
        caption = (
            "The loss in the plane of the way from the base and a random direction, on a part of the examples; the "
            "stronger the colour, the higher. The ring is the base with the tuned head, the dot the solution. One run "
            "per method."
        )
        return finish(
            drawing,
            name=("plane", *name),
            title=f"{where}: the plane around the solutions",
            caption=caption,
            table=table,
        )


def _plane(axes: Axes, x: Any, y: Any, z: Any, levels: Any) -> None:
    from matplotlib.colors import to_rgb

    shades = [(*to_rgb(SERIES[0]), opacity(index / (_LEVELS - 1))) for index in range(_LEVELS)]
    axes.contourf(x, y, z, levels=levels, colors=[*shades, shades[-1]], extend="max")
    inside = [level for level in levels[1:] if z.min() < level < z.max()]  # matplotlib warns where there is none
    if inside:
        axes.contour(x, y, z, levels=inside, colors=[MUTED], linewidths=0.5, alpha=0.7)
    axes.plot([0], [0], linestyle="none", marker="o", markersize=7, markerfacecolor="none", markeredgecolor=INK)
    axes.plot([1], [0], linestyle="none", marker="o", markersize=7, color=INK)
    axes.grid(visible=False)
    axes.locator_params(nbins=4)


def _key(drawing: Any, levels: Any) -> None:
    """Draw what each shade means, along the lower edge."""
    axes = drawing.add_axes(
        (46 / WIDTH, 24 / drawing.get_figheight() / 72, 1 - 56 / WIDTH, 12 / drawing.get_figheight() / 72)
    )
    from matplotlib.patches import Rectangle

    axes.set_xlim(0, _LEVELS)
    axes.set_ylim(0, 1)
    axes.axis("off")
    for index in range(_LEVELS):
        axes.add_patch(
            Rectangle((index, 0), 1, 1, facecolor=SERIES[0], alpha=opacity(index / (_LEVELS - 1)), linewidth=0)
        )
        write(axes, index, -0.35, plain(float(levels[index])), ha="left" if index == 0 else "center", va="top",
              fontsize=SMALL)  # fmt: skip
    write(axes, -0.12, 0.5, "loss", ha="right", va="center", fontsize=SMALL)
    write(axes, _LEVELS, -0.35, "more", ha="right", va="top", fontsize=SMALL)
