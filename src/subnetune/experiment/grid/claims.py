"""Who works on a cell: a lock per cell that the kernel drops with its process, on one machine or on several.

The lock is `flock`'s, so a worker that died, however it died, holds nothing any more. Where a shared file system keeps
such locks to each machine, two machines may both have it. So the claim itself is a file that only one of them can
create; it says who holds it, the holder touches it every few seconds, and one that another machine touched lately
counts as held. Times are compared with that of a file touched in the same folder: clocks of different machines are not.
A holder that finds another's name in its file, because it was suspended for so long that it was taken for dead, has
lost the claim and is told so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
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

    def __init__(self, path: Path, descriptor: int, token: str, lost: Callable[[], None]) -> None:
        self._path, self._descriptor, self._token, self._lost = path, descriptor, token, lost
        self._done = threading.Event()
        threading.Thread(target=self._touch, name="claim", daemon=True).start()

    def _touch(self) -> None:
        while not self._done.wait(HEARTBEAT):
            try:
                if not self._is_ours():
                    if not self._done.is_set():  # else it was given up while we looked
                        self._lost()
                    return
                os.utime(self._path)
            except OSError:
                continue  # the file system is away: the next touch may reach it again

    def _is_ours(self) -> bool:
        try:
            return (_parsed(self._path.read_bytes()) or {}).get("token") == self._token
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give it up, unless another has it by now. Releasing twice does nothing."""
        if self._done.is_set():
            return
        self._done.set()
        with contextlib.suppress(OSError):  # out of reach: others see that nobody touches it any more
            if self._is_ours():
                self._path.unlink()
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def take(path: Path, lost: Callable[[], None] = lambda: None) -> Claim | None:
    """Return the claim at `path`, or None where somebody else holds it; never waits for its release.

    `lost` is called, in another thread, when another machine is found to have taken the claim over in the meantime.
    Raises UsageError where the file system has no locks, OSError where it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path)
    if descriptor is None:
        return None
    token = secrets.token_hex(8)
    try:
        if _create(path, token) or _take_over(path, token):
            return Claim(path, descriptor, token, lost)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _create(path: Path, token: str) -> bool:
    """Make the claim's file; only one of all machines can."""
    ours = _named(path, token)
    try:
        os.link(ours, path)  # with its content at once
    except FileExistsError:
        return False
    except OSError:  # no links here: between these two lines it names nobody
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as file:
            file.write(ours.read_bytes())
    finally:
        ours.unlink()
    return True


def _take_over(path: Path, token: str) -> bool:
    """Put our name in place of one that holds nothing any more. This machine's lock is ours: its processes wait."""
    try:
        here, age = _is_here(_content(path)), _age(path)
    except FileNotFoundError:
        return _create(path, token)  # given up meanwhile
    if not here and age < FRESH:
        return False
    os.replace(_named(path, token), path)
    if age >= FRESH / 2:  # another machine may have found the same claim stale, and written its name as well
        time.sleep(SETTLE)
        return (_content(path) or {}).get("token") == token
    return True


def _named(path: Path, token: str) -> Path:
    """Return a file beside the claim's that says who we are."""
    about = {"host": socket.gethostname(), "pid": os.getpid(), "machine": machine(), "token": token}
    text = json.dumps({**about, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}) + "\n"
    ours = path.with_name(f".by.{token}")
    with ours.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return ours


def is_free(path: Path) -> bool:
    """Return whether `take` would get it now. Holds it for an instant: who tries just then must try again."""
    if not path.exists():
        return True
    descriptor = _locked(path)
    if descriptor is None:
        return False
    try:
        return _is_here(_content(path)) or _age(path) >= FRESH
    except FileNotFoundError:
        return True
    finally:
        os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """Return who the file at `path` names, None where it names nobody. It only reads: for showing, not for deciding."""
    found = _content(path)
    if found is None:
        return None
    pid = int(found.get("pid", 0))
    try:
        alive = _runs(pid) if _is_here(found) else _age(path) < FRESH
    except FileNotFoundError:
        return None  # given up meanwhile
    return Holder(str(found.get("host", "")), pid, alive)


@cache
def machine() -> str:
    """Return a name of this machine since it started: no two machines share it, all its containers do."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _is_here(found: dict[str, Any] | None) -> bool:
    """Whether a claim is of this machine. One without a name may be another's that is being written."""
    return found is not None and found.get("machine") == machine()


def _locked(path: Path) -> int | None:
    """Return a descriptor of the locked file beside the claim, or None where another process has the lock."""
    guard = path.with_name(f".{path.name}.lock")
    descriptor = os.open(guard, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened, there = os.fstat(descriptor), guard.stat()
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


def _content(path: Path) -> dict[str, Any] | None:
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None  # its writer is just beginning, or died before it had begun
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
