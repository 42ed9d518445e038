"""A grid's folder: what it takes for its own, what a search has chosen, and its journal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from subnetune.core.errors import CheckpointError, UsageError
from subnetune.experiment.grid.cells import Group, run_cells, search_cells
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder

GROUP = Group("rte", "full", None)


def grid(**changed: Any) -> GridConfig:
    return GridConfig.from_values({"tasks": "rte", "methods": "full,child-tuning-d", "model": "m", **changed})


@pytest.fixture
def folder(tmp_path: Path) -> GridFolder:
    return GridFolder(tmp_path / "grid")


def test_the_definition_is_written_and_read_back(folder: GridFolder) -> None:
    with pytest.raises(UsageError, match=r"holds no grid \(no grid.yaml\)"):
        folder.grid()
    folder.write_grid(grid())
    assert folder.grid() == grid()
    before = folder.definition.stat().st_mtime_ns
    folder.write_grid(grid())
    assert folder.definition.stat().st_mtime_ns == before
    folder.write_grid(grid(seeds=5))  # more seeds: the same folder goes on
    assert folder.grid().seeds == grid(seeds=5).seeds


def test_a_folder_of_something_else_is_refused(folder: GridFolder) -> None:
    folder.path.mkdir()
    (folder.path / ".grid.yaml.0123.subnetune-tmp").touch()  # another worker is just making it
    folder.check_is_grid()
    (folder.path / "config.yaml").touch()
    with pytest.raises(UsageError, match=r"holds something that is no grid \(config.yaml\); choose another --output"):
        folder.write_grid(grid())
    assert not folder.definition.exists()
    with pytest.raises(UsageError, match="is a file; a grid needs a folder"):
        GridFolder(folder.path / "config.yaml").check_is_grid()


def test_a_result_is_there_once_it_is_written(folder: GridFolder) -> None:
    folder.write_grid(grid())
    cell = next(run_cells(grid(), GROUP, {}))
    assert folder.result(cell) is None
    assert folder.seen(cell) is None
    result = CellResult("done", metric="accuracy", value=0.5, evaluation={"dev": {"accuracy": 0.5}})
    folder.write_result(cell, result)
    assert folder.result(cell) == folder.seen(cell) == folder.result(cell.name) == result
    assert [path.name for path in folder.cell(cell).iterdir()] == ["result.json"]
    (folder.cell(cell) / "result.json").write_text('{"state": "done", "colour": 3}')
    with pytest.raises(CheckpointError, match="not the result of a cell"):
        folder.result(cell)


@pytest.mark.parametrize(("f1", "accuracy", "low"), [(0.80, 0.72, False), (0.80, 0.68, True), (0.82, 0.6, False)])
def test_a_run_learned_something_where_one_of_the_metrics_says_so(f1: float, accuracy: float, low: bool) -> None:
    scores, levels = {"f1": f1, "accuracy": accuracy}, {"f1": 0.81, "accuracy": 0.68}
    result = CellResult("done", metric="f1", value=f1, evaluation={"dev": scores}, majority={"dev": levels})
    assert result.at_majority is low


def test_a_search_chooses_the_best_mean_and_of_equals_the_first(folder: GridFolder) -> None:
    found = grid(search={"lr": [1e-4, 1e-3, 1e-2], "seeds": [1, 2]})
    cells = search_cells(found, GROUP)
    assert len(cells) == 6
    scores = {(1, 1e-4): 0.5, (1, 1e-3): 0.625, (1, 1e-2): 0.9, (2, 1e-4): 0.75, (2, 1e-3): 0.625}
    for cell in cells[:-1]:
        folder.write_result(cell, CellResult("done", "accuracy", scores[cell.seed, cell.values["lr"]]))
        assert folder.chosen(found, GROUP) is None
    folder.write_result(cells[-1], CellResult("failed", error={"type": "NumericError", "message": "the loss is nan"}))
    assert folder.chosen(found, GROUP) == {"lr": 1e-4}  # 0.625 twice; the mean of 1e-2 is that of a failed run


def test_without_a_choice_there_is_nothing_to_search(folder: GridFolder) -> None:
    assert folder.chosen(grid(), GROUP) == {}
    assert folder.chosen(grid(search={"lr": [1e-4]}), GROUP) == {"lr": 1e-4}


def test_the_journal_has_a_line_for_each_event(folder: GridFolder) -> None:
    folder.write_grid(grid())
    cell = next(run_cells(grid(), GROUP, {}))
    folder.note("start", cell)
    folder.note("end", cell, state="done")
    lines = [json.loads(line) for line in folder.journal.read_text().splitlines()]
    assert [(line["event"], line["cell"]) for line in lines] == [("start", cell.name), ("end", cell.name)]
    assert lines[1]["state"] == "done"
    assert {"time", "host", "pid"} < lines[0].keys()
