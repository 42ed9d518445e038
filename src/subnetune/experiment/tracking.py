"""A run's log in TensorBoard, trackio, Weights & Biases or MLflow as well, through Accelerate's trackers.

The record is `log.jsonl`. A tracker is told the same numbers, on the main process alone, and changes nothing: random
states are put back after every call, and one that fails is left out of the rest of the run. What it writes on this
machine lies in the run directory's `tracking`, unless its own environment variables say where.

A resumed run goes on in the tracker's run, at its step. Steps that were logged after the checkpoint come once: of
TensorBoard's the first ones are purged, W&B drops what it has, trackio and MLflow are not told again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from subnetune.core.errors import UsageError
from subnetune.core.randomness import forked_randomness
from subnetune.experiment.rundir import RunDir, read_json, write_json

if TYPE_CHECKING:
    from subnetune.experiment.fields import Options

PROJECT = "subnetune"
_MLFLOW_URI = "MLFLOW_TRACKING_URI"
_APPEND_ALL = ("trackio", "mlflow")  # these show a step twice when they are told it twice


class _Open(NamedTuple):
    tracker: Any  # accelerate's GeneralTracker
    known: frozenset[tuple[int, str]]  # what it has of the run already: steps, and what was logged at them


def check_installed(names: tuple[str, ...]) -> None:
    """Raise UsageError that says what to install where a tracker's package is missing. Imports none of them."""
    for name in names:
        if find_spec(name) is None:
            what = "'subnetune[track]'" if name == "tensorboard" else name
            raise UsageError(f"--track {name} needs the package {name!r}: pip install {what}, or leave it out")


class Tracking:
    """The trackers `names` of one run, from `start` to `close`; does nothing where there are none.

    `say` tells the reader when one of them fails.
    """

    def __init__(self, names: tuple[str, ...], say: Callable[[str], None]) -> None:
        self._names, self._say = tuple(dict.fromkeys(names)), say
        self._open: dict[str, _Open] = {}
        self._log = Path()
        self._set_uri = False

    def start(self, config: Options, run: RunDir, step: int) -> None:
        """Start a tracker's run after optimizer step `step` (0: a new one), with the options as hyper-parameters.

        Call it before the log of the run is cut: it says what the trackers were told. Raises UsageError where one
        does not start, before any of the run is lost by it.
        """
        if not self._names:
            return
        self._log = run.log
        run.tracking.mkdir(exist_ok=True)
        file = run.tracking / "runs.json"
        runs: dict[str, str] = read_json(file) if step and file.is_file() else {}
        told = _told(run.log)
        for name in self._names:
            before = runs.get(name)
            try:
                with forked_randomness():
                    tracker, runs[name] = self._started(name, run, before, step, hyper_parameters(config))
            except Exception as error:
                self.close()
                raise UsageError(
                    f"the tracker {name} does not start ({_line(error)}); leave it out of --track"
                ) from error
            self._open[name] = _Open(tracker, told if before and name in _APPEND_ALL else frozenset())
        write_json(file, runs)

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Tell every tracker the values after optimizer step `step`; `kind` is the entry's key in `log.jsonl`."""
        for name, (tracker, known) in list(self._open.items()):
            if (step, kind) not in known:
                self._guarded(name, partial(tracker.log, dict(values), step=step))

    def close(self) -> None:
        """Finish every tracker's run."""
        for name, (tracker, _) in list(self._open.items()):
            self._guarded(name, tracker.finish)
        self._open.clear()
        if self._set_uri:
            os.environ.pop(_MLFLOW_URI, None)
            self._set_uri = False

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        try:
            with forked_randomness():
                call()
        except Exception as error:
            # Not tried again: a server that does not answer would hold up every step.
            self._open.pop(name, None)
            self._say(f"the tracker {name} failed ({_line(error)}) and is left out from here on; {self._log} has all")

    def _started(
        self, name: str, run: RunDir, before: str | None, step: int, values: Mapping[str, Any]
    ) -> tuple[Any, str]:
        """Return a started tracker, and what finds its run again. `before` is the latter for a run that goes on."""
        from accelerate import Accelerator

        own = before or uuid.uuid4().hex[:12]
        project = PROJECT
        settings: dict[str, Any] = {}
        if name == "tensorboard":
            # Its folder is `tracking/tensorboard`; events from `purge_step` on are hidden.
            project, settings = name, {"purge_step": step + 1} if before else {}
        elif name == "wandb":
            project, settings = os.environ.get("WANDB_PROJECT", PROJECT), _wandb(run, own)
        elif name == "trackio":
            settings = {"name": f"{_title(run)}-{own}", "resume": "must" if before else "never"}
            settings |= {} if before else {"config": dict(values)}  # it keeps what it is given at the start alone
        elif name == "mlflow":
            settings = {"run_id": before, "run_name": _title(run), "logging_dir": self._mlflow_home(run)}
        accelerator = Accelerator(mixed_precision="no", log_with=name, project_dir=str(run.tracking))
        accelerator.init_trackers(project, None if before else dict(values), {name: settings})
        tracker = accelerator.get_tracker(name)
        return tracker, str(tracker.tracker.info.run_id) if name == "mlflow" else own

    def _mlflow_home(self, run: RunDir) -> str | None:
        """Let MLflow write into the run directory where nothing else is said; return the folder of its artifacts."""
        if _MLFLOW_URI in os.environ:
            return None
        folder = (run.tracking / "mlflow").resolve()
        folder.mkdir(exist_ok=True)
        os.environ[_MLFLOW_URI] = f"sqlite:///{folder / 'mlflow.db'}"
        self._set_uri = True
        return (folder / "artifacts").as_uri()


def hyper_parameters(config: Options) -> dict[str, bool | int | float | str]:
    """Return the options of a run as trackers take them: one plain value a name, `options.NAME` for the method's."""
    flat: dict[str, bool | int | float | str] = {}
    for name, value in config.values().items():
        if name in ("track", "resume"):
            continue
        for key, item in value.items() if isinstance(value, dict) else [(None, value)]:
            plain = item if isinstance(item, bool | int | float | str) else json.dumps(item)
            flat[name if key is None else f"{name}.{key}"] = plain
    return flat


def _wandb(run: RunDir, own: str) -> dict[str, str]:
    """Return what `wandb.init` is given; an argument would win over its environment variable."""
    wanted = {"id": ("WANDB_RUN_ID", own), "resume": ("WANDB_RESUME", "allow")}
    wanted |= {"name": ("WANDB_NAME", _title(run)), "dir": ("WANDB_DIR", str(run.tracking))}
    return {name: value for name, (variable, value) in wanted.items() if variable not in os.environ}


def _title(run: RunDir) -> str:
    return run.path.resolve().name


def _told(log: Path) -> frozenset[tuple[int, str]]:
    """Return the steps in a run's log, each with what was logged: `loss` or `evaluation`."""
    found = set()
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # the line that was being written when the process was killed
        found.add((int(entry["step"]), "evaluation" if "evaluation" in entry else "loss"))
    return frozenset(found)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
