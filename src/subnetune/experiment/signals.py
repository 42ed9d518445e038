"""SIGINT and SIGTERM ask a run to stop at the next step; a second one ends the process at once.

Who starts runs in processes of its own may ask by `ask_to_stop` instead: a terminal or a batch system may have sent its
signal to every process already, and passed on it would count as the second one.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_asked: list[int] = []  # by `ask_to_stop`, for the rest of this process


class Stopped(SystemExit):
    """A run ended because of a signal, after its checkpoint was saved. Exits with 128 + signal: 130 or 143.

    A SystemExit, so that no `except Exception` on the way (a grid, a notebook cell) takes it for a failed run.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(128 + number)
        self.signal = number


class StopSignals:
    """Remember the first SIGINT or SIGTERM inside the `with` block, instead of dying from it.

    `received` is the signal's number, or None. The handlers that were there before come back at the end of the block.
    Outside the main thread, where Python allows no handlers, nothing is caught. `received` may be given: a signal that
    came before.
    """

    def __init__(self, received: int | None = None) -> None:
        self.received = received
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            # No cleaning up: whatever is being written stays without its marker, and the next start sweeps it.
            os._exit(128 + number)
        self.received = number


def ask_to_stop(number: int) -> None:
    """Ask the runs of this process, this one and those to come, to stop as signal `number` would. From any thread."""
    _asked.append(number)


def asked_to_stop() -> int | None:
    """Return the signal that `ask_to_stop` named first, or None."""
    return _asked[0] if _asked else None


def stop_signal(signals: StopSignals, accelerator: Accelerator) -> signal.Signals | None:
    """Return the signal that asks this run to stop, on every rank as soon as one of them has received it."""
    number = signals.received or asked_to_stop() or 0
    if accelerator.num_processes > 1:
        number = int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())
    return signal.Signals(number) if number else None
