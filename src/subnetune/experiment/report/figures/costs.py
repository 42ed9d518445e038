"""Ticks of logarithmic axes of seconds and bytes, as a reader counts them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from subnetune.experiment.report.numbers import size

_STEPS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
)
_ROUND = (
    (1, 2, 5, 10, 20, 30),
    (1, 1.5, 2, 3, 4, 5, 7, 10, 15, 20, 30, 40, 50),
    (1, 1.25, *range(2, 24), *range(25, 60, 5)),
)
_MOST = 6


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis for positive values: some room on both sides, a factor of 2 at least."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.12, 1.15, math.sqrt(max(1.0, 2 * low / high)))
    return low / room, high * room


def time_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return ticks between `low` and `high` seconds, and their labels."""
    for steps in _ROUND:
        small = [step * power for power in (0.001, 0.01, 0.1) for step in steps if step < 10]
        large = [float(step * unit) for unit in (1, 60, 3600) for step in steps if unit < 3600 or step < 24]
        days = [86400.0 * step for step in (1, 2, 3, 5, 7, 10, 14, 20, 30)]
        inside = [tick for tick in (*small, *large, *days) if low <= tick <= high]
        if len(inside) >= 3:
            break
    return _some(inside, low, high, seconds)


def byte_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return ticks between `low` and `high` bytes, and their labels."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in _STEPS:
        inside = [t for power in range(first, last + 1) for step in steps if low <= (t := step * 10.0**power) <= high]
        if len(inside) >= 3:
            break
    return _some(inside, low, high, size)


def seconds(value: float) -> str:
    """Return a round number of seconds in the unit that makes it short."""
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} s"


def _some(ticks: list[float], low: float, high: float, words: Callable[[float], str]) -> tuple[list[float], list[str]]:
    if len(ticks) < 2:
        ticks = [float(f"{low * (high / low) ** part:.2g}") for part in (0.15, 0.5, 0.85)]
        ticks = sorted({tick for tick in ticks if low <= tick <= high})
    step = -(-len(ticks) // _MOST)
    ticks = ticks[::step]
    return ticks, [words(tick) for tick in ticks]
