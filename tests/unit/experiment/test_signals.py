"""The first signal is remembered, and the handlers that were there come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from subnetune.experiment.signals import Stopped, StopSignals, ask_to_stop, asked_to_stop, stop_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_remembered(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) is before


def test_second_signal_exits_at_once() -> None:
    code = (
        "import os, signal\nfrom subnetune.experiment.signals import StopSignals\n"
        "with StopSignals():\n os.kill(os.getpid(), signal.SIGTERM)\n print('first', flush=True)\n"
        " os.kill(os.getpid(), signal.SIGTERM)\n print('second', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 143, done.stderr
    assert done.stdout == "first\n"


def test_other_threads_catch_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        with StopSignals() as signals:
            seen.append(signals.received)
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, before]


def test_a_wish_to_stop_counts_as_a_signal_for_every_run_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subnetune.experiment.signals._asked", [])
    alone: Any = SimpleNamespace(num_processes=1)
    assert stop_signal(StopSignals(), alone) is asked_to_stop() is None
    thread = threading.Thread(target=ask_to_stop, args=(signal.SIGTERM,))
    thread.start()
    thread.join()
    ask_to_stop(signal.SIGINT)  # the first one counts
    assert asked_to_stop() == signal.SIGTERM
    assert stop_signal(StopSignals(), alone) is signal.SIGTERM
    assert stop_signal(StopSignals(signal.SIGINT), alone) is signal.SIGINT


def test_stopped_exits_with_the_shell_convention() -> None:
    assert Stopped(signal.SIGINT).code == 130
    assert Stopped(signal.SIGTERM).code == 143
    assert not isinstance(Stopped(signal.SIGINT), Exception)
