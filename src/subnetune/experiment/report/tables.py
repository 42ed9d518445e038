"""The tables of a comparison: scores, differences to the baseline, cost, and the budget that runs share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from subnetune.experiment.comparison import Block, Comparison, Entry
from subnetune.experiment.grid.rows import SETTINGS
from subnetune.experiment.report.numbers import (
    NONE,
    count,
    duration,
    interval,
    plain,
    points,
    probability,
    score,
    share,
    size,
    train_size,
)
from subnetune.experiment.report.table import Column, Forest, Line, Table, Value, drop_empty, number, say_once, words

KINDS = {"task": "own split", "transfer": "transfer", "probe": "linear probe", "mean": "mean of tasks"}
_GROUP = (Column("method"), Column("task"), Column("train size", "number"))
_ONCE = ("train size", "on", "metric")  # said in the note where they are the same in all rows
_N = Column("n", "number", "seeds with a score; the figures of the row are over these")


def _entries(comparison: Comparison) -> Iterator[tuple[Block, Entry]]:
    return ((block, entry) for block in comparison.blocks for entry in block.entries)


def _group(block: Block, entry: Entry) -> tuple[Value, Value, Value]:
    length = train_size(block.train_size)
    whole = float("inf") if block.train_size is None else block.train_size
    return words(entry.method), words(block.task), number(length, min(whole, 1e12))


def _line(block: Block, entry: Entry, *values: Value) -> Line:
    return Line((*_group(block, entry), *values), block.task, entry.method, train_size(block.train_size))


def scores_table(comparison: Comparison) -> Table:
    """Return what each method scored in each block, over seeds."""
    lines = []
    for block, entry in _entries(comparison):
        s = entry.summary
        lines.append(
            _line(
                block,
                entry,
                words(KINDS.get(block.kind, block.kind)),
                words(block.metric),
                number(str(s.n), s.n),
                *(number(score(value), value) for value in (s.mean, s.std, s.minimum, s.maximum, s.iqm)),
                number(str(s.failed), s.failed, "failed" if s.failed else ""),
                number(str(entry.missing), entry.missing, "missing" if entry.missing else ""),
                number(
                    NONE if s.at_majority is None else str(s.at_majority),
                    s.at_majority,
                    "missing" if s.at_majority else "",
                ),
                number(score(block.majority), block.majority),
            )
        )
    columns = (
        *_GROUP,
        Column(
            "on",
            meaning="the task's own evaluation split, a transfer set that the tuned model was evaluated on unchanged, "
            "a linear probe on its frozen encoder, or the mean of all tasks",
        ),
        Column("metric"),
        _N,
        Column("mean", "number"),
        Column("std", "number", "standard deviation over seeds (n − 1); none for a single seed"),
        Column("min", "number"),
        Column("max", "number"),
        Column("IQM", "number", "interquartile mean: the mean of the middle half"),
        Column("failed", "number", "runs that ended with an error; they have no score"),
        Column(
            "missing",
            "number",
            "runs that are not finished yet, or were measured without this set, or on another part of it",
        ),
        Column(
            "no better",
            "number",
            "runs that scored no better than always predicting the most frequent class (or "
            "the mean) by any of the task's metrics; they count among the n",
        ),
        Column("majority", "number", "the score of always predicting the most frequent class, or the mean"),
    )
    note = "Scores are fractions; 1 is best. A single seed has no standard deviation."
    table = Table("scores", "Scores over seeds", columns, tuple(lines), note, filtered=True)
    return say_once(drop_empty(table, "n", "mean", "std"), *_ONCE)


def differences_table(comparison: Comparison) -> Table:
    """Return each method's paired difference to the baseline in each block, its interval drawn to the block's scale."""
    pairs = [(b, e, e.difference) for b, e in _entries(comparison) if e.difference is not None]
    lines = []
    for block, entry, d in pairs:
        # Of one block: a method that fails on one task would leave dots alone of the intervals on all others.
        ends = [abs(x) for b, _, one in pairs if b is block for x in (one.mean, one.low, one.high) if x is not None]
        scale = max(ends, default=0.0) or 1.0
        lines.append(
            _line(
                block,
                entry,
                words(block.metric),
                number(str(d.n), d.n),
                number(points(d.mean), d.mean),
                Value(interval(d.low, d.high), d.low),
                _forest(d.mean, d.low, d.high, scale),
                number(probability(d.p), d.p),
                number(probability(d.p_holm), d.p_holm),
                number(plain(d.effect).replace("−0.00", "0.00"), d.effect),
                number(f"{d.wins} / {d.ties} / {d.losses}", d.wins),
            )
        )
    columns = (
        *_GROUP,
        Column("metric"),
        Column("n", "number", "pairs: seeds that both the method and the baseline have a score for"),
        Column("difference", "number", "mean over the pairs of the method's score less the baseline's, in points"),
        Column(
            "95 % interval",
            "number",
            "bootstrap interval of the mean difference; too narrow with few seeds (of normal "
            "differences it holds the mean in 75 % of cases with 3 seeds, 83 % with 5, 90 % with 10)",
        ),
        Column(
            "drawn",
            "drawn",
            "difference and interval; the line in the middle is 0, and the largest of a task and train size reaches "
            "the edge: lengths compare within a task, not between tasks",
        ),
        Column("p", "number", "two-sided sign-flip permutation test"),
        Column("p (Holm)", "number", "corrected over the methods of the block"),
        Column("effect", "number", "mean difference over the standard deviation of the differences"),
        Column("won / tied / lost", "number", "pairs in which the method scored more, the same, less"),
    )
    note = (
        f"Each method less {comparison.baseline}, paired by seed, in points (100 times a fraction). A single pair has "
        "no interval and no test."
    )
    title = f"Differences to {comparison.baseline}"
    return say_once(Table("differences", title, columns, tuple(lines), note, filtered=True), *_ONCE)


def _forest(mean: float | None, low: float | None, high: float | None, scale: float) -> Value:
    def place(value: float) -> float:
        return round(50 + 48 * value / scale, 2)

    if mean is None:
        return Value(NONE, None)
    ends = (None, None) if low is None or high is None else (place(low), place(high))
    return Value("", mean, forest=Forest(place(mean), *ends))


def cost_table(comparison: Comparison) -> Table:
    """Return what each method cost per task: what trains, bytes of its delta, time, memory."""
    lines = []
    for block, entry in _entries(comparison):
        if block.kind != "task":
            continue
        bytes_, seconds, memory = entry.delta_bytes, entry.seconds, entry.peak_memory_bytes
        trained = entry.trained if entry.total else None
        part = entry.trained / entry.total if entry.total else None
        lines.append(
            _line(
                block,
                entry,
                number(str(entry.summary.n), entry.summary.n),
                number(score(entry.summary.mean), entry.summary.mean),
                number(count(trained), trained),
                number(share(entry.trained, entry.total), part),
                number(size(bytes_), bytes_),
                number(duration(seconds), seconds),
                number(size(memory), memory),
            )
        )
    columns = (
        *_GROUP,
        _N,
        Column("mean score", "number"),
        Column("entries that train", "number"),
        Column("of all", "number"),
        Column("delta", "number", "the file that a run leaves: what it changed in the model"),
        Column(
            "time",
            "number",
            "wall time of a run, the median; comparable only between runs on the same machine at the same load",
        ),
        Column("memory", "number", "highest point while training, beyond the process before the model was loaded"),
    )
    note = "Means over the runs that finished; of the time the median, of the memory over those where it is known."
    return say_once(Table("cost", "What it cost", columns, tuple(lines), note, filtered=True), *_ONCE)


def budget_table(comparison: Comparison) -> Table:
    """Return the settings of each method's runs that are not the same everywhere; those that are stand in the note."""
    pairs = [(block, entry) for block, entry in _entries(comparison) if block.kind == "task"]
    known = [entry.settings for _, entry in pairs if entry.settings]
    shared = {
        name: known[0][name]
        for name in SETTINGS
        if known and all(name in one and one[name] == known[0][name] for one in known)
    }
    names = [name for name in SETTINGS if name not in shared and any(one.get(name) is not None for one in known)]
    lines = []
    for block, entry in pairs:
        shown = [entry.settings.get(name) for name in names]
        values = [Value(_setting(v), v if isinstance(v, int | float) else None if v is None else str(v)) for v in shown]
        lines.append(_line(block, entry, *values))
    kinds = [_kind(line.values[place] for line in lines) for place in range(len(_GROUP), len(_GROUP) + len(names))]
    columns = (*_GROUP, *(Column(name.replace("_", " "), kind) for name, kind in zip(names, kinds, strict=True)))
    said = ", ".join(f"{name.replace('_', ' ')} {_setting(value)}" for name, value in shared.items())
    note = f"The same in every finished run: {said}." if said else ""
    if names:
        note = f"{note} A dash: not known yet, or not the same in all runs of the row.".strip()
    return say_once(Table("budget", "Budget and settings", columns, tuple(lines), note, filtered=True), *_ONCE)


def _kind(values: Iterable[Value]) -> Literal["text", "number"]:
    """Return how a column of settings is sorted: a schedule's name is no number."""
    return "text" if any(isinstance(value.sort, str) for value in values) else "number"


def _setting(value: object) -> str:
    if value is None:
        return NONE
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
