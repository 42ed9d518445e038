"""An empty drawing to plot on: matplotlib without pyplot, our look for as long as a plot is made, margins in points."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from subnetune.core.errors import UsageError
from subnetune.experiment.report.figures.palette import GRID, INK, MUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

WIDTH = 504.0  # points: 7 inches. A phone of 390 px shows it at 0.7: text of 12 has 8.5 px
TEXT, SMALL = 13.0, 12.0
CHARACTER = 0.6  # the mean width of a character over the size of the text, on the wide side
_LOOK: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "subnetune",
    "text.parse_math": False,  # a task may be named $x^2$
    "text.usetex": False,
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.titley": 1.0,  # looking for a free height costs a third of the time
    "axes.labelsize": TEXT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.bottom": False,
    "ytick.left": False,
    "xtick.major.pad": 5.0,
    "ytick.major.pad": 5.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.0,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}
# What XML cannot hold, and what turns the direction of the text around it.
_ODD = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


@contextmanager
def settings() -> Iterator[None]:
    """Use matplotlib's defaults and our look inside the block, whatever a matplotlibrc says; nothing outside of it.

    Raises UsageError where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError("the report's figures need matplotlib: pip install 'subnetune[report]'") from None
    look: dict[Any, Any] = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if not str(name).startswith("backend")
    }
    with matplotlib.rc_context(look | _LOOK):
        yield


def sheet(
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    left: float = 56,
    right: float = 14,
    top: float = 26,
    bottom: float = 44,
    gap: tuple[float, float] = (18, 40),
    share: bool = False,
    shares: Sequence[float] | None = None,
) -> tuple[Drawing, list[Axes]]:
    """Return a drawing of 7 inches x `height` points and its axes, row by row; call it inside `settings`.

    `left`, `right`, `top`, `bottom` are margins and `gap` the space between columns and between rows, in points.
    With `share` all axes have the same limits, and only the outer ones have tick labels. `shares` says how high the
    rows are against each other.
    """
    from matplotlib.figure import Figure as Drawing_

    drawing = Drawing_(figsize=(WIDTH / 72, height / 72), dpi=72)
    drawing.patch.set_visible(False)
    wide = (WIDTH - left - right - gap[0] * (columns - 1)) / columns
    parts = list(shares or [1.0] * rows)
    highs = [(height - top - bottom - gap[1] * (rows - 1)) * part / sum(parts) for part in parts]
    found: list[Axes] = []
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        high = highs[row]
        x, y = left + column * (wide + gap[0]), height - top - sum(highs[: row + 1]) - row * gap[1]
        other = found[0] if share and found else None
        axes = drawing.add_axes(
            (x / WIDTH, y / height, wide / WIDTH, high / height), sharex=other, sharey=other, label=str(number)
        )
        axes.patch.set_visible(False)
        if share:
            axes.tick_params(labelleft=column == 0, labelbottom=number + columns >= rows * columns)
        found.append(axes)
    return drawing, found


def literal(text: str) -> str:
    """Return the text on one line, without characters that a page cannot hold or that change the text around them."""
    return " ".join(_ODD.sub("\ufffd", str(text)).split())


def short(text: str, limit: int = 24) -> str:
    """Return `literal(text)`, its middle left out where it is longer than `limit`."""
    text = literal(text)
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 3
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}"


def width_of(texts: Sequence[str], size: float = TEXT) -> float:
    """Return about how wide the widest of `texts` is, in points."""
    return max((len(text) for text in texts), default=0) * CHARACTER * size


def write(axes: Axes, x: float, y: float, text: str, *, within: str = "data", **how: Any) -> None:
    """Write text at (x, y) in units of the data, or of the axes: ("axes", 0 to 1), ("x", x of data and y of axes),
    ("y", x of axes and y of data). `how` is matplotlib's."""
    places: dict[str, Any] = {
        "data": axes.transData,
        "axes": axes.transAxes,
        "x": axes.get_xaxis_transform(),
        "y": axes.get_yaxis_transform(),
    }
    axes.text(x, y, literal(text), transform=places[within], **{"fontsize": SMALL, "clip_on": False, **how})
