"""Squares with a number in each: more colour is more. One colour over the page's background suits both modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from subnetune.experiment.report.figures.canvas import SMALL
from subnetune.experiment.report.figures.palette import INK, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The least and the most of the colour in a square: ink keeps a contrast of 7 on both grounds.
FAINT, STRONG = 0.06, 0.55


def opacity(share: float) -> float:
    """Return how much colour a value has that is `share` of the largest."""
    return round(FAINT + (STRONG - FAINT) * min(1.0, max(0.0, share)), 3)


def squares(
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    words: Callable[[float], str],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    most: float,
) -> None:
    """Draw a table of values, the first row on top; `most` is the value with the strongest colour. None is left empty.

    Values without colour, such as a level by chance, are written with `write`.
    """
    from matplotlib.patches import Rectangle

    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(range(len(columns)), labels=list(columns))
    axes.set_yticks(range(len(rows)), labels=list(rows))
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            if value is not None:
                axes.add_patch(
                    Rectangle((x - 0.47, y - 0.45), 0.94, 0.9, facecolor=SERIES[0], linewidth=0, clip_on=False,
                              alpha=opacity(value / most if most > 0 else 0.0))
                )  # fmt: skip
                axes.text(x, y, words(value), ha="center", va="center_baseline", fontsize=SMALL, color=INK)
