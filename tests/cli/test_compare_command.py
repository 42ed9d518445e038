"""`subnetune compare` on a tiny model: what it runs, leaves and prints, and what it refuses before it begins."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ended import Ended
from ended import call as call_command
from grid_case import DIVERGING, forked, grid_values, own_files, starts, steady, write_grid_file
from subnetune.cli.compare import GRID
from subnetune.experiment.grid import workers
from subnetune.experiment.grid.config import GridConfig
from tiny_run import make_root

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("compare"))


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(workers, "forkserver", forked)  # this process has imported everything already
    monkeypatch.setattr(workers, "POLL", 0.05)

    def call(*arguments: object) -> Ended:
        return call_command(capsys, "compare", *arguments)

    return call


def test_a_grid_is_run_gone_on_with_and_changed(compare: Run, root: Path, tmp_path: Path) -> None:
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root, seeds=[1]))
    folder = tmp_path / "out"
    first = compare("--config", file, "--output", folder, "--workers", 2, "--max-steps", 3)
    assert first.code == 0, first.err
    assert len(starts(folder)) == 2
    assert "mine full seed 1: accuracy" in first.err
    assert "2/2 done" in first.err
    assert "child-tuning-d" in first.out
    results = (folder / "results.csv").read_text()
    with (folder / "results.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["method"], row["seed"], row["state"], row["steps"]) for row in rows] == [
        ("full", "1", "done", "3"),
        ("child-tuning-d", "1", "done", "3"),
    ]
    assert (folder / "statistics.csv").read_text().count("\n") == 3

    again = compare("--output", folder)  # nothing is left to do, and nothing else is said of it
    assert (again.code, again.out) == (0, first.out)
    assert "going on with the grid of" in again.err
    assert (folder / "results.csv").read_text() == results

    more = compare("--output", folder, "--seeds", "1,2", "--methods", "full", "--max-transfer", 5)
    assert more.code == 0, more.err
    assert "1 finished cells belong to an earlier definition" in more.err
    assert "1 finished cells stay as they were: max_transfer changed since" in more.err
    assert starts(folder).total() == 3
    assert steady((folder / "results.csv").read_text()).splitlines()[1] == steady(results).splitlines()[1]


def test_a_grid_of_relative_files_goes_on_from_another_folder(
    compare: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {"mine": {**own_files(root), "train_file": "train.csv", "dev_file": "dev.csv"}}
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root, model="model", tasks=tasks, methods="full"))
    monkeypatch.chdir(root)
    first = compare("--config", file, "--output", tmp_path / "out", "--max-steps", 1)
    assert first.code == 0, first.err
    monkeypatch.chdir(tmp_path / "out")
    again = compare("--config", "grid.yaml", "--output", ".", "--max-steps", 1)
    assert (again.code, again.out) == (0, first.out)
    assert starts(tmp_path / "out").total() == 2


def test_a_failed_cell_is_shown_and_run_again_when_asked(compare: Run, root: Path, tmp_path: Path) -> None:
    methods = {"full": {}, "wild": {"method": "full", **DIVERGING}}
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root, methods=methods, seeds=[1]))
    folder = tmp_path / "out"
    ended = compare("--config", file, "--output", folder)
    assert ended.code == 0
    assert "1 of 2 cells failed; `--retry-failed` runs them again. The first: mine-wild-seed1-" in ended.err
    with (folder / "results.csv").open() as lines:
        rows = {row["method"]: row for row in csv.DictReader(lines)}
    assert rows["wild"]["state"] == "failed"
    assert rows["wild"]["error"].startswith("NumericError: the ")
    assert rows["full"]["state"] == "done"
    assert compare("--output", folder).out == ended.out
    assert sorted(starts(folder).values()) == [1, 1]
    again = compare("--output", folder, "--retry-failed")
    assert "1 failed cells are run again" in again.err
    assert again.out == ended.out
    assert sorted(starts(folder).values()) == [1, 2]


def test_a_grid_of_failed_cells_alone_exits_with_1(compare: Run, root: Path, tmp_path: Path) -> None:
    methods = {"wild": {"method": "full", **DIVERGING}}
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root, methods=methods, seeds=[1], baseline="wild"))
    ended = compare("--config", file, "--output", tmp_path / "out")
    assert "1 of 1 cells failed" in ended.err
    assert ended.code == 1


def test_searches_alone_are_no_comparison(compare: Run, root: Path, tmp_path: Path) -> None:
    """A search does not look at dev; where no run could be scored, the exit code says so."""
    (root / "broken.csv").write_text("sentence,label\nthe cat,plain\nthe dog,unheard of\n")
    methods = {"full": {"search": {"lr": [1e-3, 5e-3]}}}
    values = grid_values(root, methods=methods, seeds=[1], tasks={"mine": own_files(root, dev="broken.csv")})
    del values["common"]["lr"]
    ended = compare("--config", write_grid_file(tmp_path / "grid.yaml", values), "--output", tmp_path / "out")
    assert "1 of 3 cells failed" in ended.err
    assert ended.code == 1


def test_a_dry_run_prints_the_cells_and_writes_nothing(compare: Run, root: Path, tmp_path: Path) -> None:
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root))
    ended = compare("--config", file, "--output", tmp_path / "out", "--dry-run", "--search-lr", "1e-4,1e-3")
    assert ended.code == 0, ended.err
    assert not (tmp_path / "out").exists()
    lines = ended.out.splitlines()
    assert sum(line.startswith("open ") for line in lines) == 4
    assert "later    mine full: 2 seeds, when its search has chosen" in lines
    assert lines[-1] == "0/8 done"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--seeds", "11"], 2, "a number of seeds is 1 to 10"),
        (["--seeds", "4,4"], 2, "a seed stands there twice"),
        (["--train-size", "0"], 2, "integers of at least 1"),
        (["--preset", "gleu"], 2, "unknown preset 'gleu'"),
        (["--tasks", "rtee"], 2, "unknown task 'rtee'"),
        (["--methods", "fulll"], 2, "unknown method 'fulll'"),
        (["--baseline", "bitfit"], 2, "baseline 'bitfit' is none of the methods"),
        (["--lr", "-1"], 2, "lr: got -1"),
        (["--track", "wandbb"], 2, "track: got 'wandbb'"),
        (["--set", "colour=red"], 2, "has an option 'colour'"),
        (["--workers", "0"], 2, "'--workers'"),
        (["--model", "no/such/folder"], 2, "no/such/folder"),
        (["--max-length", "64"], 2, "max_length 64 is more than the 32 tokens"),
        (["--tasks", "rte", "--data-dir", "/nowhere"], 3, "/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_nothing_begins_when_something_is_wrong(
    flags: list[str], code: int, message: str, compare: Run, root: Path, tmp_path: Path
) -> None:
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root))
    ended = compare("--config", file, "--output", tmp_path / "out", *flags)
    assert (ended.code, message in ended.err) == (code, True), ended.err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(compare: Run, root: Path, tmp_path: Path) -> None:
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root))
    ended = compare("--config", file, "--output", root)
    assert ended.code == 2
    assert "holds something that is no grid" in ended.err
    assert not (root / "grid.yaml").exists()


def test_without_a_definition_there_is_nothing_to_run(compare: Run, tmp_path: Path) -> None:
    ended = compare("--output", tmp_path / "out")
    assert ended.code == 2
    assert "a grid needs tasks and methods: give --tasks, or a --preset or --config" in ended.err


def test_absent_files_are_told_before_the_first_run(compare: Run, root: Path, tmp_path: Path) -> None:
    tasks: dict[str, Any] = {"mine": own_files(root), "other": own_files(root, train="absent.csv")}
    file = write_grid_file(tmp_path / "grid.yaml", grid_values(root, tasks=tasks))
    ended = compare("--config", file, "--output", tmp_path / "out")
    assert ended.code == 3
    assert "absent.csv" in ended.err
    assert not (tmp_path / "out").exists()


def test_the_flags_are_the_field_names(compare: Run) -> None:
    text = " ".join(compare("--help").out.split())
    for flag in ("--preset", "--tasks", "--methods", "--seeds", "--train-size", "--workers", "--search-lr", "--lr"):
        assert flag in text
    assert "--resume" not in text
    assert {*GRID, "common", "search"} == set(GridConfig.model_fields)
    assert {f"--{name.replace('_', '-')}" in text for name in GRID} == {True}
    assert "at the end alone. Default: end." in " ".join(text.replace("│", " ").split())
    assert sys.modules["subnetune.cli.compare"].compare.__doc__.splitlines()[0] in text
