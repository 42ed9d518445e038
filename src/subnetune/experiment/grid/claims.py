"""Who works on a cell: a lock per cell that the kernel drops with its process, on one machine or on several.

The lock is `flock`'s, so a worker that died, however it died, holds nothing any more. Where a shared file system keeps
such locks to each machine, two machines may both have it: so the file also says who holds it, the holder touches it
every few seconds, and a file that another machine touched lately counts as held. Times are compared with that of a file
touched in the same folder: clocks of different machines are not.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from subnetune.core.errors import UsageError

HEARTBEAT = 10.0  # seconds between touches
FRESH = 60.0  # a claim of another machine that was not touched for so long is nobody's
SETTLE = 2.0  # how long two machines that took one claim at once wait to see whose name stayed


class Holder(NamedTuple):
    """Who a claim's file names. `alive`: its process is there, or on another machine touched the file lately."""

    host: str
    pid: int
    alive: bool


class Claim:
    """A claim that this process holds, until `release` or the end of its `with` block. Made by `take`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path, self._descriptor = path, descriptor
        self._done = threading.Event()
        threading.Thread(target=self._touch, name="claim", daemon=True).start()

    def _touch(self) -> None:
        while not self._done.wait(HEARTBEAT):
            try:
                os.utime(self._path)
            except OSError:
                continue  # the file system is away: the next touch may reach it again

    def release(self) -> None:
        """Give it up; the file stays, empty. Releasing twice does nothing."""
        if self._done.is_set():
            return
        self._done.set()
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def take(path: Path) -> Claim | None:
    """Return the claim at `path`, or None where somebody else holds it; never waits for its release.

    Raises UsageError where the file system has no locks, OSError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path)
    if descriptor is None:
        return None
    try:
        before = _read(descriptor)
        elsewhere = before is not None and before.get("machine") != machine()
        if elsewhere and _age(path) < FRESH:
            os.close(descriptor)
            return None
        token = secrets.token_hex(8)
        about = {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine(), "token": token}
        text = json.dumps({**about, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}) + "\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        os.fsync(descriptor)
        if elsewhere:  # a third machine may have seen the same stale claim
            time.sleep(SETTLE)
            if (_content(path) or {}).get("token") != token:
                os.close(descriptor)
                return None
    except BaseException:
        os.close(descriptor)
        raise
    return Claim(path, descriptor)


def is_free(path: Path) -> bool:
    """Return whether `take` would get it now. Holds it for an instant: who tries just then must try again."""
    if not path.exists():
        return True
    descriptor = _locked(path)
    if descriptor is None:
        return False
    try:
        before = _read(descriptor)
        return before is None or before.get("machine") == machine() or _age(path) >= FRESH
    finally:
        os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """Return who the file at `path` names, None where it names nobody. It only reads: for showing, not for deciding."""
    found = _content(path)
    if found is None:
        return None
    here = found.get("machine") == machine()
    pid = int(found.get("pid", 0))
    return Holder(str(found.get("host", "")), pid, _runs(pid) if here else _age(path) < FRESH)


@cache
def machine() -> str:
    """Return a name of this machine since it started: no two machines share it, all its containers do."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _locked(path: Path) -> int | None:
    """Return a descriptor of the file that is locked, or None where another process has the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened, there = os.fstat(descriptor), path.stat()
        if (opened.st_dev, opened.st_ino) == (there.st_dev, there.st_ino):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass  # held, or removed between opening and locking: the next try sees what is there then
    except OSError as error:
        os.close(descriptor)
        raise UsageError(
            f"{path}: this file system has no locks ({error.strerror}); choose another --output"
        ) from error
    os.close(descriptor)
    return None


def _read(descriptor: int) -> dict[str, Any] | None:
    return _parsed(os.pread(descriptor, 4096, 0))


def _content(path: Path) -> dict[str, Any] | None:
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None  # empty: released; half a line: its writer died before it began
    return found if isinstance(found, dict) else None


def _age(path: Path) -> float:
    """Return how long ago `path` was touched, by the clock of its file system."""
    now = path.with_name(f".now.{secrets.token_hex(8)}")
    try:
        now.touch()
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        now.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process, but there
    return pid > 0
