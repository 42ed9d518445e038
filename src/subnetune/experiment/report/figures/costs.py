"""Ticks of logarithmic axes of seconds and bytes, as a reader counts them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from subnetune.experiment.report.numbers import size

_TIMES = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120, 300, 600, 1200, 1800),
    *(3600, 7200, 18000, 36000, 86400, 172800, 432000, 864000),
)
_MOST = 6


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis for positive values: some room on both sides, a factor of 2 at least."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.12, 1.15, math.sqrt(max(1.0, 2 * low / high)))
    return low / room, high * room


def time_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return ticks between `low` and `high` seconds, and their labels."""
    return _some([float(tick) for tick in _TIMES if low <= tick <= high], low, high, seconds)


def byte_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Return ticks between `low` and `high` bytes, and their labels."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            break
    return _some(inside, low, high, size)


def seconds(value: float | None) -> str:
    """Return a round number of seconds in the unit that makes it short."""
    if value is None:
        return ""
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} s"


def _some(ticks: list[float], low: float, high: float, words: object) -> tuple[list[float], list[str]]:
    assert callable(words)
    if len(ticks) < 2:
        ticks = [float(f"{low * (high / low) ** part:.2g}") for part in (0.15, 0.5, 0.85)]
        ticks = sorted({tick for tick in ticks if low <= tick <= high})
    step = -(-len(ticks) // _MOST)
    ticks = ticks[::step]
    return ticks, [str(words(tick)) for tick in ticks]
