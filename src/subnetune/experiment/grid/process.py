"""A cell in a process of its own: it takes the cell's claim, writes to the cell's log, and hears its scheduler.

A pipe to the scheduler carries three things: its end (the scheduler is dead, so this process ends at once and works on
for nobody), the wish to stop (a signal's number), and from here what the machine refused.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from subnetune.experiment.grid.claims import take
from subnetune.experiment.grid.folder import GridFolder
from subnetune.experiment.signals import ask_to_stop, asked_to_stop

if TYPE_CHECKING:
    from subnetune.experiment.grid.cells import Cell
    from subnetune.experiment.grid.config import GridConfig

HELD = 75  # exit codes, as sysexits.h has them: somebody else works on the cell
REFUSED = 74  # the machine refused something; the scheduler is told what

# What a cell needs at once: imported by the server that children are forked from, so that each costs no import time.
PRELOAD = [
    "subnetune.experiment.grid.child",
    "subnetune.experiment.grid.process",
    "subnetune.experiment.loop",
    "subnetune.experiment.recipes",
    "subnetune.engine.kernels.cpu",
    "accelerate",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",  # and all that any model needs
    "sklearn.metrics",
    "scipy.stats",
]


def work(pipe: Connection, folder: GridFolder, grid: GridConfig, cell: Cell, threads: int) -> None:
    """Run the cell; the process's target. Ends with 0 when the cell has its result, with HELD, REFUSED, or 128 + the
    signal that stopped it."""
    from subnetune.experiment.grid.child import run_cell

    # Ctrl-C reaches every process of a terminal; the scheduler decides what becomes of it. Before any thread starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process has its parent's handlers, and its mask
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _say_into(folder, cell)
    faulthandler.enable(file=2)  # a crash says in the log where
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # the tokenizer's
    line = Line(pipe)

    def lost() -> None:
        folder.note("lost", cell)
        os._exit(HELD)  # another machine took us for dead, and works in the folder now

    try:
        claim = take(folder.lock(cell), lost)
        if claim is None:
            sys.exit(HELD)
        with claim:
            if folder.seen(cell) is not None:
                return  # somebody finished it before the claim was ours
            folder.note("start", cell)
            result = run_cell(folder, grid, cell, threads, trained=line.let_go)
            folder.note("end", cell, state=result.state)
    except OSError as error:
        pipe.send(str(error))
        sys.exit(REFUSED)


class Line:
    """The pipe's end in the child: a thread that waits for the scheduler's word, or its death."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._free = False
        threading.Thread(target=self._listen, name="scheduler", daemon=True).start()

    def let_go(self) -> None:
        """From now on a wish to stop ends the process at once: nothing is under way that would be lost."""
        self._free = True
        self._stop_if_asked()

    def _listen(self) -> None:
        parent = multiprocessing.parent_process()
        ends = [self._pipe.fileno(), *([parent.sentinel] if parent is not None else [])]
        try:
            while wait(ends) == ends[:1]:
                ask_to_stop(self._pipe.recv())  # the run saves a checkpoint at its next step
                self._stop_if_asked()
        except (EOFError, OSError):
            pass
        os._exit(128 + signal.SIGKILL)

    def _stop_if_asked(self) -> None:
        number = asked_to_stop()
        if number is not None and self._free:
            os._exit(128 + number)


def _say_into(folder: GridFolder, cell: Cell) -> None:
    """Send what this process says to the cell's log, after what earlier ones have said."""
    log = folder.log(cell)
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
