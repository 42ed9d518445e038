"""Two tables that fit on a page: every method's mean on every task, and what became of every cell."""

from __future__ import annotations

from collections.abc import Sequence

from subnetune.experiment.comparison import Block, Comparison, Entry
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.numbers import NONE, score, train_size
from subnetune.experiment.report.table import Column, Line, Table, Value, words

MARKS = {"done": "■", "failed": "×", "missing": "□"}


def glance_table(comparison: Comparison, elsewhere: bool = False) -> Table:
    """Return a row per method and a column per task, train size and mean; the best mean of a column is marked.

    `elsewhere`: a column per transfer set and probe instead.
    """
    blocks = [block for block in comparison.blocks if (block.kind not in ("task", "mean")) is elsewhere]
    methods = dict.fromkeys(entry.method for block in blocks for entry in block.entries)
    lines = [
        Line((words(method, "best" if method == comparison.baseline else ""), *(_cell(b, method) for b in blocks)))
        for method in methods
    ]
    if any(block.majority is not None for block in blocks):
        levels = (Value(score(block.majority), block.majority, tone="quiet") for block in blocks)
        lines.append(Line((words("always the same answer", "quiet"), *levels)))
    sizes = list(dict.fromkeys(block.train_size for block in blocks))
    columns = (Column("method"), *(Column(_heading(block, len(sizes) > 1), "number") for block in blocks))
    note = (
        f"Mean over seeds ± standard deviation, and n. The best mean of a column is marked; {comparison.baseline} is "
        "what others are compared with."
    )
    if len(sizes) == 1 and sizes[0] is not None:
        note = f"{note} {sizes[0]:,} training examples."
    if elsewhere:
        note = f"{note} Transfer sets are evaluated by the tuned model unchanged, probes by a linear head on it."
        return Table("elsewhere", "On other data", columns, tuple(lines) if blocks else (), note)
    return Table("glance", "Means at a glance", columns, tuple(lines), note)


def _heading(block: Block, sizes: bool) -> str:
    size = f", {train_size(block.train_size)} examples" if sizes else ""
    return f"{block.task}{size} ({block.metric})" if block.metric and block.kind != "mean" else f"{block.task}{size}"


def _cell(block: Block, method: str) -> Value:
    entry = next((entry for entry in block.entries if entry.method == method), None)
    if entry is None or entry.summary.mean is None:
        return Value(NONE, None, _notes(entry), "missing" if entry is None or entry.missing else "failed")
    means = [one.summary.mean for one in block.entries if one.summary.mean is not None]
    best = len(means) > 1 and entry.summary.mean == max(means)
    spread = "" if entry.summary.std is None else f" ± {score(entry.summary.std)}"
    return Value(f"{score(entry.summary.mean)}{spread}", entry.summary.mean, _notes(entry), "best" if best else "")


def _notes(entry: Entry | None) -> tuple[str, ...]:
    if entry is None:
        return ()
    said = [f"n = {entry.summary.n}"]
    said += [f"{entry.summary.failed} failed"] if entry.summary.failed else []
    said += [f"{entry.missing} missing"] if entry.missing else []
    return (", ".join(said),)


def coverage_table(rows: Sequence[Row]) -> Table:
    """Return a row per task and train size and a column per method: a mark per seed, and how many are done."""
    methods = list(dict.fromkeys(row.group.method for row in rows))
    groups = list(dict.fromkeys((row.group.task, row.group.train_size) for row in rows))
    lines = []
    for task, length in groups:
        values = []
        for method in methods:
            cells = [r for r in rows if (r.group.task, r.group.train_size, r.group.method) == (task, length, method)]
            values.append(_states(cells))
        name = f"{task}, {train_size(length)} examples" if len({size for _, size in groups}) > 1 else task
        lines.append(Line((words(name), *values)))
    columns = (Column("task"), *(Column(method) for method in methods))
    note = f"A mark per seed: {MARKS['done']} done, {MARKS['failed']} failed, {MARKS['missing']} missing."
    return Table("coverage", "Every cell of the grid", columns, tuple(lines), note, sortable=False)


def _states(cells: Sequence[Row]) -> Value:
    if not cells:
        return Value(NONE, None)
    found = {state: sum(row.state == state for row in cells) for state in MARKS}
    said = [f"{found['done']} of {len(cells)} done", *(f"{found[s]} {s}" for s in ("failed", "missing") if found[s])]
    states = tuple(row.state for row in cells)
    return Value(" ".join(MARKS[state] for state in states), found["done"], (", ".join(said),), states=states)
