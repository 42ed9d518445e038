"""What it takes to make the results again: definition, commands, versions, machines, fingerprints, differences."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnetune.experiment.environment import version_of
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.places import FILES
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.numbers import NONE, plural, train_size
from subnetune.experiment.report.source import Runs
from subnetune.experiment.report.table import Column, Line, Table, Value, number, words

_OF_THE_PAGE = ("subnetune", "numpy", "scipy", "matplotlib")
_MACHINE = ("machine", "system", "device", "threads", "world")


@dataclass(frozen=True)
class Reproduction:
    """`definition` is the grid's YAML ("" for plain runs); `commands` are (what it does, command line)."""

    definition: str
    commands: tuple[tuple[str, str], ...]
    shared: tuple[tuple[str, str], ...]  # options that all runs have in common
    tables: tuple[Table, ...]


def reproduction(runs: Runs, files: Mapping[str, str]) -> Reproduction:
    """Return it. `files` are the texts that are written beside the page, by name; their hashes are listed."""
    values = {row.name: dict(runs.values(row)) for row in runs.rows if row.name}
    known = [found for found in values.values() if found]
    shared = {
        name: value
        for name, value in (known[0] if known else {}).items()
        if all(name in one and one[name] == value for one in known)
    }
    tables = (
        _versions(runs.rows),
        _machines(runs.rows),
        _fingerprints(runs.rows),
        _hashes(files),
        _differing(runs.rows, values, shared),
    )
    definition = without_folders(runs.grid).to_yaml() if runs.grid is not None else ""
    said = tuple((name, option_text(value)) for name, value in sorted(shared.items()))
    return Reproduction(definition, _commands(runs), said, tuple(table for table in tables if table.lines))


def without_folders(grid: GridConfig) -> GridConfig:
    """Return the grid with names in the place of folders: where data and models lie says nothing to another reader."""
    values = grid.values()
    if values.get("data_dir"):
        values["data_dir"] = "DATA"
    if Path(str(values["model"])).is_absolute():
        values["model"] = Path(str(values["model"])).name
    for entry in (*values["tasks"].values(), *values["methods"].values(), values["common"]):
        for name in FILES:
            if entry.get(name):
                entry[name] = Path(str(entry[name])).name
    return grid.from_values(values)


def _commands(runs: Runs) -> tuple[tuple[str, str], ...]:
    """Return what to type in the folder of the runs."""
    found = []
    if runs.grid is not None:
        found.append(("Go on with what is missing", "subnetune compare --config grid.yaml --output ."))
        found.append(("Make everything again", "subnetune compare --config grid.yaml --output ../again"))
    example = next((row.name for row in runs.rows if row.state == "done"), None)
    if example is not None:
        config = runs.folder.run(example).config.relative_to(runs.folder.path)
        found.append(
            ("Make one run again", f"subnetune train --config {shlex.quote(str(config))} --output ../again-one")
        )
    return (*found, ("Make this page again", "subnetune report ."))


def _environments(rows: Sequence[Row]) -> list[tuple[Row, dict[str, Any]]]:
    return [(row, dict(row.result.environment)) for row in rows if row.result is not None and row.result.environment]


def _versions(rows: Sequence[Row]) -> Table:
    found: dict[tuple[str, str], int] = {}
    for _, environment in _environments(rows):
        for package, version in environment.get("versions", {}).items():
            key = (package, version or "not installed")
            found[key] = found.get(key, 0) + 1
    lines = tuple(
        Line((words(package), words(version, "" if version != "not installed" else "quiet"), number(str(n), n)))
        for (package, version), n in found.items()
    )
    columns = (Column("package"), Column("version"), Column("runs (n)", "number"))
    own = ", ".join(f"{name} {version_of(name)}" for name in _OF_THE_PAGE)
    note = f"Of the runs. The statistics and plots of this page were made with {own}."
    return Table("versions", "Versions", columns, lines, note, sortable=False)


def _machines(rows: Sequence[Row]) -> Table:
    found: dict[tuple[str, ...], int] = {}
    for _, environment in _environments(rows):
        key = tuple(str(environment.get(name, NONE)) for name in _MACHINE)
        found[key] = found.get(key, 0) + 1
    lines = tuple(Line((*map(words, key), number(str(n), n))) for key, n in found.items())
    names = ("machine", "system", "device", "threads", "processes")
    columns = (*(Column(name) for name in names), Column("runs (n)", "number"))
    return Table("machines", "Machines", columns, lines, sortable=False)


def _fingerprints(rows: Sequence[Row]) -> Table:
    found: dict[tuple[str, str, str, str], int] = {}
    for row, environment in _environments(rows):
        size = train_size(row.group.train_size)
        key = (row.group.task, size, str(environment.get("data", "")), str(environment.get("base", "")))
        found[key] = found.get(key, 0) + 1
    several = {key[:2] for key in found if sum(other[:2] == key[:2] for other in found) > 1}
    lines = tuple(
        Line(
            (
                words(key[0]),
                words(key[1]),
                *(words(text) for text in key[2:]),
                number(str(n), n, "missing" if key[:2] in several else ""),
            )
        )
        for key, n in found.items()
    )
    columns = (
        Column("task"),
        Column("train size"),
        Column("data (sha256)", "code", "of the task's definition and every example and label, in order"),
        Column("base model (sha256)", "code", "of every parameter before training, the head as the seed made it apart"),
        Column("runs (n)", "number"),
    )
    note = (
        "Runs of a row that stand on other data, or another base, than the rest of their task make a line of their own."
    )
    return Table("fingerprints", "Data and base model", columns, lines, note if several else "", sortable=False)


def _hashes(files: Mapping[str, str]) -> Table:
    found = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    if "results.csv" in files:
        repeatable = repeatable_columns(files["results.csv"])
        found["results.csv without time and memory"] = hashlib.sha256(repeatable.encode()).hexdigest()
    lines = tuple(Line((words(name), words(digest))) for name, digest in found.items())
    note = "Time and memory differ from run to run; all other columns are the same when the same cells are run again."
    return Table("hashes", "Files", (Column("file"), Column("sha256", "code")), lines, note, sortable=False)


def repeatable_columns(text: str) -> str:
    """Return a CSV without the columns whose names hold `seconds`, `memory`, `path` or `host`."""
    rows = list(csv.reader(io.StringIO(text)))
    kept = [
        index
        for index, name in enumerate(rows[0] if rows else [])
        if not any(word in name for word in ("seconds", "memory", "path", "host"))
    ]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[row[index] for index in kept] for row in rows])
    return out.getvalue()


def _differing(rows: Sequence[Row], values: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any]) -> Table:
    lines = []
    for row in rows:
        if not (own := values.get(row.name, {})):
            continue
        said = "; ".join(f"{name}: {option_text(value)}" for name, value in sorted(own.items()) if name not in shared)
        engine = str((row.result.environment if row.result else {}).get("engine", "")).partition(":")[0]
        mask = str((row.result.environment if row.result else {}).get("mask") or "")
        cells: tuple[Value, ...] = (words(row.name), words(said), words(engine), words(mask))
        lines.append(Line(cells, row.group.task, row.group.method, train_size(row.group.train_size)))
    columns = (
        Column("folder", "code"),
        Column("options that are not the same in all runs"),
        Column("engine"),
        Column("mask (sha256)", "code", "of which entries were selected; none where it changes, or all train"),
    )
    note = (
        f"n = {plural(len(lines), 'run')}, those that were begun. A cell's folder is named by the hash of its options."
    )
    return Table("configurations", "What each run was told", columns, tuple(lines), note)


def option_text(value: object) -> str:
    """An option's value as JSON writes it, text without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
