"""What makes a comparison uneven: runs that do not differ in method and seed alone. Said before any verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from subnetune.experiment.grid.folder import CellResult
from subnetune.experiment.grid.rows import SETTINGS, Row

# Of one method's runs: what follows from others (steps), only changes the last digits, or is said by the data already.
_FOLLOWS = frozenset(("steps", "train_examples", "threads", "engine"))


def uneven(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return a sentence per task and train size, and what is wrong there; none where all is equal.

    That the runs read the same examples, that a method's runs differ in nothing but the seed, that all report the score
    after the last step, or all the best of several, and that transfer sets and probes were cut alike.
    """
    found: dict[tuple[str, int | None], list[tuple[Row, CellResult]]] = {}
    for row in rows:
        if row.result is not None and row.state == "done":
            found.setdefault((row.group.task, row.group.train_size), []).append((row, row.result))
    several = len({size for _, size in found}) > 1
    said = []
    for (task, size), runs in found.items():
        place = f"{task} at {size or 'all'} examples" if several else task
        said += [sentence for check in (_data, _settings, _policy, _caps) for sentence in check(place, runs)]
    return tuple(said)


def measured_alike(rows: Sequence[Row], kind: str, name: str, baseline: str) -> list[Row]:
    """Return the rows that were measured on as many items of a set as the baseline was: only these are compared.

    `kind` is "transfer" or "probe", `name` the key of the scores. Without a run of the baseline that has the set, as
    the first run that has it. A split of the trained task itself is never cut.
    """
    having = [row for row in rows if row.result is not None and _has(row.result, kind, name)]
    first = next((row for row in having if row.group.method == baseline), having[0] if having else None)
    cap = None if first is None else _cap(first)
    return [row for row in rows if row not in having or _cap(row) == cap]


def _has(result: CellResult, kind: str, name: str) -> bool:
    return result.state == "done" and name in (result.transfer if kind == "transfer" else result.probes)


def _cap(row: Row) -> int | None:
    return None if row.result is None else row.result.max_transfer


def _data(place: str, runs: Sequence[tuple[Row, CellResult]]) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for row, result in runs:
        if known := result.environment.get("data"):
            groups.setdefault(str(known), []).append(row.group.method)
    if len(groups) > 1:
        who = "; ".join(_counted(methods) for methods in groups.values())
        yield (
            f"Not all runs on {place} read the same examples, so what differs may be the data's doing and not the "
            f"method's: {who}. The files were changed in between; run the older cells again."
        )


def _settings(place: str, runs: Sequence[tuple[Row, CellResult]]) -> Iterator[str]:
    for method in dict.fromkeys(row.group.method for row, _ in runs):
        own = [result.settings for row, result in runs if row.group.method == method]
        silent = [name for name in SETTINGS if 0 < sum(name in settings for settings in own) < len(own)]
        if names := [name.replace("_", " ") for name in silent if name not in _FOLLOWS]:
            said = ", ".join(names)
            yield f"Not all runs of {method} on {place} say their {said}: they may differ in more than the seed."
        for name in SETTINGS:
            values = _unique(settings[name] for settings in own if settings.get(name) is not None)
            if len(values) > 1 and name not in _FOLLOWS:
                shown = ", ".join(map(str, values))
                what = f"{name.replace('_', ' ')} ({shown})"
                yield f"The runs of {method} on {place} differ in {what}, not in the seed alone."


def _policy(place: str, runs: Sequence[tuple[Row, CellResult]]) -> Iterator[str]:
    by = {
        policy: _unique(r.group.method for r, s in runs if s.settings.get("policy") == policy)
        for policy in ("best", "last")
    }
    if by["best"] and by["last"]:
        yield (
            f"On {place} {_listed(by['best'])} report the best of their evaluations, chosen on the very examples that "
            f"the score is of, and {_listed(by['last'])} the score after the last step: the former are flattered."
        )


def _caps(place: str, runs: Sequence[tuple[Row, CellResult]]) -> Iterator[str]:
    measured = [(row, result) for row, result in runs if result.transfer or result.probes]
    caps = _unique(result.max_transfer for _, result in measured)
    if len(caps) > 1:
        who = "; ".join(
            f"{'all' if cap is None else f'at most {cap}'}: "
            + _counted([row.group.method for row, result in measured if result.max_transfer == cap])
            for cap in caps
        )
        yield (
            f"Transfer sets and probes of runs on {place} were cut differently (examples of each: {who}); only runs "
            "that were measured as the baseline was are in those tables."
        )


def _counted(methods: Sequence[str]) -> str:
    return ", ".join(f"{methods.count(method)} of {method}" for method in dict.fromkeys(methods))


def _listed(names: Sequence[Any]) -> str:
    return " and ".join(str(name) for name in names)


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
