"""FAULTS 29-36: a resumed run is the run that was never stopped, or an error that says why not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from subnetune.core.errors import CheckpointError, SubnetuneError, UsageError
from subnetune.experiment.progress import Reporter
from subnetune.experiment.signals import Stopped
from tiny_run import make_examples, make_model, make_root, options, run

METHODS = ("child-tuning-d", "child-tuning-f", "bitfit", "full")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("resume"))


def method_options(root: Path, method: str, **changed: Any) -> dict[str, Any]:
    values = options(root, method=method, **changed)
    if not method.startswith("child"):
        del values["keep"]
    return values


@pytest.fixture(scope="module")
def whole(root: Path) -> dict[str, Path]:
    """The uninterrupted run of each method."""
    return {m: run(**method_options(root, m, output=str(root / f"whole-{m}"))).path for m in METHODS}


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """Train until a real SIGTERM, sent inside optimizer step `step`, stops the run."""
    real = Reporter.step

    def reported(self: Reporter, done: int, **entry: Any) -> None:
        real(self, done, **entry)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", reported)
        with pytest.raises(Stopped) as stopped:
            run(**values)
    assert stopped.value.code == 143


def same_result(one: Path, other: Path) -> None:
    assert (one / "delta.safetensors").read_bytes() == (other / "delta.safetensors").read_bytes()
    results = [json.loads((path / "metrics.json").read_text()) for path in (one, other)]
    logs = [[json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (one, other)]
    for entry in (*results, *logs[0], *logs[1]):
        entry.pop("seconds", None)
    assert results[0] == results[1]
    assert logs[0] == logs[1]


# Step 7 is the end of the first epoch; with batches of 2, accumulated twice, every step holds two forwards but the 7th.
@pytest.mark.parametrize(
    ("method", "step"),
    [("child-tuning-d", k) for k in (1, 6, 7, 8, 14)] + [(m, k) for m in METHODS[1:] for k in (5, 7)],
)
def test_fault_35_36_resume_is_bit_equal(
    method: str, step: int, root: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = method_options(root, method, output=str(tmp_path / "run"))
    stop_after(step, monkeypatch, **values)
    assert not (tmp_path / "run" / "delta.safetensors").exists()
    result = run(**values, resume=True)
    assert result.finished
    same_result(result.path, whole[method])


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("child-tuning-d", {"engine": "fused"}),
        pytest.param("child-tuning-d", {"engine": "packed", "gradients": "lean"}, marks=pytest.mark.slow),
        pytest.param("child-tuning-f", {"engine": "fused"}, marks=pytest.mark.slow),
    ],
    ids=["d-fused", "d-lean", "f-fused"],
)
def test_fault_35_36_resume_is_bit_equal_in_every_engine(
    method: str, asked: dict[str, str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = run(**method_options(root, method, output=str(tmp_path / "whole"), **asked))
    values = method_options(root, method, output=str(tmp_path / "run"), **asked)
    stop_after(6, monkeypatch, **values)
    same_result(run(**values, resume=True).path, uninterrupted.path)


def test_fault_36_many_stops_are_as_good_as_none(
    root: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = options(root, output=str(tmp_path / "run"))
    for step in (2, 3, 9):
        stop_after(step, monkeypatch, **values, resume=True)
    same_result(run(**values, resume=True).path, whole["child-tuning-d"])


def test_resume_keeps_the_best_weights(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = options(root, policy="best", epochs=3)
    uninterrupted = run(**{**values, "output": str(tmp_path / "whole")})
    for step in (8, 15):
        stop_after(step, monkeypatch, **{**values, "output": str(tmp_path / "run")}, resume=True)
    same_result(run(**{**values, "output": str(tmp_path / "run")}, resume=True).path, uninterrupted.path)


def test_resume_of_a_finished_run_changes_nothing(root: Path, tmp_path: Path) -> None:
    values = options(root, output=str(tmp_path / "run"), max_steps=2)
    first = run(**values)
    files = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in files if p.name != ".lock"}
    again = run(**values, resume=True)
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before}
    assert after == before
    assert again == first


def test_resume_without_a_checkpoint_starts_over_and_says_so(
    root: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = options(root, output=str(tmp_path / "run"))
    stop_after(4, monkeypatch, **values)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    same_result(run(**values, resume=True).path, whole["child-tuning-d"])
    assert "no complete checkpoint: starting over" in capfd.readouterr().err


@pytest.mark.parametrize("moment", ["Tuning.start", "write_mask_and_environment", "finish"])
def test_a_run_interrupted_beside_its_steps_can_be_resumed(
    moment: str, root: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    values = options(root, output=str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(f"subnetune.experiment.loop.{moment}", interrupted)
        with pytest.raises(Stopped) as stopped:
            run(**values)
    assert stopped.value.code == 130
    with pytest.raises(UsageError, match="--resume"):
        run(**values)
    same_result(run(**values, resume=True).path, whole["child-tuning-d"])


def test_an_existing_output_is_refused_before_the_model_is_loaded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = options(root, output=str(tmp_path / "run"), max_steps=1)
    run(**values)

    def never(*args: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("subnetune.experiment.loop.load_seeded_model", never)
    monkeypatch.setattr("subnetune.experiment.loop.load_examples", never)
    with pytest.raises(UsageError, match="--resume"):
        run(**values)


@pytest.fixture
def stopped(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options of a run that was stopped after step 4, with checkpoints of steps 3 and 4."""
    values = options(root, output=str(tmp_path / "run"), save_steps=3)
    stop_after(4, monkeypatch, **values)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-3", "step-4"]
    return values


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "random.pt", "tuning.pt", "progress.pt", "weights.safetensors", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_fault_29_30_31_a_missing_or_damaged_file_is_named(stopped: dict[str, Any], name: str, damage: str) -> None:
    file = Path(stopped["output"]) / "checkpoints" / "step-4" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=name) as error:
        run(**stopped, resume=True)
    assert error.value.exit_code == 3


def forge(checkpoint: Path, name: str, content: bytes | None) -> None:
    """Change a file, or drop it, and make manifest and marker agree."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    if content is None:
        (checkpoint / name).unlink()
        del manifest["files"][name]
    else:
        (checkpoint / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint / "COMMIT").write_text(hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest())


@pytest.mark.parametrize("part", ["optimizer", "random", "tuning", "progress"])
def test_fault_29_30_a_state_that_was_never_saved_is_an_error(stopped: dict[str, Any], part: str) -> None:
    forge(Path(stopped["output"]) / "checkpoints" / "step-4", f"{part}.pt", None)
    with pytest.raises(CheckpointError, match=f"holds no '{part}'"):
        run(**stopped, resume=True)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "dtype"])
def test_fault_32_a_weight_that_does_not_fit_is_an_error(stopped: dict[str, Any], change: str) -> None:
    checkpoint = Path(stopped["output"]) / "checkpoints" / "step-4"
    weights = load_file(checkpoint / "weights.safetensors")
    name = sorted(weights)[0]
    if change == "missing":
        del weights[name]
    elif change == "unknown":
        weights["stranger"] = weights[name].clone()
        name = "stranger"
    elif change == "shape":
        weights[name] = weights[name].unsqueeze(0).clone()
    else:
        weights[name] = weights[name].double()
    save_file(weights, checkpoint / "weights.safetensors")
    forge(checkpoint, "weights.safetensors", (checkpoint / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=name):
        run(**stopped, resume=True)


def test_fault_33_a_newest_checkpoint_that_is_empty_is_skipped(
    stopped: dict[str, Any], whole: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(stopped["output"]) / "checkpoints"
    (folder / "step-11").mkdir()
    result = run(**stopped, resume=True)
    same_result(result.path, whole["child-tuning-d"])
    said = capfd.readouterr().err
    assert "step-11 was not finished" in said
    assert "resuming after step 4" in said
    assert not (folder / "step-11").exists()


def test_fault_34_changed_options_are_listed(stopped: dict[str, Any]) -> None:
    changed = {**stopped, "lr": 1e-3, "batch_size": 4, "seed": 7, "keep": 0.2, "accumulate": 1}
    with pytest.raises(UsageError) as error:
        run(**changed, resume=True)
    message = str(error.value)
    for name, old, new in (("lr", 0.005, 0.001), ("batch_size", 2, 4), ("seed", 42, 7), ("keep", 0.3, 0.2)):
        assert f"{name}: the run has {old}, now {new}" in message
    assert "max_length" not in message
    assert not (Path(stopped["output"]) / "metrics.json").exists()


def test_fault_34_a_run_goes_on_with_the_engine_that_it_began_with(
    stopped: dict[str, Any], whole: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """`auto` took packed: the model is small."""
    with pytest.raises(CheckpointError, match="was saved by the packed engine.* take the reference: .*--engine packed"):
        run(**stopped, engine="reference", resume=True)
    result = run(**stopped, engine="packed", resume=True)  # by its name
    same_result(result.path, whole["child-tuning-d"])
    assert "engine packed: asked for" in capfd.readouterr().err


def test_fault_34_an_engine_that_was_asked_for_is_an_option_like_any_other(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = options(root, output=str(tmp_path / "run"), engine="packed")
    stop_after(1, monkeypatch, **values)
    with pytest.raises(UsageError, match="engine: the run has 'packed', now 'auto'"):
        run(**{**values, "engine": "auto"}, resume=True)
    with pytest.raises(UsageError, match="gradients: the run has 'dense', now 'lean'"):
        run(**values, gradients="lean", resume=True)


def test_fault_34_another_choice_on_another_machine_is_refused_with_advice(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without compiled kernels would choose otherwise than the one that began the run."""
    values = options(root, output=str(tmp_path / "run"), save_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr("subnetune.engine.choice.SMALL", 0)
        patch.setattr("subnetune.engine.choice._compiled", lambda device: True)
        stop_after(4, monkeypatch, **values)
        uninterrupted = run(**{**values, "output": str(tmp_path / "whole")})
    told = "was saved by the fused engine.* take the packed: .*resume with --engine fused"
    with pytest.raises(CheckpointError, match=told):
        run(**values, resume=True)
    same_result(run(**values, engine="fused", resume=True).path, uninterrupted.path)


def test_fault_34_a_run_from_before_there_were_engines_goes_on_with_the_reference(
    root: Path, whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = options(root, output=str(tmp_path / "run"))
    stop_after(4, monkeypatch, **values, engine="reference")
    config = tmp_path / "run" / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(x for x in lines if not x.startswith(("engine:", "gradients:"))))
    with pytest.raises(CheckpointError, match="was saved by the reference engine.*--engine reference"):
        run(**values, resume=True)
    same_result(run(**values, engine="reference", resume=True).path, whole["child-tuning-d"])


@pytest.mark.parametrize("what", ["examples", "base model"])
def test_fault_34_other_data_or_another_base_are_refused(
    stopped: dict[str, Any], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "examples":
        changed = {**stopped, "train_file": str(make_examples(tmp_path / "other.csv", 26, offset=1))}
    else:
        # The same path, other weights: what the options cannot show.
        moved = tmp_path / "moved"
        shutil.move(stopped["model"], moved)
        make_model(Path(stopped["model"]), seed=1)
        changed = stopped
    try:
        with pytest.raises(SubnetuneError, match=what) as error:
            run(**changed, resume=True)
        assert error.value.exit_code == 3
    finally:
        if what != "examples":
            shutil.rmtree(stopped["model"])
            shutil.move(moved, stopped["model"])


def test_fault_34_another_number_of_processes_is_refused(stopped: dict[str, Any]) -> None:
    environment = Path(stopped["output"]) / "environment.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "world": 2}))
    with pytest.raises(CheckpointError, match="number of processes were 2, now 1"):
        run(**stopped, resume=True)
