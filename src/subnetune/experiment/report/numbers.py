"""Numbers as a reader wants them: scores, differences, counts, bytes, seconds."""

from __future__ import annotations

import math

NONE = "–"  # what is not known, or not defined


def score(value: float | None) -> str:
    """A score: four decimals, as `train` prints it."""
    return NONE if value is None else f"{value:.4f}".replace("-", "−")


def points(value: float | None) -> str:
    """A difference of scores in points, 100 times a fraction, with its sign."""
    if value is None:
        return NONE
    text = f"{100 * value:+.2f}"
    return "0.00" if text[1:] == "0.00" else text.replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval in points, or the sign for none."""
    return NONE if low is None or high is None else f"{points(low)} to {points(high)}"


def probability(value: float | None) -> str:
    """A p value."""
    return NONE if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def plain(value: float | None, decimals: int = 2) -> str:
    """A number with a fixed number of decimals."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.{decimals}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A count, in groups of three digits."""
    return NONE if value is None else f"{value:,.0f}"


def share(part: int, total: int) -> str:
    """A part of a whole in percent, with two figures that mean something."""
    if not total:
        return NONE
    percent = 100 * part / total
    return f"{percent:.1f} %" if percent >= 1 or percent == 0 else f"{percent:.2g} %"


def size(value: float | None) -> str:
    """A number of bytes in decimal units."""
    if value is None:
        return NONE
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}" if value < 999.5 * factor else f"{value / factor:,.0f} {unit}"
    return f"{value:.0f} B"


def duration(value: float | None) -> str:
    """Seconds, in minutes and hours where they are many."""
    if value is None:
        return NONE
    if value < 99.95:
        return f"{value:.1f} s"
    seconds = round(value)
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def train_size(value: int | None) -> str:
    """A train size as a grid says it."""
    return "all" if value is None else str(value)


def plural(number: int, noun: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
