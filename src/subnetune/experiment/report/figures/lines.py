"""Lines of several methods in one panel, each named at its right end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subnetune.experiment.report.figures.canvas import SMALL, short, width_of
from subnetune.experiment.report.figures.labels import spread
from subnetune.experiment.report.figures.palette import INK, MUTED, colour_of, dash_of, marker_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 13.0  # points between the names
Points = Sequence[tuple[float, float]]  # (x, y), by rising x


def room_for(names: Sequence[str]) -> float:
    """Return how wide the margin to the right of the panel must be, in points."""
    return 34 + width_of([short(name, 20) for name in names], SMALL)


def named_lines(
    axes: Axes, lines: Mapping[str, Points], numbers: Mapping[str, int], high: float, marks: bool = True
) -> None:
    """Draw the lines, and their names in the right margin, joined to the lines' ends.

    The limits of the axes must stand; `high` is the height of the panel in points.
    """
    low_y, high_y = axes.get_ylim()
    edge = axes.get_xlim()[1]
    to_points = axes.get_yaxis_transform().transform
    wide = float(to_points((1, low_y))[0] - to_points((0, low_y))[0])
    base = float(to_points((0, low_y))[1])
    names = [name for name, points in lines.items() if points]
    ends = [float(to_points((0, min(max(lines[n][-1][1], low_y), high_y)))[1]) - base for n in names]
    for name, where, end in zip(names, spread(ends, _GAP, 2, high - 2), ends, strict=True):
        number, points = numbers[name], lines[name]
        look: dict[str, Any] = {"color": colour_of(number), "linestyle": dash_of(number)}
        mark: dict[str, Any] = {"marker": marker_of(number), "markersize": 5.0} if marks else {}
        axes.plot([x for x, _ in points], [y for _, y in points], **look, **mark)
        last = (points[-1][0], min(max(points[-1][1], low_y), high_y))
        away = float(axes.transData.transform((edge, low_y))[0] - axes.transData.transform(last)[0])
        axes.annotate(
            short(name, 20), last, xytext=(away + 24, where - end), textcoords="offset points", annotation_clip=False,
            ha="left", va="center", fontsize=SMALL, color=INK,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4,
                        "relpos": (0, 0.5)},
        )  # fmt: skip
        axes.plot(
            [1 + 17 / wide], [where / high], transform=axes.transAxes, clip_on=False, linestyle="none",
            marker=marker_of(number), markersize=5.0, color=colour_of(number),
        )  # fmt: skip
