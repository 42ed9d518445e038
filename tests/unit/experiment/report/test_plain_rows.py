"""Run directories without a grid as rows: each run is one, whatever became of it, and no two count as one."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from report_case import finished, write_plain_run
from subnetune.core.errors import UsageError
from subnetune.experiment.comparison import compare_rows
from subnetune.experiment.grid.rows import csv_text
from subnetune.experiment.report.plain import plain_rows
from subnetune.experiment.report.source import read_runs


def config(**more: object) -> dict[str, object]:
    return {"task": "rte", "method": "full", "lr": 1e-4, "seed": 42, **more}


def labels(path: Path) -> list[str]:
    return [row.group.method for row in plain_rows(path)]


def test_each_run_is_a_row_with_its_state(tmp_path: Path) -> None:
    write_plain_run(tmp_path / "a", config(), finished(0.61))
    failed = {"status": "failed", "error": "NumericError", "message": "the loss is nan\nmore"}
    write_plain_run(tmp_path / "deeper" / "b", config(seed=52), failed)
    write_plain_run(tmp_path / "c", config(seed=57), None)
    rows = plain_rows(tmp_path)
    assert [(row.seed, row.state, row.value, row.name) for row in rows] == [
        (42, "done", 0.61, "a"),
        (52, "failed", None, "deeper/b"),
        (57, "missing", None, "c"),
    ]
    assert rows[1].result is not None
    assert rows[1].result.error == {"type": "NumericError", "message": "the loss is nan"}
    assert labels(tmp_path) == ["full"] * 3


def test_what_a_run_does_not_say_is_blank_and_not_a_number(tmp_path: Path) -> None:
    write_plain_run(tmp_path / "a", config(), finished(0.61))
    (row,) = csv.DictReader(csv_text(plain_rows(tmp_path)).splitlines())
    assert (row["at_majority"], row["majority"], row["peak_memory_bytes"]) == ("", "", "")
    block = compare_rows(plain_rows(tmp_path), "full").blocks[0]
    assert block.entries[0].summary.at_majority is None


def test_a_run_that_says_the_majority_level_is_held_against_it(tmp_path: Path) -> None:
    for name, seed, value in (("a", 42, 0.61), ("b", 52, 0.53)):
        levels = {"dev": {"accuracy": 0.53}}
        write_plain_run(tmp_path / name, config(seed=seed), {**finished(value), "majority": levels})
    block = compare_rows(plain_rows(tmp_path), "full").blocks[0]
    assert (block.majority, block.entries[0].summary.at_majority) == (0.53, 1)


def test_a_folder_that_is_one_run_has_one_row(tmp_path: Path) -> None:
    write_plain_run(tmp_path / "a", config(max_train=300), finished(0.61))
    (row,) = plain_rows(tmp_path / "a")
    assert (row.group.task, row.group.train_size, row.value) == ("rte", 300, 0.61)
    assert row.result is not None
    assert row.result.settings["lr"] == 1e-4
    assert read_runs(tmp_path / "a").folder.run(row.name).log.is_file()


def test_what_differs_besides_the_seed_is_said_in_the_label(tmp_path: Path) -> None:
    write_plain_run(tmp_path / "a", config(), finished(0.61))
    write_plain_run(tmp_path / "b", config(lr=2e-4), finished(0.62))
    write_plain_run(tmp_path / "c", config(method="bitfit", seed=7), finished(0.5))
    assert sorted(labels(tmp_path)) == ["bitfit", "full lr=0.0001", "full lr=0.0002"]
    assert read_runs(tmp_path).comparison.baseline == "full lr=0.0001"


def test_runs_that_are_alike_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_plain_run(tmp_path / name, config(), finished(0.61))
    assert labels(tmp_path) == ["full [a]", "full [b]"]
    assert read_runs(tmp_path).comparison.cells["done"] == 2


def test_held_out_scores_are_not_those_of_dev(tmp_path: Path) -> None:
    write_plain_run(tmp_path / "a", config(), finished(0.61))
    write_plain_run(tmp_path / "b", config(holdout=0.25), finished(0.7))
    assert [row.group.task for row in plain_rows(tmp_path)] == ["rte", "rte (0.25 of train held out)"]


def test_other_configurations_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "config.yaml").write_text("theme: dark\n")
    with pytest.raises(UsageError, match="holds no runs"):
        read_runs(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        read_runs(tmp_path / "absent")
