"""FAULTS 1 to 4 inside the dense phase of lottery-ticket sparse fine-tuning, before step 0: it goes on where it was."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from subnetune.core.errors import CheckpointError
from subnetune.experiment import loop
from subnetune.experiment.checkpoint import committed, load_checkpoint
from subnetune.experiment.journal import RunJournal
from tiny_run import child, make_examples, make_root, options, run, wait_for

DENSE, SPARSE = 16, 14  # steps; a pass over the examples is 13 batches of the dense phase


class Killed(BaseException):
    """The process dies here: nothing on the way catches this."""


def values(root: Path, output: Path, **changed: Any) -> dict[str, Any]:
    more = {"method": "lt-sft", "keep": 0.1, "options": {"steps": DENSE, "dense_lr": 5e-3}, "save_steps": 4}
    return options(root, output=str(output), **{**more, **changed})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def whole(root: Path) -> Path:
    """A run that nothing disturbed, and that kept nothing on the way."""
    path: Path = run(**values(root, root / "whole", save_steps=None)).path
    assert not (path / "scoring").exists()
    assert not (path / "checkpoints").exists()
    return path


@contextmanager
def dying(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, when: int, *, after: bool = True
) -> Iterator[None]:
    """Die in the `when`-th call of `owner.name`, once it has done its work (or instead of that)."""
    calls, real = [], getattr(owner, name)

    def deadly(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) < when or after:
            result = real(*arguments, **named)
        if len(calls) == when:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, deadly)
        with pytest.raises(Killed):
            yield


def equal(one: Path, two: Path) -> None:
    for name in ("delta.safetensors", "mask.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (one, two)]
    assert metrics[0]["evaluation"] == metrics[1]["evaluation"]


def resumed_equals(whole: Path, given: dict[str, Any]) -> None:
    path = run(**given, resume=True).path
    equal(path, whole)
    assert not (path / "scoring").exists()


@pytest.mark.parametrize(("step", "kept"), [(6, 4), (8, 8), (14, 12)])  # 14: in the second pass over the examples
def test_killed_in_the_dense_phase(
    step: int, kept: int, root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    given = values(root, tmp_path / "run")
    with dying(monkeypatch, RunJournal, "note", step):
        run(**given)
    assert load_checkpoint(committed(tmp_path / "run" / "scoring")[-1]).step == kept
    resumed_equals(whole, given)
    said = capfd.readouterr().err
    assert f"going on with the scores after step {kept}" in said
    assert "starting over" not in said


def test_killed_twice_and_between_the_phases(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    given = values(root, tmp_path / "run", save_steps=3)
    with dying(monkeypatch, RunJournal, "note", 7):
        run(**given)
    with dying(monkeypatch, loop, "write_mask_and_environment", 1, after=False):  # scored, nothing written yet
        run(**given, resume=True)
    with dying(monkeypatch, RunJournal, "clear", 1, after=False):  # the checkpoint of step 0 is there, the journal too
        run(**given, resume=True)
    assert [p.name for p in committed(tmp_path / "run" / "checkpoints")] == ["step-0"]
    assert (tmp_path / "run" / "scoring").is_dir()
    capfd.readouterr()
    with dying(monkeypatch, RunJournal, "note", 1):  # no score is taken again, so nobody dies of this
        resumed_equals(whole, given)
        raise Killed
    assert f"resuming after step 0 of {SPARSE}" in capfd.readouterr().err


def test_killed_while_the_journal_is_written(
    root: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    given = values(root, tmp_path / "run")
    with dying(monkeypatch, torch, "save", 3):  # two files each: in the middle of the second save
        run(**given)
    folder = tmp_path / "run" / "scoring"
    assert sorted(p.name for p in folder.iterdir()) == [".step-8.partial", "step-4"]
    resumed_equals(whole, given)


def test_a_process_that_dies_of_sigkill(root: Path, whole: Path, tmp_path: Path) -> None:
    given = values(root, tmp_path / "run")
    before = (
        "import os, signal\nfrom subnetune.experiment.journal import RunJournal\nreal = RunJournal.note\n"
        "def note(self, done, *more):\n    real(self, done, *more)\n"
        "    if done == 10: os.kill(os.getpid(), signal.SIGKILL)\nRunJournal.note = note\n"
    )
    process = child(given, before)
    _, said = process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL, said
    process.communicate()
    resumed_equals(whole, given)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_finishes_the_dense_step_and_saves(
    number: signal.Signals, root: Path, whole: Path, tmp_path: Path
) -> None:
    given = values(root, tmp_path / "run", save_steps=None)
    before = (
        "import time\nfrom pathlib import Path\nfrom subnetune.experiment.journal import RunJournal\n"
        f"real = RunJournal.note\nmark = Path({str(tmp_path / 'mark')!r})\n"
        "def note(self, done, *more):\n    real(self, done, *more)\n    mark.write_text(str(done))\n"
        "    time.sleep(0.2)\nRunJournal.note = note\n"
    )
    process = child(given, before)
    wait_for((tmp_path / "mark").exists, process, 240)
    process.send_signal(number)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 128 + number, said
    step = load_checkpoint(committed(tmp_path / "run" / "scoring")[-1]).step
    assert f"stopped by {number.name} after step {step} of {DENSE} of the scores; go on with --resume" in said
    resumed_equals(whole, given)
    assert [p.name for p in committed(tmp_path / "run" / "checkpoints")] == ["step-0"]


def test_other_data_or_a_damaged_journal_are_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "train.csv", "dev.csv"):
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        copy(root / name, tmp_path / name)
    given = values(tmp_path, tmp_path / "run")
    with dying(monkeypatch, RunJournal, "note", 5):
        run(**given)
    kept = committed(tmp_path / "run" / "scoring")[-1] / "journal.pt"
    sound = kept.read_bytes()
    kept.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"journal\.pt: damaged"):
        run(**given, resume=True)
    kept.write_bytes(sound)
    make_examples(tmp_path / "train.csv", 26, offset=1)
    with pytest.raises(CheckpointError, match="its examples were"):
        run(**given, resume=True)
