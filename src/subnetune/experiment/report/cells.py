"""The tables of single runs: all of them, those that failed, and what searches tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subnetune.experiment.grid.places import without_folders
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.numbers import NONE, duration, plural, score, size, train_size
from subnetune.experiment.report.source import Runs
from subnetune.experiment.report.table import Column, Line, Table, Value, drop_empty, number, say_once, words


def _line(row: Row, *values: Value) -> Line:
    task, method, length = row.group
    whole = 1e12 if length is None else float(length)
    start = (words(method), words(task), number(train_size(length), whole), number(str(row.seed), row.seed))
    return Line((*start, *values), task, method, train_size(length))


_START = (Column("method"), Column("task"), Column("train size", "number"), Column("seed", "number"))


def runs_table(rows: Sequence[Row]) -> Table:
    """Return a row for each cell, whatever became of it."""
    lines = []
    for row in rows:
        result = row.result if row.state == "done" else None
        at_majority = result is not None and result.at_majority
        others = (
            []
            if result is None
            else [
                f"{split} {metric} {score(value)}"
                for split, metrics in result.evaluation.items()
                for metric, value in metrics.items()
            ][1:]
        )
        memory = result.peak_memory_bytes if result else None
        values = (
            words(row.state, row.state),
            words(result.metric if result else ""),
            number(score(row.value), row.value, "missing" if at_majority else "", *_learned_nothing(at_majority)),
            words("; ".join(others)),
            number(duration(result.seconds if result else None), result.seconds if result else None),
            number(size(memory), memory),
            number(size(result.delta_bytes if result else None), result.delta_bytes if result else None),
            words(row.name),
        )
        lines.append(_line(row, *values))
    columns = (
        *_START,
        Column("state"),
        Column("metric"),
        Column("score", "number"),
        Column("further scores"),
        Column("time", "number"),
        Column("memory", "number"),
        Column("delta", "number"),
        Column("folder", "code"),
    )
    done = sum(row.state == "done" for row in rows)
    note = f"n = {done} of {plural(len(rows), 'run')} with a score. Failed and missing runs are rows too."
    table = Table("runs", "Every run", columns, tuple(lines), note, filtered=True)
    return say_once(drop_empty(table, "score"), "train size", "metric")


def _learned_nothing(at_majority: bool | None) -> tuple[str, ...]:
    return ("learned nothing",) if at_majority else ()


def failed_table(rows: Sequence[Row]) -> Table:
    """Return the cells, of runs and of searches, that ended with an error."""
    lines = []
    for row in rows:
        if row.state != "failed":
            continue
        error = (row.result.error if row.result else None) or {}
        values = (words(error.get("type", "")), words(without_folders(error.get("message", ""))), words(row.name))
        lines.append(_line(row, *values))
    columns = (*_START, Column("error"), Column("message"), Column("folder", "code"))
    note = f"n = {plural(len(lines), 'cell')}. A failed cell has no score; in a grid `--retry-failed` runs it again."
    return Table("failed", "Cells that failed", columns, tuple(lines), note)


def search_table(runs: Runs) -> Table:
    """Return what was tried on held-out training data: a row per group and setting, with the one that was taken."""
    tried: dict[tuple[Any, str], list[Row]] = {}
    for row in runs.searches:
        tried.setdefault((row.group, setting_text(row.setting)), []).append(row)
    lines = []
    for (group, setting), rows in tried.items():
        values = [row.value for row in rows if row.value is not None]
        mean = sum(values) / len(values) if values else None
        states = {state: sum(row.state == state for row in rows) for state in ("failed", "missing")}
        said = ", ".join(f"{number_} {state}" for state, number_ in states.items() if number_)
        taken = runs.chosen(rows[0])
        metric = next((row.result.metric for row in rows if row.result and row.result.metric), "")
        # Seeds of one search train on as many; a search may take fewer than its runs.
        examples = next(
            (int(r.result.settings.get("train_examples") or 0) or None for r in rows if r.result and r.state == "done"),
            None,
        )
        cells = (
            words(group.method),
            words(group.task),
            number(train_size(group.train_size), 1e12 if group.train_size is None else float(group.train_size)),
            words(setting),
            number(str(len(values)), len(values)),
            words(metric),
            number(str(examples or NONE), examples),
            number(score(mean), mean, "best" if taken else ""),
            Value("taken" if taken else said or NONE, "a" if taken else said or None, tone="best" if taken else ""),
        )
        lines.append(Line(cells, group.task, group.method, train_size(group.train_size)))
    columns = (
        *_START[:3],
        Column("setting"),
        Column("n", "number", "seeds of the search with a score"),
        Column("metric"),
        Column("trained on", "number", "examples; a search may take fewer than the runs"),
        Column("mean on held-out train", "number"),
        Column("outcome"),
    )
    note = "Chosen on a part of the training data that was held out; the dev set was not looked at."
    return say_once(
        Table("search", "What the search tried", columns, tuple(lines), note), "train size", "metric", "trained on"
    )


def setting_text(setting: Any) -> str:
    """A setting as `lr 0.0001, keep 0.3`."""
    flat = {**{name: value for name, value in setting.items() if name != "options"}, **setting.get("options", {})}
    return ", ".join(f"{n.replace('_', ' ')} {v:g}" if isinstance(v, float) else f"{n} {v}" for n, v in flat.items())


def missing_lines(rows: Sequence[Row]) -> list[str]:
    """Return a line per group with missing cells, which names their seeds."""
    found: dict[Any, list[int]] = {}
    for row in rows:
        if row.state == "missing":
            found.setdefault(row.group, []).append(row.seed)
    lines = []
    for (task, method, length), seeds in found.items():
        where = task if length is None else f"{task}, {length} examples"
        lines.append(f"{where}, {method}: seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}")
    return lines


def skipped_lines(rows: Sequence[Row]) -> list[str]:
    """Return a line per evaluation set that was left out, with the reason."""
    found = [(name, why) for row in rows if row.result for name, why in row.result.skipped.items()]
    return list(dict.fromkeys(f"{name}: {without_folders(why)}" for name, why in found))
