"""A run directory: what lies where, one process at a time, and whether a run in it is new, unfinished or finished."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.files import atomic_write, sweep_stale
from subnetune.delta.format import FILE_NAME


@dataclass(frozen=True)
class RunDir:
    """The paths inside a run directory."""

    path: Path

    @property
    def config(self) -> Path:
        """The options of the run, resolved: `config.yaml`."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """The result, written last: it marks the run as finished or failed."""
        return self.path / "metrics.json"

    @property
    def log(self) -> Path:
        """One JSON object a line: each optimizer step, each evaluation."""
        return self.path / "log.jsonl"

    @property
    def delta(self) -> Path:
        """What the run changed: the file that `--delta` means by this folder."""
        return self.path / FILE_NAME

    @property
    def outcome(self) -> Path:
        """The file that a finished run has in any case: its delta."""
        return self.delta

    @property
    def mask(self) -> Path:
        """The static mask, written before step 0; absent where the mask changes or everything trains."""
        return self.path / "mask.safetensors"

    @property
    def environment(self) -> Path:
        """What the result depends on besides the configuration: versions, threads, data, base."""
        return self.path / "environment.json"

    @property
    def labels(self) -> Path:
        """The task and the names of its classes, by id."""
        return self.path / "labels.json"

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that the run read its examples with."""
        return self.path / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints, `step-N`."""
        return self.path / "checkpoints"

    @property
    def scoring(self) -> Path:
        """The folder of what a long score has done before step 0, `step-N`; gone once there is a checkpoint."""
        return self.path / "scoring"

    @property
    def tracking(self) -> Path:
        """The folder of what trackers write on this machine; absent without them."""
        return self.path / "tracking"

    def finished(self) -> dict[str, Any] | None:
        """Return the metrics of a run that ended well (they are written last), or None."""
        if not self.metrics.is_file():
            return None
        metrics = read_json(self.metrics)
        if metrics.get("status") != "finished":
            return None
        if not self.outcome.is_file():
            raise CheckpointError(f"{self.outcome}: missing, though {self.metrics.name} says that the run is finished")
        return metrics

    def forget(self) -> None:
        """Remove what a run without a checkpoint left, all but its configuration: starting over mixes with nothing."""
        for path in (self.metrics, self.log, self.delta, self.mask, self.environment, self.labels):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.tracking, ignore_errors=True)

    def cut_log(self, step: int) -> None:
        """Drop log entries after optimizer step `step`: the resumed run writes them again."""
        if not self.log.is_file():
            return
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line that was being written when the process was killed
            if entry.get("step", 0) <= step:
                kept.append(line + "\n")
        atomic_write(self.log, "".join(kept).encode())


@contextmanager
def open_run(path: Path, *, resume: bool, main: bool = True, kind: type[RunDir] = RunDir) -> Iterator[RunDir]:
    """Create or enter the run directory at `path` and hold its lock until the end of the block (the main process does).

    Raises UsageError, before anything else happens, when `path` cannot be written, holds something already and
    `resume` is False, holds something that is no run, or another process works in it (the message names its pid). The
    lock of a process that died counts for nothing. `kind` is what lies there: `train`'s runs, or another command's.
    """
    if not main:
        yield kind(path)
        return
    if path.exists() and not path.is_dir():
        raise UsageError(f"the output {path} is a file; a run needs a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(
            f"cannot write into the output folder {path} ({error.strerror}); choose another --output"
        ) from error
    try:
        try:
            # The kernel drops this lock with its process, so a stale one cannot exist, whatever the file says.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UsageError(
                f"{path}: another run (process {holder}) works in this folder; wait for it, or stop it"
            ) from error
        _check_contents(kind(path), resume)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        sweep_stale(path)
        yield kind(path)
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _check_contents(run: RunDir, resume: bool) -> None:
    path, config = run.path, run.config.name
    others = [p.name for p in path.iterdir() if p.name != ".lock" and not p.name.startswith(f".{config}.")]
    if others and not resume:
        state = "a finished run" if run.metrics.is_file() and run.finished() else "something"
        raise UsageError(f"{path} holds {state} already; add --resume to continue it, or choose another --output")
    if others and not run.config.is_file():
        raise UsageError(f"{path} holds no run that could be resumed (no {config}), but other files: {others[0]}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; raise CheckpointError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: missing or not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, wanted an object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as readable JSON, whole or not at all; numbers that are not finite become null."""
    atomic_write(path, (json.dumps(_finite(value), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
