"""What a grid says: per task and train size each method's scores, differences to the baseline, verdicts in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any, TypeVar

from subnetune.core.errors import UsageError, nearest
from subnetune.experiment.comparison_text import markdown_tables, statistics_csv, table_text
from subnetune.experiment.comparison_types import Block, Comparison, Entry
from subnetune.experiment.grid.folder import CellResult
from subnetune.experiment.grid.rows import SETTINGS, Row
from subnetune.experiment.result import Evaluation, no_better
from subnetune.experiment.statistics import Difference, holm, paired, summarise
from subnetune.experiment.uneven import measured_alike, uneven
from subnetune.experiment.verdicts import verdicts

__all__ = ["Block", "Comparison", "Entry", "compare_rows", "markdown_tables", "statistics_csv", "table_text"]
_T = TypeVar("_T", bound=Hashable)


@dataclass(frozen=True)
class _Runs:
    """A method in a block, before it is compared: its rows there, and what they are worth by seed."""

    rows: Sequence[Row]
    values: Mapping[int, float]
    expected: int
    failed: int
    low: Collection[int] | None = None  # seeds that learned nothing; None where that is not known


def compare_rows(rows: Sequence[Row], baseline: str) -> Comparison:
    """Return the comparison of every method with `baseline`, paired by seed; Holm over each block's methods.

    Per train size come the mean over tasks (where there are several), the tasks, the transfer sets, the probes; tasks
    and methods in the order of the rows. UsageError for a baseline that is none of the methods, or a run given twice.
    """
    methods = _unique(row.group.method for row in rows)
    if rows and baseline not in methods:
        hint = nearest(baseline, methods)
        raise UsageError(f"the baseline {baseline!r} is none of the methods {', '.join(methods)}{hint}")
    for (group, seed), count in Counter((row.group, row.seed) for row in rows).items():
        if count > 1:
            raise UsageError(f"{group.task}, {group.method}: {count} runs have seed {seed}, pairing needs one of each")
    blocks = [
        block
        for size in _unique(row.group.train_size for row in rows)
        for block in _blocks([row for row in rows if row.group.train_size == size], size, baseline)
    ]
    states = Counter(row.state for row in rows)
    cells = {state: states[state] for state in ("done", "failed", "missing")}
    return Comparison(baseline, tuple(blocks), verdicts(baseline, blocks, cells, uneven(rows)), cells)


def _blocks(rows: Sequence[Row], size: int | None, baseline: str) -> Iterator[Block]:
    """Yield the blocks of one train size."""
    tasks = {task: [row for row in rows if row.group.task == task] for task in _unique(r.group.task for r in rows)}
    if len(tasks) > 1:
        metrics = _unique(metric for found in tasks.values() if (metric := _metric(found)))
        metric = "headline metrics" if len(metrics) > 1 else "".join(metrics)
        runs = {
            method: _mean_runs([[row for row in found if row.group.method == method] for found in tasks.values()])
            for method in _unique(row.group.method for row in rows)
        }
        yield _block("mean", f"mean of {len(tasks)} tasks", size, metric, None, runs, baseline)
    for task, found in tasks.items():
        common = _common(_own_levels(row) for row in found)
        own = {method: _task_runs(its, common) for method, its in _by_method(found).items()}
        yield _block("task", task, size, _metric(found), _majority(found), own, baseline)
    for kind in ("transfer", "probe"):
        for task, found in tasks.items():
            for name, metric in _sets(found, kind).items():
                alike = measured_alike(found, kind, name, baseline)
                common = _common(_levels(row, kind).get(name, {}) for row in alike)
                other = {m: _other_runs(its, alike, kind, name, metric, common) for m, its in _by_method(found).items()}
                level = _agreed(_levels(row, kind).get(name, {}).get(metric) for row in alike if row.state == "done")
                probe = "probe, " if kind == "probe" else ""  # a set may be both
                yield _block(kind, f"{name} ({probe}trained on {task})", size, metric, level, other, baseline)


def _block(
    kind: str,
    task: str,
    size: int | None,
    metric: str,
    majority: float | None,
    runs: Mapping[str, _Runs],
    baseline: str,
) -> Block:
    reference = runs[baseline].values if baseline in runs else {}
    others = [method for method in runs if method != baseline]
    corrected = holm([paired(runs[method].values, reference) for method in others])
    differences: dict[str, Difference] = dict(zip(others, corrected, strict=True))
    entries = tuple(_entry(method, found, differences.get(method)) for method, found in runs.items())
    return Block(kind, task, size, metric, majority, entries)


def _entry(method: str, runs: _Runs, difference: Difference | None) -> Entry:
    done = [row.result for row in runs.rows if row.result is not None and row.state == "done"]
    return Entry(
        method=method,
        summary=summarise(
            list(runs.values.values()), failed=runs.failed, at_majority=None if runs.low is None else len(runs.low)
        ),
        difference=difference,
        expected=runs.expected,
        missing=runs.expected - len(runs.values) - runs.failed,
        trained=max((result.trained for result in done), default=0),
        total=max((result.total for result in done), default=0),
        delta_bytes=_mean(result.delta_bytes for result in done),
        seconds=_over_tasks(runs.rows, _median_seconds),
        peak_memory_bytes=_over_tasks(runs.rows, _mean_memory),
        settings=_shared_settings(runs.rows),
        values=dict(sorted(runs.values.items())),
        low=frozenset(runs.low or ()),
    )


def _over_tasks(rows: Sequence[Row], cost: Callable[[list[CellResult]], float | None]) -> float | None:
    """Return the mean of the tasks' costs; None where that of a task is not known: it may be the dearest."""
    tasks: dict[str, list[CellResult]] = {}
    for row in rows:
        if row.result is not None and row.state == "done":
            tasks.setdefault(row.group.task, []).append(row.result)
    costs = [cost(found) for found in tasks.values()]
    return None if None in costs else _mean(one for one in costs if one is not None)


def _median_seconds(done: list[CellResult]) -> float | None:
    return float(median(result.seconds for result in done))


def _mean_memory(done: list[CellResult]) -> float | None:
    return _mean(found for result in done if (found := result.peak_memory_bytes) is not None)


# -- what the runs of a method are worth ------------------------------------------------------------------------------


def _task_runs(rows: Sequence[Row], common: Mapping[str, float]) -> _Runs:
    """Return the runs by their score; one that does not say its majority level is held against the `common` one."""
    values = {row.seed: row.value for row in rows if row.value is not None}
    at_majority = {
        row.seed: no_better(
            {**next(iter(row.result.evaluation.values()), {}), row.result.metric: row.value},
            _own_levels(row) or common,
            row.result.metric,
        )
        for row in rows
        if row.result is not None and row.value is not None
    }
    return _Runs(rows, values, len(rows), _failed(rows), _low(at_majority))


def _other_runs(
    rows: Sequence[Row], alike: Sequence[Row], kind: str, name: str, metric: str, common: Mapping[str, float]
) -> _Runs:
    """Return the runs by their score elsewhere: on a transfer set, or of a probe; of rows in `alike` alone."""
    found = {row.seed: _elsewhere(row, kind).get(name, {}).get(metric) for row in rows if row in alike}
    values = {seed: value for seed, value in found.items() if value is not None}
    at_majority = {
        row.seed: no_better(_elsewhere(row, kind)[name], _levels(row, kind).get(name) or common, metric)
        for row in rows
        if row in alike and row.seed in values
    }
    return _Runs(rows, values, len(rows), _failed(rows), _low(at_majority))


def _low(at_majority: Mapping[int, bool | None]) -> list[int] | None:
    """Return the seeds that learned nothing; None where that is known of none."""
    known = {seed: low for seed, low in at_majority.items() if low is not None}
    return [seed for seed, low in known.items() if low] if known else None


def _mean_runs(tasks: Sequence[Sequence[Row]]) -> _Runs:
    """Return a method's mean over tasks; each of `tasks` has its rows on one. A seed counts where all tasks have it."""
    by_seed = [{row.seed: row for row in rows} for rows in tasks]
    seeds = sorted(set.intersection(*(set(found) for found in by_seed)))
    of_seed = {seed: [found[seed] for found in by_seed] for seed in seeds}
    scores = {seed: [row.value for row in rows if row.value is not None] for seed, rows in of_seed.items()}
    values = {seed: mean(found) for seed, found in scores.items() if len(found) == len(tasks)}
    failed = sum(_failed(rows) > 0 for rows in of_seed.values())
    return _Runs([row for rows in of_seed.values() for row in rows], values, len(seeds), failed)


def _failed(rows: Iterable[Row]) -> int:
    return sum(row.state == "failed" for row in rows)


def _elsewhere(row: Row, kind: str) -> Evaluation:
    """Return the scores of a run on transfer sets, or of its probes; none of one that is not done.

    Evaluation splits after the first (MNLI mismatched, the demo's other domain) are sets that it transfers to.
    """
    if row.result is None or row.state != "done":
        return {}
    if kind == "probe":
        return row.result.probes
    others = list(row.result.evaluation.items())[1:]
    return {**{f"{row.group.task}/{split}": metrics for split, metrics in others}, **row.result.transfer}


def _levels(row: Row, kind: str) -> Evaluation:
    """Return what always the same answer scores where `_elsewhere` has scores, as far as it is known."""
    if row.result is None:
        return {}
    if kind == "probe":
        return row.result.probe_majority
    own = {f"{row.group.task}/{split}": levels for split, levels in row.result.majority.items()}
    return {**own, **row.result.transfer_majority}


def _own_levels(row: Row) -> Mapping[str, float]:
    return {} if row.result is None else next(iter(row.result.majority.values()), {})


def _common(levels: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    """Return the levels that all runs have which say some; {} where they differ or none does."""
    known = [one for one in levels if one]
    return known[0] if known and all(one == known[0] for one in known) else {}


def _sets(rows: Sequence[Row], kind: str) -> dict[str, str]:
    """Return the sets that any run was evaluated on, with the first metric of each."""
    found: dict[str, str] = {}
    for row in rows:
        for name, metrics in _elsewhere(row, kind).items():
            if metrics:
                found.setdefault(name, next(iter(metrics)))
    return found


# -- what rows share --------------------------------------------------------------------------------------------------


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {name: [r for r in rows if r.group.method == name] for name in _unique(row.group.method for row in rows)}


def _metric(rows: Sequence[Row]) -> str:
    return next((row.result.metric for row in rows if row.result is not None and row.state == "done"), "")


def _majority(rows: Sequence[Row]) -> float | None:
    """Return the score of always saying the same, if the runs agree on it: they have the same training examples."""
    done = [row.result for row in rows if row.result is not None and row.state == "done"]
    return _agreed(next(iter(result.majority.values()), {}).get(result.metric) for result in done)


def _agreed(levels: Iterable[float | None]) -> float | None:
    known = _unique(level for level in levels if level is not None)
    return known[0] if len(known) == 1 else None


def _shared_settings(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the settings that all finished runs (before there are any: all planned ones) have in common."""
    done = [row for row in rows if row.state == "done"]
    shared: dict[str, Any] = {}
    for name in SETTINGS:
        found = [(row.result.settings if row.result else {}).get(name, row.setting.get(name)) for row in done or rows]
        if found and found[0] is not None and all(value == found[0] for value in found):
            shared[name] = found[0]
    return shared


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(mean(found)) if found else None


def _unique(values: Iterable[_T]) -> list[_T]:
    return list(dict.fromkeys(values))
