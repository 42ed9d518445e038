"""Claims: one holder at a time, a dead one's is free at once, another machine's as soon as it is stale."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from subnetune.core.errors import UsageError
from subnetune.experiment.grid import claims
from subnetune.experiment.grid.claims import holder, is_free, take


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "cell"


def of_another_machine(lock: Path, age: float) -> None:
    """Write what a worker on another machine would have left `age` seconds ago."""
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"host": "far", "pid": 1, "machine": "another", "token": "theirs"}))
    touched = time.time() - age
    os.utime(lock, (touched, touched))


def test_one_holder_at_a_time(lock: Path) -> None:
    assert is_free(lock)
    claim = take(lock)
    assert claim is not None
    assert not is_free(lock)
    assert take(lock) is None
    found = holder(lock)
    assert found is not None
    assert (found.pid, found.alive) == (os.getpid(), True)
    claim.release()
    claim.release()  # does nothing
    assert holder(lock) is None
    assert is_free(lock)
    with take(lock) or pytest.fail("it is free"):
        assert take(lock) is None
    assert is_free(lock)


def test_the_claim_of_a_killed_process_is_free_at_once(lock: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom subnetune.experiment.grid.claims import take\n"
        "claim = take(Path(sys.argv[1]))\nprint('taken', flush=True)\ntime.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"taken\n"
    assert take(lock) is None
    found = holder(lock)
    assert found is not None
    assert (found.pid, found.alive) == (process.pid, True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    dead = holder(lock)
    assert dead is not None
    assert (dead.pid, dead.alive) == (process.pid, False)
    claim = take(lock)
    assert claim is not None
    claim.release()


def test_another_machines_claim_holds_while_it_is_touched(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "SETTLE", 0.01)
    of_another_machine(lock, age=10)
    assert not is_free(lock)
    assert take(lock) is None
    assert json.loads(lock.read_text())["token"] == "theirs"
    assert holder(lock) == ("far", 1, True)
    of_another_machine(lock, age=claims.FRESH + 5)
    assert holder(lock) == ("far", 1, False)
    assert is_free(lock)
    claim = take(lock)
    assert claim is not None
    assert json.loads(lock.read_text())["pid"] == os.getpid()
    claim.release()


def test_two_machines_that_take_one_stale_claim_at_once(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their locks do not meet: the one whose name stays has it."""
    of_another_machine(lock, age=claims.FRESH + 5)

    def meanwhile(seconds: float) -> None:
        of_another_machine(lock, age=0)

    monkeypatch.setattr("subnetune.experiment.grid.claims.time.sleep", meanwhile)
    assert take(lock) is None
    assert json.loads(lock.read_text())["token"] == "theirs"


def test_the_holder_touches_its_claim(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    with take(lock) or pytest.fail("it is free"):
        os.utime(lock, (0, 0))
        end = time.monotonic() + 10
        while lock.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert lock.stat().st_mtime > 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "here"'], ids=["empty", "half", "list", "cut"])
def test_what_a_dying_writer_left_holds_nothing(lock: Path, content: str) -> None:
    lock.parent.mkdir()
    lock.write_text(content)
    assert holder(lock) is None
    assert is_free(lock)


def test_a_lock_that_is_removed_while_it_is_taken_is_not_taken(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = claims.fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        real(descriptor, how)
        lock.unlink()
        lock.write_text("")  # another file by the same name

    monkeypatch.setattr(claims.fcntl, "flock", flock)
    assert take(lock) is None


def test_a_file_system_without_locks_is_refused(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claims.fcntl, "flock", flock)
    with pytest.raises(UsageError, match="this file system has no locks"):
        take(lock)
