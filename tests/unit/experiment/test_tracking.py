"""Trackers: TensorBoard's files read back, the others as fakes under Accelerate; none of them changes a run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import numpy as np
import pytest
import torch
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from subnetune.core.errors import NumericError, UsageError
from subnetune.experiment import loop, tracking
from subnetune.experiment.config import RunConfig
from subnetune.experiment.names import run_name
from subnetune.experiment.progress import Reporter
from subnetune.experiment.rundir import RunDir
from tiny_run import make_root, options, run

STEPS = 8


class Fake(GeneralTracker):
    """What the services' trackers have in common: it notes all it is told, and draws random numbers all the time."""

    requires_logging_directory = False
    made: ClassVar[list[Fake]] = []
    breaks_at: ClassVar[int] = -1

    def __init__(self, project: str, **settings: Any) -> None:
        super().__init__()
        self.project, self.settings = project, settings
        self.parameters: dict[str, Any] = {}
        self.entries: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.info = self  # as mlflow's active run has
        self.run_id = settings.get("run_id") or f"given-{len(self.made)}"
        self.made.append(self)

    @property
    def tracker(self) -> Any:
        return self

    def start(self) -> None:
        self.draw()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.parameters = values

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None
        self.draw()
        if len(self.entries) == self.breaks_at:
            raise ConnectionError("no answer\nfrom the server")
        self.entries.append((step, values))

    def finish(self) -> None:
        self.draw()
        self.finished += 1

    def draw(self) -> None:
        random.random()
        np.random.rand()
        torch.rand(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(scope="module")
def untracked(root: Path) -> bytes:
    """The delta of the run without trackers."""
    result = run(**options(root, output=str(root / "untracked"), max_steps=STEPS))
    assert not (result.path / "tracking").exists()
    return (result.path / "delta.safetensors").read_bytes()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """Put fakes in the place of the three services; return the list of those that are made."""
    names = ("trackio", "wandb", "mlflow")
    for name in names:
        kind = type(name, (Fake,), {"name": name, "made": (made := Fake.made)})
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, kind)
    made.clear()
    real, find = accelerate.tracking.get_available_trackers(), tracking.find_spec
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: [*real, *map(LoggerType, names)])
    monkeypatch.setattr(tracking, "find_spec", lambda name: name in names or find(name))
    for variable in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    return made


def test_tensorboard_is_told_what_the_log_says_and_a_resumed_run_says_it_once(
    root: Path, tmp_path: Path, untracked: bytes, fakes: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    names = ["tensorboard", "trackio", "wandb", "mlflow"]
    values = options(root, output=str(tmp_path / "run"), max_steps=STEPS, save_steps=3, track=names)

    def breaks_off(loss: torch.Tensor, norm: torch.Tensor, index: int) -> None:
        if index == 5:
            raise NumericError("a stop between two checkpoints")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_finite", breaks_off)
        with pytest.raises(NumericError, match="a stop between"):
            run(**values)
    assert [fake.finished for fake in fakes] == [1, 1, 1]
    before = {fake.name: fake for fake in fakes}
    result = run(**values | {"resume": True})
    after = {fake.name: fake for fake in fakes[3:]}

    assert (result.path / "delta.safetensors").read_bytes() == untracked
    log = [json.loads(line) for line in RunDir(result.path).log.read_text().splitlines()]
    loss = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    assert [step for step, _ in loss] == list(range(1, STEPS + 1))

    # TensorBoard: two files, of which the first one's steps 4 and 5 are purged.
    events = accumulator.EventAccumulator(str(result.path / "tracking" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in loss]
    assert [event.step for event in events.Scalars("dev/accuracy")] == [7, STEPS]
    assert events.Scalars("final/dev/accuracy")[0].value == pytest.approx(result.value)
    assert len(list((result.path / "tracking" / "tensorboard").glob("*/hparams.yml"))) == 1

    # The services: the same run goes on. Two of them keep what they were told, so they are told the rest alone.
    for name, fake in before.items():
        assert [step for step, told in fake.entries if "loss" in told] == [1, 2, 3, 4, 5]
        assert {*fake.entries[0][1]} == {"loss", "lr", "grad_norm"}
        assert fake.parameters["method"] == "child-tuning-d"
        assert fake.parameters["lr"] == 5e-3
        again = [step for step, told in after[name].entries if "loss" in told]
        assert again == ([4, 5, 6, 7, 8] if name == "wandb" else [6, 7, 8])
        assert after[name].parameters == {}  # of a run that goes on they are known
        assert after[name].entries[-1][1]["final/dev/accuracy"] == result.value
        assert after[name].finished == 1
    first, second = before["wandb"].settings, after["wandb"].settings
    assert first["id"] == second["id"]
    assert (first["resume"], first["dir"]) == ("allow", str(tmp_path / "run" / "tracking"))
    assert before["trackio"].settings["name"] == after["trackio"].settings["name"]
    assert before["trackio"].settings["config"] == before["trackio"].parameters
    assert (before["trackio"].settings["resume"], after["trackio"].settings["resume"]) == ("never", "must")
    assert (before["mlflow"].settings["run_id"], after["mlflow"].settings["run_id"]) == (None, before["mlflow"].run_id)


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(
    root: Path,
    tmp_path: Path,
    untracked: bytes,
    fakes: list[Fake],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wandb = accelerate.tracking.LOGGER_TYPE_TO_CLASS["wandb"]
    monkeypatch.setattr(wandb, "breaks_at", 2)
    result = run(**options(root, output=str(tmp_path / "run"), max_steps=STEPS, track="wandb,trackio"))
    assert (result.path / "delta.safetensors").read_bytes() == untracked
    said = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert len(said) == 1
    assert "the tracker wandb failed (ConnectionError: no answer) and is left out" in said[0]
    broken, whole = fakes
    assert (len(broken.entries), broken.finished) == (2, 0)
    assert [step for step, told in whole.entries if "loss" in told] == list(range(1, STEPS + 1))


def test_a_tracker_that_does_not_start_stops_the_run_before_a_step(
    root: Path, tmp_path: Path, fakes: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: Fake) -> None:
        raise RuntimeError("no key")

    monkeypatch.setattr(accelerate.tracking.LOGGER_TYPE_TO_CLASS["wandb"], "start", start)
    values = options(root, output=str(tmp_path / "run"), max_steps=1)
    with pytest.raises(UsageError, match=r"the tracker wandb does not start \(RuntimeError: no key\); leave it out"):
        run(**values, track=["mlflow", "wandb"])
    assert [fake.finished for fake in fakes] == [1, 0]
    assert not RunDir(tmp_path / "run").log.exists()
    assert run(**values, resume=True).finished  # without it
    assert not (tmp_path / "run" / "tracking").exists()


def test_a_tracker_that_is_not_installed_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    values = {"task": "rte", "model": str(tmp_path / "none"), "output": str(tmp_path / "run")}
    with pytest.raises(UsageError, match="--track mlflow needs the package 'mlflow': pip install mlflow"):
        run(**values, track=["mlflow"])
    with pytest.raises(UsageError, match=r"pip install 'subnetune\[track\]'"):
        run(**values, track=["tensorboard"])
    assert not (tmp_path / "run").exists()


def test_variables_of_the_environment_win(fakes: list[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[str | None] = []
    mlflow = accelerate.tracking.LOGGER_TYPE_TO_CLASS["mlflow"]
    monkeypatch.setattr(mlflow, "start", lambda self: where.append(tracking.os.environ.get("MLFLOW_TRACKING_URI")))

    def start(names: tuple[str, ...]) -> None:
        with Reporter(enabled=True, track=names) as reporter:
            reporter.tracking.start(RunConfig(task="rte"), RunDir(tmp_path), 0)

    start(("mlflow", "wandb"))
    assert where == [f"sqlite:///{tmp_path / 'tracking' / 'mlflow' / 'mlflow.db'}"]
    assert "MLFLOW_TRACKING_URI" not in tracking.os.environ  # the next run has its own
    assert fakes[1].project == "subnetune"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "known")
    start(("mlflow", "wandb"))
    assert where[1:] == ["sqlite:///mine.db"]
    assert fakes[2].settings["logging_dir"] is None
    assert fakes[3].project == "mine"
    assert {*fakes[3].settings} == {"resume", "name", "dir"}


def test_other_processes_than_the_main_one_track_nothing(fakes: list[Fake], tmp_path: Path) -> None:
    with Reporter(enabled=False, track=("wandb",)) as reporter:
        reporter.tracking.start(RunConfig(task="rte"), RunDir(tmp_path), 0)
    assert fakes == []
    assert list(tmp_path.iterdir()) == []


def test_the_option_is_a_list_of_known_names_and_is_no_part_of_a_runs_name() -> None:
    config = RunConfig.from_values({"task": "rte", "track": "tensorboard, mlflow"})
    assert config.track == ("tensorboard", "mlflow")
    assert run_name(config) == "rte-full"
    with pytest.raises(UsageError, match="track: got 'tensorbord', allowed is tensorboard, trackio, wandb or mlflow"):
        RunConfig.from_values({"task": "rte", "track": "tensorbord"})


def test_hyper_parameters_are_plain_values() -> None:
    given = {"task": "rte", "method": "bitfit", "options": {"terms": ["query", "key"]}, "lr": 1e-3, "track": "wandb"}
    found = tracking.hyper_parameters(RunConfig.from_values(given))
    assert found["options.terms"] == '["query", "key"]'
    assert (found["lr"], found["bf16"]) == (1e-3, False)
    assert not {"track", "resume"} & {*found}
