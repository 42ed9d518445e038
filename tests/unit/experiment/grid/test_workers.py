"""The scheduler, with cells that only pretend: what becomes of one that crashes, is stopped, or meets a full disk."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from grid_case import forked
from subnetune.core.errors import UsageError
from subnetune.experiment.grid import workers
from subnetune.experiment.grid.cells import Cell
from subnetune.experiment.grid.claims import take
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.plan import Plan
from subnetune.experiment.grid.process import HELD, REFUSED, Line
from subnetune.experiment.signals import asked_to_stop

DONE = CellResult("done", "accuracy", 0.5, seconds=1.0)


class Silent:
    """Shows nothing, and remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def ended(self, plan: Plan, cell: Cell, running: int) -> None:
        self.said.append(cell.name)

    def update(self, plan: Plan, running: Iterable[Cell]) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(workers, "POLL", 0.02)
    grid = GridConfig.from_values({"tasks": "rte", "methods": "full,bitfit", "seeds": 2, "model": "m"})
    folder = GridFolder(tmp_path / "grid")
    folder.write_grid(grid)
    return Plan(folder, grid)


def serve(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, what: Callable[[GridFolder, Cell, Any], None], count: int = 2
) -> tuple[signal.Signals | None, Silent]:
    """Run the plan with `what` in place of training."""

    def work(pipe: Any, folder: GridFolder, grid: GridConfig, cell: Cell, threads: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        claim = take(folder.lock(cell))
        if claim is None:
            sys.exit(HELD)
        with claim:
            folder.note("start", cell)
            what(folder, cell, pipe)

    monkeypatch.setattr(workers, "work", work)
    shown = Silent()
    return workers.Scheduler(plan, shown, count, forked()).run(), shown


def starts(plan: Plan) -> Counter[str]:
    return Counter(json.loads(line)["cell"] for line in plan.folder.journal.read_text().splitlines())


def finish(folder: GridFolder, cell: Cell, pipe: Any) -> None:
    folder.write_result(cell, DONE)


def test_every_cell_is_run_once_and_told_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, shown = serve(plan, monkeypatch, finish)
    assert stop is None
    assert sorted(shown.said) == sorted(cell.name for cell in plan.cells())
    assert set(starts(plan).values()) == {1}
    assert len(plan.done()) == 4
    _, again = serve(plan, monkeypatch, finish)
    assert again.said == []
    assert set(starts(plan).values()) == {1}


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "the process was ended by SIGKILL; see logs/"),
        (lambda: sys.exit(1), "the process ended with exit code 1"),
        (lambda: sys.exit(0), "the process ended with exit code 0"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "the process was ended by SIGTERM"),
    ],
    ids=["killed", "failed", "no result", "terminated"],
)
def test_a_crash_is_the_failure_of_its_cell(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, end: Callable[[], None], message: str
) -> None:
    second = plan.cells()[1]

    def what(folder: GridFolder, cell: Cell, pipe: Any) -> None:
        if cell.name == second.name:
            end()
        finish(folder, cell, pipe)

    serve(plan, monkeypatch, what)
    assert plan.failed() == [second]
    assert len(plan.done()) == 3
    error = plan.results[second.name].error
    assert error is not None
    assert error["type"] == "Crash"
    assert message in error["message"]
    assert starts(plan)[second.name] == 1 + ("SIGTERM" in message) + 1  # its end is noted too; one SIGTERM is forgiven


def test_a_full_disk_stops_the_grid_and_is_no_result(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def what(folder: GridFolder, cell: Cell, pipe: Any) -> None:
        pipe.send("No space left on device")
        sys.exit(REFUSED)

    with pytest.raises(OSError, match="No space left on device"):
        serve(plan, monkeypatch, what, count=1)
    assert len(plan.open()) == 4
    assert starts(plan).total() == 1


def test_a_signal_asks_the_cells_to_stop(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = plan.folder.path / "begun"

    def what(folder: GridFolder, cell: Cell, pipe: Any) -> None:
        Line(pipe)
        begun.touch()
        while (number := asked_to_stop()) is None:
            time.sleep(0.01)
        sys.exit(128 + number)

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    stop, shown = serve(plan, monkeypatch, what, count=1)
    thread.join()
    assert stop == signal.SIGINT
    assert shown.said == ["stopping: 1 running cell may save a checkpoint first; a second signal ends them at once"]
    assert len(plan.open()) == 4
    assert starts(plan).total() == 1


def test_what_another_scheduler_works_on_is_waited_for(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan.cells()[0]
    claim = take(plan.folder.lock(first))
    assert claim is not None

    def other() -> None:
        while len(starts(plan)) < 3:
            time.sleep(0.01)
        plan.folder.write_result(first, DONE)
        claim.release()

    thread = threading.Thread(target=other)
    (plan.folder.journal).touch()
    thread.start()
    _, shown = serve(plan, monkeypatch, finish)
    thread.join()
    assert first.name not in starts(plan)
    assert first.name in shown.said
    assert len(plan.done()) == 4


def test_a_cell_whose_worker_dies_is_taken_over(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    first = plan.cells()[0]
    claim = take(plan.folder.lock(first))
    assert claim is not None
    timer = threading.Timer(0.3, claim.release)  # what the kernel does with a dead process's lock
    timer.start()
    serve(plan, monkeypatch, finish)
    assert starts(plan)[first.name] == 1
    assert len(plan.done()) == 4


def test_threads_are_shared_among_workers(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 8)
    for count, threads in ((1, 8), (3, 2), (20, 1)):
        assert workers.Scheduler(plan, Silent(), count, forked())._threads == threads
    with pytest.raises(UsageError, match="--workers: got 0, allowed is an integer of at least 1"):
        workers.Scheduler(plan, Silent(), 0, forked())
