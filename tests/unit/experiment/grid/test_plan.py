"""What a grid still has to run, and what its display says of that."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from subnetune.experiment.grid import live
from subnetune.experiment.grid.cells import Group, run_cells
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.live import Display, cell_name, duration, seconds_left, state_line, table
from subnetune.experiment.grid.plan import Plan
from subnetune.experiment.grid.rows import rows
from subnetune.experiment.grid.workers import retry_failed


def grid(**changed: Any) -> GridConfig:
    return GridConfig.from_values({"tasks": "rte,mrpc", "methods": "full,bitfit", "seeds": 2, "model": "m", **changed})


def done(value: float, seconds: float = 10.0) -> CellResult:
    return CellResult("done", "accuracy", value, seconds=seconds)


FAILED = CellResult("failed", error={"type": "NumericError", "message": "the loss is nan in step 3"})


@pytest.fixture
def folder(tmp_path: Path) -> GridFolder:
    return GridFolder(tmp_path)


def test_every_method_gets_its_first_seed_before_any_gets_its_second(folder: GridFolder) -> None:
    plan = Plan(folder, grid())
    assert [(cell.group.task, cell.group.method, cell.seed) for cell in plan.open()] == [
        (task, method, seed) for seed in (42, 52) for task in ("rte", "mrpc") for method in ("full", "bitfit")
    ]
    assert plan.total == 8


def test_results_close_cells_once(folder: GridFolder) -> None:
    plan = Plan(folder, grid())
    first, second, *others = plan.open()
    folder.write_result(second, done(0.5))
    folder.write_result(first, FAILED)
    assert plan.refresh() == [first, second]
    assert plan.refresh() == []
    assert plan.open() == others
    assert (plan.done(), plan.failed()) == ([second], [first])
    assert Plan(folder, grid()).open() == others  # another process, later


def test_runs_are_known_when_their_search_is_finished(folder: GridFolder) -> None:
    found = grid(tasks="rte", search={"lr": [1e-4, 1e-3]})
    plan = Plan(folder, found)
    assert [cell.stage for cell in plan.open()] == ["search"] * 4
    assert plan.waiting == [Group("rte", "full", None), Group("rte", "bitfit", None)]
    assert plan.total == 8
    for cell, value in zip(plan.open(), (0.5, 0.6, 0.7, 0.6), strict=True):
        folder.write_result(cell, done(value))
    plan.refresh()
    assert plan.waiting == []
    assert [(cell.group.method, cell.values["lr"]) for cell in plan.open()] == [("full", 1e-3), ("bitfit", 1e-4)] * 2
    assert plan.total == 8


def test_failed_cells_are_open_again_when_asked(folder: GridFolder) -> None:
    found = grid(tasks="rte", search={"lr": [1e-4, 1e-3]})
    plan = Plan(folder, found)
    for cell in plan.open():
        folder.write_result(cell, FAILED)
    plan.refresh()
    assert (plan.open(), len(plan.failed()), len(plan.waiting)) == ([], 4, 2), "nothing was chosen: nothing is run"
    said = "no setting of its search could be run; the first: NumericError: the loss is nan in step 3"
    assert [row.result for row in rows(folder, found)] == [
        CellResult("failed", error={"type": "Search", "message": said})
    ] * 4
    assert retry_failed(plan) == 4
    assert [cell.stage for cell in plan.open()] == ["search"] * 4
    assert not any(folder.cell(cell).exists() for cell in plan.open())
    assert retry_failed(plan) == 0


def test_finished_cells_of_an_earlier_definition_are_counted(folder: GridFolder) -> None:
    plan = Plan(folder, grid())
    for cell in plan.open()[:3]:
        folder.write_result(cell, done(0.5))
    assert Plan(folder, grid()).strangers() == 0
    assert Plan(folder, grid(tasks="rte")).strangers() == 1
    assert Plan(folder, grid(common={"lr": 1e-3})).strangers() == 3


def test_time_left_is_of_the_method_or_of_all(folder: GridFolder) -> None:
    plan = Plan(folder, grid())
    assert seconds_left(plan, 1) is None
    rte, mrpc = [next(run_cells(plan.grid, Group(task, "full", None), {})) for task in ("rte", "mrpc")]
    folder.write_result(rte, done(0.5, seconds=10.0))
    folder.write_result(mrpc, done(0.5, seconds=30.0))
    plan.refresh()
    assert seconds_left(plan, 1) == 2 * 20.0 + 4 * 20.0  # no bitfit is done: it is taken for the mean of all
    other = next(run_cells(plan.grid, Group("rte", "bitfit", None), {}))
    folder.write_result(other, done(0.5, seconds=5.0))
    plan.refresh()
    assert seconds_left(plan, 2) == (2 * 20.0 + 3 * 5.0) / 2


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (840, "14 min"), (11520, "3.2 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_is_said_when_a_cell_ends(folder: GridFolder, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(folder, grid(train_size=300))
    first, second, *_ = plan.open()
    folder.write_result(first, done(0.52707, seconds=100.0))
    folder.write_result(second, FAILED)
    plan.refresh()
    display = Display(1)
    display.ended(plan, first, 2)
    display.ended(plan, second, 0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "1/8 done, 1 failed, 2 running, about 10 min left; rte full 300 examples seed 42: accuracy 0.5271",
        "1/8 done, 1 failed, about 10 min left; rte bitfit 300 examples seed 42: failed: NumericError: "
        "the loss is nan in step 3",
    ]


def test_on_a_terminal_the_table_stays_below_what_is_said(folder: GridFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_SECONDS_BETWEEN_TABLES", 0.0)
    plan = Plan(folder, grid())
    screen = io.StringIO()
    with Display(1, Console(file=screen, force_terminal=True, width=80, color_system=None)) as display:
        display.update(plan, plan.open()[:1])
        folder.write_result(plan.open()[0], done(0.5))
        for cell in plan.refresh():
            display.ended(plan, cell, 0)
        display.say("stopping")
        display.update(plan, [])
    text = screen.getvalue()
    assert text.index("0/8 done, 1 running") < text.index("rte full seed 42: accuracy 0.5000") < text.index("1/8 done")
    assert "stopping" in text
    assert text.count("mrpc") >= 4


def test_the_table_has_a_row_per_task_and_method(folder: GridFolder) -> None:
    found = grid(search={"lr": [1e-4, 1e-3]})
    plan = Plan(folder, found)
    first, second, *_ = plan.open()
    assert cell_name(first) == "rte full seed 42 (search: lr 0.0001)"
    folder.write_result(first, done(0.5))
    plan.refresh()
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(plan, [second], 1))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["│", "rte", "│", "full", "│", "1", "│", "1", "│", "│", "4", "│"] in lines
    assert ["│", "mrpc", "│", "bitfit", "│", "│", "│", "│", "4", "│"] in lines
    assert state_line(plan, 1, 1).startswith("1/16 done, 1 running")
