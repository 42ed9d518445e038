"""Claims: one holder at a time, a dead one's is free at once, another machine's as soon as it is stale."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
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
def test_what_a_dying_writer_left_holds_nothing_for_long(
    lock: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "SETTLE", 0.01)
    lock.parent.mkdir()
    lock.write_text(content)
    assert holder(lock) is None
    assert not is_free(lock)  # another machine may be writing it
    assert take(lock) is None
    touched = time.time() - claims.FRESH - 5
    os.utime(lock, (touched, touched))
    assert is_free(lock)
    with take(lock) or pytest.fail("it is free"):
        assert holder(lock) is not None


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("released", [False, True], ids=["new", "released"])
def test_of_machines_whose_locks_do_not_meet_one_takes_a_free_claim(
    lock: Path, monkeypatch: pytest.MonkeyPatch, links: bool, released: bool
) -> None:
    """Threads stand for machines: each believes that it has the lock, and that the others are somewhere else."""
    names = {}
    monkeypatch.setattr(claims.fcntl, "flock", lambda descriptor, how: None)
    monkeypatch.setattr(claims, "machine", lambda: names[threading.get_ident()])
    if not links:
        monkeypatch.setattr(claims.os, "link", lambda *_: raising(PermissionError("no links")))
    if released:
        names[threading.get_ident()] = "one"
        (take(lock) or pytest.fail("it is free")).release()
    together, taken = threading.Barrier(8), []

    def machine(number: int) -> None:
        names[threading.get_ident()] = f"machine {number}"
        together.wait()
        taken.append(take(lock))

    threads = [threading.Thread(target=machine, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 8
    assert sum(claim is not None for claim in taken) == 1
    names[threading.get_ident()] = "one"
    for claim in taken:
        if claim is not None:
            claim.release()
    assert {path.name for path in lock.parent.iterdir()} == {f".{lock.name}.lock"}


def raising(error: Exception) -> None:
    raise error


def test_a_holder_that_was_taken_for_dead_is_told_and_leaves_its_successor_alone(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.01)
    told = threading.Event()
    claim = take(lock, lost=told.set)
    assert claim is not None
    assert not told.wait(0.1)
    lock.unlink()
    of_another_machine(lock, age=0)
    assert told.wait(10)
    claim.release()
    assert holder(lock) == ("far", 1, True)


def test_a_lock_that_is_removed_while_it_is_taken_is_not_taken(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = claims.fcntl.flock
    guard = lock.with_name(f".{lock.name}.lock")

    def flock(descriptor: int, how: int) -> None:
        real(descriptor, how)
        guard.unlink()
        guard.write_text("")  # another file by the same name

    monkeypatch.setattr(claims.fcntl, "flock", flock)
    assert take(lock) is None


def test_a_file_system_without_locks_is_refused(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(claims.fcntl, "flock", flock)
    with pytest.raises(UsageError, match="this file system has no locks"):
        take(lock)
