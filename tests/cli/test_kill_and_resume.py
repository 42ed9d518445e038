"""A run that was killed in the middle of a stage and resumed leaves the delta file of the run that never stopped.

Real processes, real data, the packaged encoder: the command that a user types, SIGKILL, the same command with --resume.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import minilm_folder, shared_folder

# Sixteen steps. With cycle 0.4 a stage of DPS has three of them, so the kill after the checkpoint of step 4 falls into
# the first updating stage; ULMFiT has thawed some layers by then, and the lottery ticket's dense phase is over.
STEPS, SAVED, KILLED_AT = 16, 2, 4
OPTIONS: dict[str, tuple[str, ...]] = {
    "child-tuning-d": ("--keep", "0.3"),
    "child-tuning-f": (),
    "dps-dense": ("--keep", "0.7", "--cycle", "0.4"),
    "dps-mix": ("--keep", "0.7", "--cycle", "0.4"),
    "mixout": ("--keep", "0.9"),
    "r-drop": (),
    "r3f": (),
    "recadam": (),
    "ulmfit": (),
    "fish": ("--set", "samples=16"),
    "lt-sft": (),
    "lora": (),
}


def train(task: str, method: str, run: Path, *more: str) -> list[str]:
    """Return the command line of a small run."""
    return [
        *(sys.executable, "-m", "subnetune.cli", "train", "--model", "minilm", "--task", task),
        *("--data-dir", str(shared_folder("data")), "--method", method, *OPTIONS[method]),
        *("--max-train", "128", "--max-eval", "16", "--batch-size", "8", "--max-length", "32", "--epochs", "1"),
        *("--max-steps", str(STEPS), "--save-steps", str(SAVED), "--threads", "1", "--output", str(run), *more),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def run_to_the_end(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def run_until_killed(command: list[str], run: Path) -> None:
    """Kill the run as soon as the checkpoint of step `KILLED_AT` is complete."""
    marker = run / "checkpoints" / f"step-{KILLED_AT}" / "COMMIT"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
    deadline = time.monotonic() + 600
    while not marker.exists():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "delta.safetensors").exists(), "the run was over before it was killed"


def check_killed_and_resumed(task: str, method: str, folder: Path, *more: str) -> None:
    minilm_folder()
    whole, cut = folder / "whole", folder / "cut"
    metric = run_to_the_end(train(task, method, whole, *more))
    run_until_killed(train(task, method, cut, *more), cut)
    assert run_to_the_end(train(task, method, cut, *more, "--resume")) == metric
    assert (cut / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (whole, cut)]
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("task", ["rte", "mrpc"])
@pytest.mark.parametrize("method", OPTIONS)
def test_a_killed_run_resumes_to_the_same_delta(method: str, task: str, tmp_path: Path) -> None:
    check_killed_and_resumed(task, method, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("method", "more", "served"),
    [
        ("child-tuning-d", (), "fused: AdamW and the mask in one pass (numba kernels)"),
        ("child-tuning-f", (), "fused: AdamW and the mask in one pass (numba kernels)"),
        ("child-tuning-d", ("--gradients", "lean"), "fused: AdamW and the mask in one pass (numba kernels)"),
        ("child-tuning-d", ("--engine", "packed"), "packed: asked for"),
        ("child-tuning-d", ("--engine", "reference"), "reference: asked for"),
    ],
    ids=["d", "f", "lean", "packed", "reference"],
)
def test_a_killed_run_resumes_to_the_same_delta_in_every_engine(
    method: str, more: tuple[str, ...], served: str, tmp_path: Path
) -> None:
    pytest.importorskip("numba", reason="the engine that a model of this size gets needs the extra `fast`")
    check_killed_and_resumed("rte", method, tmp_path, *more)
    for run in ("whole", "cut"):
        assert json.loads((tmp_path / run / "environment.json").read_text())["engine"].startswith(served)
