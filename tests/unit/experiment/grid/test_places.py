"""Where a grid's files lie: its folder is gone on with and reported from anywhere, and no text says where they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from subnetune.experiment.grid.cells import describe_cell, file_digest, groups, model_digest, run_cells
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.places import anchored, without_folders
from subnetune.experiment.grid.plan import Plan
from subnetune.experiment.grid.rows import csv_text, rows
from subnetune.experiment.report.source import read_runs
from subnetune.experiment.rundir import write_json
from subnetune.experiment.strict_yaml import parse_mapping

FILES: dict[str, Any] = {"train_file": "train.csv", "dev_file": "dev.csv", "text": ["x"], "label": "y"}


@pytest.fixture(autouse=True)
def digests_anew() -> None:
    """Digests are kept by path for the life of a process, which stays in its folder; tests do not."""
    file_digest.cache_clear()
    model_digest.cache_clear()


def make_files(root: Path, train: str = "x,y\na,0\n") -> None:
    (root / "model").mkdir(parents=True)
    (root / "model" / "config.json").write_text("{}")
    (root / "train.csv").write_text(train)
    (root / "dev.csv").write_text("x,y\nb,1\n")


def test_models_that_differ_in_the_middle_of_a_file_are_two_models(tmp_path: Path) -> None:
    make_files(tmp_path)
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(1_000_000)
    weights.write_bytes(content)
    first = model_digest(str(tmp_path / "model"))
    content[500_000] = 1
    weights.write_bytes(content)
    model_digest.cache_clear()
    assert model_digest(str(tmp_path / "model")) != first


def grid(**changed: Any) -> GridConfig:
    values = {"tasks": {"mine": FILES}, "methods": "full", "seeds": [1, 2], "model": "model", "data_dir": "data"}
    return GridConfig.from_values(values | changed)


def finish(folder: GridFolder, of: GridConfig, value: float) -> None:
    folder.write_grid(of)
    for cell in run_cells(of, groups(of)[0], {}):
        folder.write_result(cell, CellResult("done", metric="accuracy", value=value))
        write_json(folder.cell(cell) / "cell.json", describe_cell(cell))


def test_paths_are_meant_from_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = anchored(grid(common={"lr": 1e-4}))
    assert (found.model, found.data_dir) == (str(tmp_path / "model"), tmp_path / "data")
    assert found.tasks["mine"] == {
        **FILES,
        "train_file": str(tmp_path / "train.csv"),
        "dev_file": str(tmp_path / "dev.csv"),
    }
    assert (found.common, found.methods) == ({"lr": 1e-4}, {"full": {}})
    cells, others = (list(run_cells(one, groups(one)[0], {})) for one in (grid(common={"lr": 1e-4}), found))
    assert [cell.name for cell in cells] == [cell.name for cell in others]
    monkeypatch.chdir("/")
    assert anchored(found) == found == GridConfig.from_values(parse_mapping(found.to_yaml(), "").values)


@pytest.mark.parametrize("name", ["minilm", "owner/model"])
def test_a_name_of_a_model_stays_one(name: str) -> None:
    assert anchored(grid(model=name, data_dir=None)).model == name


def test_a_grid_is_read_where_its_files_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    finish(GridFolder(tmp_path / "grid"), anchored(grid()), 0.75)
    shutil.move(tmp_path / "here", tmp_path / "there")
    folder = GridFolder(Path(shutil.move(tmp_path / "grid", tmp_path / "moved")))
    found = rows(folder)
    assert [(row.seed, row.value) for row in found] == [(1, 0.75), (2, 0.75)]
    assert all(folder.cell(row.name).is_dir() for row in found)
    plan = Plan(folder, folder.grid())
    assert (len(plan.done()), plan.open(), plan.strangers()) == (2, [], 0)
    runs = read_runs(folder.path)
    assert {runs.values(row)["model"] for row in runs.rows} == {"model"}
    assert "/" not in str([runs.values(row) for row in runs.rows])


def test_other_files_make_other_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    folder = GridFolder(tmp_path / "grid")
    finish(folder, anchored(grid()), 0.75)
    absent = {**FILES, "train_file": "elsewhere/train.csv"}
    assert [row.state for row in rows(folder, anchored(grid(tasks={"mine": absent})))] == ["missing"] * 2
    (tmp_path / "here" / "train.csv").write_text("x,y\nother,0\n")
    file_digest.cache_clear()
    assert [row.state for row in rows(GridFolder(folder.path))] == ["missing"] * 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/data/train.csv, line 3: 2 fields", "train.csv, line 3: 2 fields"),
        ("[Errno 2] No such file or directory: '/home/me/a b.csv'", "[Errno 2] No such file or directory: 'a b.csv'"),
        ("~/runs/x: not a mask", "x: not a mask"),
        ("see https://host.example/a/b and 3/4 of train/dev", "see https://host.example/a/b and 3/4 of train/dev"),
        ("the loss is nan in step 7", "the loss is nan in step 7"),
    ],
)
def test_files_are_told_by_their_names_alone(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_no_folder_is_in_the_error_of_a_row(tmp_path: Path) -> None:
    folder, of = GridFolder(tmp_path / "grid"), GridConfig.from_values({"tasks": "rte", "methods": "full", "seeds": 1})
    folder.write_grid(of)
    error = {"type": "DataError", "message": f"{tmp_path}/train.tsv, line 2: no label"}
    folder.write_result(next(run_cells(of, groups(of)[0], {})), CellResult("failed", error=error))
    text = csv_text(rows(folder))
    assert "DataError: train.tsv, line 2: no label" in text
    assert str(tmp_path) not in text
