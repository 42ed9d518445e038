"""What a run says while it works: a progress bar, or a plain line now and then; its JSONL log; and trackers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from subnetune.experiment.result import RunResult
from subnetune.experiment.tracking import Tracking

_SECONDS_BETWEEN_LINES = 15.0


class Reporter:
    """Write to stderr, the log file and the trackers `track` on the main process; do nothing on the others.

    A context manager.
    """

    def __init__(self, *, enabled: bool, track: tuple[str, ...] = ()) -> None:
        self._enabled = enabled
        self.tracking = Tracking(track if enabled else (), self.say)
        self._console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._bar: Progress | None = None
        self._file: IO[str] | None = None
        self._total = 0
        self._last_line = 0.0

    def open(self, log: Path, total: int, done: int, what: str = "training") -> None:
        """Append to the log file at `log` and show the progress of `total` steps of `what`, `done` of them taken."""
        if not self._enabled:
            return
        self._total = total
        self._last_line = time.monotonic()
        self._file = log.open("a", encoding="utf-8")
        self._show_bar(what, total, done)

    def scoring(self, done: int, total: int, loss: float) -> None:
        """Show that `done` of the `total` steps of a score are taken, before there is a log."""
        if not self._enabled:
            return
        if self._bar is None:
            self._show_bar("scoring", total, done)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=f"scoring, loss {loss:.4f}")
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"scoring step {done}/{total}  loss {loss:.4f}")

    def _show_bar(self, name: str, total: int, done: int) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._bar.add_task(name, total=total, completed=done)

    def say(self, message: str) -> None:
        """Print one line for the reader."""
        if self._enabled:
            self._console.print(message)

    def step(
        self,
        step: int,
        *,
        loss: Tensor | float,
        lr: float,
        grad_norm: Tensor | float,
        seconds: float,
        more: Mapping[str, float] | None = None,
    ) -> None:
        """Log one optimizer step, with further values `more`, and show it."""
        if not self._enabled:
            return
        value = float(loss)
        entry = {"step": step, "loss": value, "lr": lr, "grad_norm": float(grad_norm), **(more or {})}
        self._write({**entry, "seconds": round(seconds, 3)})
        self.tracking.log(step, "loss", {name: value for name, value in entry.items() if name != "step"})
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=f"loss {value:.4f}")
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.say(f"step {step}/{self._total}  loss {value:.4f}  lr {lr:.3g}  {seconds:.0f} s")

    def evaluation(self, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Log and print the metrics per split after optimizer step `step`."""
        self._write({"step": step, "evaluation": metrics})
        named = {f"{split}/{name}": value for split, values in metrics.items() for name, value in values.items()}
        self.tracking.log(step, "evaluation", named)
        for split, values in metrics.items():
            shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            self.say(f"step {step}/{self._total}  {split}  {shown}")

    def result(self, steps: int, result: RunResult) -> None:
        """Tell the trackers what the run of `steps` optimizer steps came to, and say where it learned nothing."""
        values = {f"{split}/{name}": x for split, metrics in result.evaluation.items() for name, x in metrics.items()}
        values |= {"trained": result.trained, "delta_bytes": result.delta_bytes, "seconds": result.seconds}
        self.tracking.log(steps, "result", {f"final/{name}": value for name, value in values.items()})
        if result.at_majority:
            split, levels = next(iter(result.majority.items()))
            level = f"{split} {result.metric} {levels[result.metric]:.4f}"
            self.say(f"nothing was learned that shows: always the same answer scores as well ({level})")

    def _write(self, entry: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._file is not None:
            self._file.close()
        self.tracking.close()
