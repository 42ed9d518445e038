"""Where labels go so that they do not lie on each other: deterministic, in points, from estimated widths of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from subnetune.experiment.report.figures.canvas import width_of


class Place(NamedTuple):
    """Where a label stands from its point, in points: the corner of its text, and how it is aligned."""

    dx: float
    dy: float
    align: str  # left, center, right
    far: bool  # a line from the point to the label is wanted


Box = tuple[float, float, float, float]  # left, bottom, right, top
_RADII = (8.0, 15.0, 24.0, 34.0, 46.0, 60.0)
# right, left, above, below, and between them
_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.7), (0.8, -0.7), (-0.8, 0.7), (-0.8, -0.7))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return places on a line at least `gap` apart, as near to the wanted ones as can be (least squares), in their
    order, between `low` and `high`. Where there is no room for all, they stand closer."""
    count = len(wanted)
    if not count:
        return []
    gap = min(gap, (high - low) / max(1, count - 1))
    order = sorted(range(count), key=lambda i: (wanted[i], i))
    blocks: list[list[float]] = []  # [sum, count] of runs that touch: their mean is where the run begins
    for number, index in enumerate(order):
        blocks.append([wanted[index] - number * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, size = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += size
    starts = [total / size for total, size in blocks for _ in range(int(size))]
    found = [0.0] * count
    for number, (index, start) in enumerate(zip(order, starts, strict=True)):
        found[index] = min(max(start, low), high - (count - 1) * gap) + number * gap
    return found


def place(
    points: Sequence[tuple[float, float]], texts: Sequence[str], bounds: Box, size: float, avoid: Sequence[Box] = ()
) -> list[Place]:
    """Return where each point's text goes: the nearest free place of 48 around it, within `bounds`, not over `avoid`.

    `points` are in points, `size` is the text's. Points are taken from left to right. Where no place is free, the
    one that covers least is taken.
    """
    taken: list[Box] = [*((x - 5, y - 5, x + 5, y + 5) for x, y in points), *avoid]
    found: dict[int, Place] = {}
    for index in sorted(range(len(points)), key=lambda i: (points[i], i)):
        wide, high = width_of([texts[index]], size), size * 1.15
        best: tuple[float, Place, Box] | None = None
        for radius in _RADII:
            for across, up in _WAYS:
                option = Place(radius * across, radius * up, _align(across), radius > _RADII[0])
                box = _box(points[index], option, wide, high)
                cost = sum(_common(box, other) for other in taken) + 4 * _outside(box, bounds)
                if best is None or cost < best[0] - 1e-9:
                    best = (cost, option, box)
            if best is not None and best[0] < 1e-9:
                break
        assert best is not None
        found[index] = best[1]
        taken.append(best[2])
    return [found[index] for index in range(len(points))]


def _align(across: float) -> str:
    return "center" if across == 0 else "left" if across > 0 else "right"


def _box(point: tuple[float, float], option: Place, wide: float, high: float) -> Box:
    x, y = point[0] + option.dx, point[1] + option.dy
    left = {"left": x, "center": x - wide / 2, "right": x - wide}[option.align]
    return left, y - high / 2, left + wide, y + high / 2


def _common(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0


def _outside(box: Box, bounds: Box) -> float:
    inside = _common(box, bounds)
    return (box[2] - box[0]) * (box[3] - box[1]) - inside
