"""The scheduler of a grid: a process per cell, several at once, until every cell has a result.

A cell that crashes (a segmentation fault, the kernel's out-of-memory killer) fails alone. Several schedulers may serve
one folder, on one machine or on several: what another one works on is left to it, and taken over if its process dies.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol

from subnetune.core.errors import UsageError
from subnetune.experiment.grid.cells import Cell
from subnetune.experiment.grid.child import forget
from subnetune.experiment.grid.claims import is_free, take
from subnetune.experiment.grid.folder import CellResult
from subnetune.experiment.grid.plan import Plan
from subnetune.experiment.grid.process import HELD, PRELOAD, REFUSED, work
from subnetune.experiment.signals import StopSignals

POLL = 0.5  # seconds between looks at what other schedulers have done
_STOPPED = {code for number in (signal.SIGINT, signal.SIGTERM) for code in (-number, 128 + number)}


class Shown(Protocol):
    """What a scheduler tells: of a cell that ended, and now and then how things stand."""

    def ended(self, plan: Plan, cell: Cell, running: int) -> None:
        """Say that a cell has a result now; `running` others are being worked on here."""

    def update(self, plan: Plan, running: Iterable[Cell]) -> None:
        """Show how things stand, with the cells that are being worked on here."""

    def say(self, text: str) -> None:
        """Say something else."""


class Child(NamedTuple):
    """A process that works on a cell, and the pipe to it."""

    cell: Cell
    process: BaseProcess
    pipe: Connection


def forkserver() -> BaseContext:
    """Return the context whose server has imported, once for all cells, what a cell needs; start the server.

    A batch system's SIGTERM for all processes must not end it: without it nobody would wait for the cells to stop. It
    ends with the scheduler.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    multiprocessing.resource_tracker.ensure_running()  # itself; it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # the server inherits the mask
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Scheduler:
    """Runs the open cells of a plan. Final."""

    def __init__(self, plan: Plan, show: Shown, workers: int, context: BaseContext | None = None) -> None:
        if workers < 1:
            raise UsageError(f"--workers: got {workers}, allowed is an integer of at least 1")
        self._plan, self._show, self._workers = plan, show, workers
        self._threads = max(1, cores() // workers)
        self._context: Any = context  # the server is started with the first cell
        self._children: dict[str, Child] = {}
        self._stopped: Counter[str] = Counter()
        self._refused = ""

    def run(self) -> signal.Signals | None:
        """Work until all cells have results, here or elsewhere. Return the signal that stopped it before, or None.

        The first SIGINT or SIGTERM lets running cells save a checkpoint; a second one ends everything at once. Raises
        OSError, when running cells have stopped, for what the machine refused (a full disk): no result of any cell.
        """
        with StopSignals() as signals:
            asked = False
            try:
                while True:
                    ended = self._plan.refresh()
                    stop = signals.received or (signal.SIGTERM if self._refused else None)
                    if stop is None:
                        self._start_more()
                    elif not asked:
                        asked = True
                        self._ask_to_stop(stop)
                    for cell in ended:
                        self._show.ended(self._plan, cell, len(self._children))
                    if not self._children and (stop is not None or not self._plan.open()):
                        break
                    self._show.update(self._plan, [child.cell for child in self._children.values()])
                    self._wait(stopping=signals)
            finally:
                for child in self._children.values():
                    child.process.kill()  # only on an error of this process: it must not leave them behind
        if self._refused:
            raise OSError(self._refused)
        return signal.Signals(signals.received) if signals.received else None

    def _start_more(self) -> None:
        for cell in self._plan.open():
            if len(self._children) >= self._workers:
                return
            if cell.name not in self._children and is_free(self._plan.folder.lock(cell)):
                self._children[cell.name] = self._start(cell)

    def _start(self, cell: Cell) -> Child:
        self._context = self._context or forkserver()
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._plan.folder, self._plan.grid, cell, self._threads)
        process = self._context.Process(target=work, args=arguments, name=cell.name)
        process.start()
        theirs.close()
        return Child(cell, process, ours)

    def _wait(self, stopping: StopSignals) -> None:
        """Wait until a child ends, or for a moment; find out what became of those that have ended."""
        if not self._children:
            time.sleep(POLL)  # only other schedulers' cells are left
            return
        ready = wait([child.process.sentinel for child in self._children.values()], POLL)
        for child in [child for child in self._children.values() if child.process.sentinel in ready]:
            child.process.join()
            del self._children[child.cell.name]
            self._ended(child, child.process.exitcode or 0, stopping.received is not None or bool(self._refused))
            child.pipe.close()
            child.process.close()

    def _ended(self, child: Child, code: int, stopping: bool) -> None:
        if code == REFUSED:
            self._refused = self._refused or _word(child.pipe)
        elif code == HELD or self._plan.folder.result(child.cell) is not None or stopping:
            return
        elif code in _STOPPED and not self._stopped[child.cell.name]:
            # Somebody's signal for this process, or one for us all of which ours is on the way: it is begun again.
            self._stopped[child.cell.name] += 1
        else:
            self._crashed(child.cell, code)

    def _crashed(self, cell: Cell, code: int) -> None:
        folder = self._plan.folder
        claim = take(folder.lock(cell))
        if claim is None:
            return  # another scheduler was faster: it has taken the cell over
        with claim:
            if folder.seen(cell) is None:
                how = f"was ended by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
                error = {"type": "Crash", "message": f"the process {how}; see logs/{folder.log(cell).name}"}
                folder.write_result(cell, CellResult("failed", error=error))
                folder.note("end", cell, state="failed", code=code)

    def _ask_to_stop(self, number: int) -> None:
        if self._children:
            count = f"{len(self._children)} running cell{'s' if len(self._children) > 1 else ''}"
            self._show.say(f"stopping: {count} may save a checkpoint first; a second signal ends them at once")
        for child in self._children.values():
            with contextlib.suppress(OSError):  # it has just ended
                child.pipe.send(int(number))


def retry_failed(plan: Plan) -> int:
    """Make failed cells open again, those that nobody works on; return how many."""
    count = 0
    for cell in plan.failed():
        claim = take(plan.folder.lock(cell))
        if claim is None:
            continue
        with claim:
            result = plan.folder.seen(cell)
            if result is not None and result.state == "failed":
                forget(plan.folder, cell)
                plan.forget(cell)
                count += 1
    return count


def _word(pipe: Connection) -> str:
    """Return what a child has said last."""
    try:
        return str(pipe.recv()) if pipe.poll() else "the machine refused something; see the logs"
    except (EOFError, OSError):
        return "the machine refused something; see the logs"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
