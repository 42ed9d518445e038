"""How much memory a piece of work holds at its highest: the device's, or on Linux this process's."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch


class PeakMemory:
    """Start when made; `bytes()` is the highest point since then, beyond what was held at the start."""

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._start: int | None = torch.cuda.memory_allocated()
            return
        with contextlib.suppress(OSError):  # where it cannot be written, from the start of the process
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the kernel's peak counts from here
        self._start = _status("VmRSS")

    def bytes(self) -> int | None:
        """Return the highest number of bytes held since the start, less those held then; None where nobody tells.

        0 is a measurement: what was freed before the start and never given back to the system was enough.
        """
        now = torch.cuda.max_memory_allocated() if self._cuda else _status("VmHWM")
        return None if now is None or self._start is None else max(0, int(now) - int(self._start))


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)
