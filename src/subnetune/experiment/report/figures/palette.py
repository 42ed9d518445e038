"""The colours, markers and dashes of all plots, defined once; a page's CSS variables take the colours' place.

Series colours are Okabe and Ito's, moved to where each has a contrast of at least 3 against white and against #121212
(WCAG 1.4.11), so that they need no second set for dark mode. Text is never coloured: ink and muted follow the page.
"""

from __future__ import annotations

from typing import Any

INK = "#1b1b1b"
MUTED = "#757575"
GRID = "#d9d9d9"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#bf6a9a", "#b87a00", "#3a9ad9", "#767676", "#8a8500")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 3)))

# What stands in the SVG in the place of each colour. Ink without a variable is the colour of the text around the plot.
VARIABLES = {
    INK: "var(--ink, currentColor)",
    MUTED: f"var(--muted, {MUTED})",
    GRID: "var(--grid, rgba(128, 128, 128, 0.35))",
    **{colour: f"var(--series-{number}, {colour})" for number, colour in enumerate(SERIES)},
}


def colour_of(number: int) -> str:
    """Return the colour of the series `number`, counted from 0; they repeat, markers and dashes tell apart then."""
    return SERIES[number % len(SERIES)]


def marker_of(number: int) -> str:
    """Return the marker of the series `number`."""
    return MARKERS[number % len(MARKERS)]


def dash_of(number: int) -> Any:
    """Return matplotlib's line style of the series `number`."""
    return DASHES[number % len(DASHES)]
