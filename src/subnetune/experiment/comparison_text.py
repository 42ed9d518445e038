"""A comparison as text: tables for a terminal, for Markdown, and `statistics.csv`.

The tables hold scores (fractions) and differences in points (100 x a fraction), no time and no memory: equal scores
give equal bytes.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence

from subnetune.experiment.comparison_types import Block, Comparison, Entry
from subnetune.experiment.sheets import as_text

HEAD = (
    *("method", "n", "mean", "std", "min", "max", "IQM", "failed", "at majority"),
    *("pairs", "diff", "95 % CI", "p (Holm)", "effect"),
)
COLUMNS = (
    *("kind", "task", "train_size", "metric", "majority", "method", "baseline", "expected", "missing", "failed"),
    *("at_majority", "n", "mean", "std", "min", "max", "iqm", "pairs", "difference", "ci_low", "ci_high", "p"),
    *("p_holm", "effect", "wins", "ties", "losses", "trained", "total", "delta_bytes", "seconds", "peak_memory_bytes"),
)
# Signs that backslashes do not keep apart everywhere (a cell's end), by what Markdown shows in their place.
_REFERENCES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "&#124;", "\\": "&#92;", "`": "&#96;"}
_MARKUP = frozenset("*_[]{}~#$!")
NOTES = (
    "Scores are fractions; diff is the mean difference to {baseline} in points (100 x a fraction) over the pairs, the"
    " seeds that both have, with its 95 % bootstrap interval (too narrow with few seeds: it holds the mean of normal"
    " differences in 75 % of cases with 3 seeds, 83 % with 5, 90 % with 10); p is the sign-flip permutation test's,"
    " corrected after Holm over the methods of its table (not over tables); effect is the mean difference over its"
    " standard deviation."
)


def table_text(comparison: Comparison) -> str:
    """Return the tables and verdicts as plain text: no times, no memory, the same bytes for the same scores."""
    parts = [f"{_plain(f'{block.title}: {_about(block)}')}\n{_aligned(_lines(block))}" for block in comparison.blocks]
    if comparison.blocks:
        parts.append(textwrap.fill(_plain(_notes(comparison)), 119, break_on_hyphens=False))
    parts.append("\n".join(_plain(sentence) for sentence in comparison.verdicts))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_tables(comparison: Comparison) -> str:
    """Return the verdicts as a list and a GitHub table per block; names stay text, whatever signs they hold."""
    parts = ["\n".join(f"- {escaped(sentence)}" for sentence in comparison.verdicts)]
    for block in comparison.blocks:
        lines = _lines(block)
        rule = ["---", *(["---:"] * (len(HEAD) - 1))]
        rows = [lines[0], rule, *([escaped(cell) for cell in line] for line in lines[1:])]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"### {escaped(block.title)}\n\n{escaped(_about(block))}\n\n{table}")
    if comparison.blocks:
        parts.append(escaped(_notes(comparison)))
    return "\n\n".join(part for part in parts if part) + "\n"


def statistics_csv(comparison: Comparison) -> str:
    """Return `statistics.csv`: a row per block and method; scores and differences are fractions, with six decimals.

    Columns whose names hold `seconds` or `memory` differ from run to run; all others are the same bytes.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for block in comparison.blocks:
        for entry in block.entries:
            writer.writerow(_csv_row(block, entry, comparison.baseline))
    return out.getvalue()


def _csv_row(block: Block, entry: Entry, baseline: str) -> list[object]:
    found, pairs = entry.summary, entry.difference
    numbers = (pairs.mean, pairs.low, pairs.high, pairs.p, pairs.p_holm, pairs.effect) if pairs else (None,) * 6
    return [
        *(block.kind, as_text(block.task), "all" if block.train_size is None else block.train_size, block.metric),
        *(
            _number(block.majority),
            as_text(entry.method),
            as_text(baseline),
            entry.expected,
            entry.missing,
            found.failed,
        ),
        *("" if found.at_majority is None else found.at_majority, found.n),
        *(_number(value) for value in (found.mean, found.std, found.minimum, found.maximum, found.iqm)),
        pairs.n if pairs else "",
        *(_number(value) for value in numbers),
        *((pairs.wins, pairs.ties, pairs.losses) if pairs else ("", "", "")),
        *((entry.trained, entry.total) if entry.total else ("", "")),
        *(_number(value) for value in (entry.delta_bytes, entry.seconds, entry.peak_memory_bytes)),
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value + 0.0:.6f}"


# -- tables -----------------------------------------------------------------------------------------------------------


def _about(block: Block) -> str:
    """Return what stands beside a table's name: metric, majority level, and how much of it there is."""
    expected = sum(entry.expected for entry in block.entries)
    missing = sum(entry.missing for entry in block.entries)
    what = "seeds" if block.kind == "mean" else "runs"
    parts = [block.metric or "no score yet"]
    parts += [] if block.majority is None else [f"majority level {block.majority:.4f}"]
    parts += [f"{missing} of {expected} {what} missing"] if missing else []
    return ", ".join(parts)


def _notes(comparison: Comparison) -> str:
    return NOTES.format(baseline=comparison.baseline)


def _lines(block: Block) -> list[list[str]]:
    """Return the head and a line per method, as text."""
    return [list(HEAD), *(_line(entry, block) for entry in block.entries)]


def _line(entry: Entry, block: Block) -> list[str]:
    found, pairs = entry.summary, entry.difference
    scores = (found.mean, found.std, found.minimum, found.maximum, found.iqm)
    line = [entry.method, str(found.n), *("-" if value is None else f"{value:.4f}" for value in scores)]
    line += [str(found.failed), "-" if found.at_majority is None else str(found.at_majority)]
    line += ["-" if pairs is None else str(pairs.n)]
    if pairs is None or pairs.mean is None:
        return [*line, "-", "-", "-", "-"]
    ends = "-" if pairs.low is None or pairs.high is None else f"{_points(pairs.low)} to {_points(pairs.high)}"
    p = "-" if pairs.p_holm is None else f"{pairs.p_holm:.4f}"
    return [*line, _points(pairs.mean), ends, p, "-" if pairs.effect is None else f"{pairs.effect:+.2f}"]


def _points(fraction: float) -> str:
    text = f"{100 * fraction:+.2f}"
    return "0.00" if float(text) == 0 else text


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    lines = [[_plain(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = widths
    rows = [
        "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))])
        for line in lines
    ]
    return "\n".join([rows[0], "-" * len(rows[0]), *rows[1:]])


def _plain(text: str) -> str:
    """Return the text without control characters: a name neither breaks a line nor commands a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def escaped(text: str) -> str:
    """Return `text` on one line, with nothing in it that a Markdown reader would act on: names stay as they are."""
    signs = _plain(" ".join(text.split()))
    return "".join(_REFERENCES.get(sign, f"\\{sign}" if sign in _MARKUP else sign) for sign in signs)
