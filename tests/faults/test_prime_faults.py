"""A priming that is killed or asked to stop, in processes of its own: what is left, and that it ends the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from prime_case import make_prime_root, options, prime_child, run_prime
from tiny_run import wait_for

# A kill may come at any of these steps' checkpoints; there are enough of them that the run is not over by then.
LONG = {"steps": 24, "save_steps": 4, "task_batch": 1}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_prime_root(tmp_path)


def looks_like_a_model(folder: Path) -> bool:
    return (folder / "config.json").exists() or (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"inner_rates": "learned"},
        pytest.param({"for": "lora"}, marks=pytest.mark.slow),
        pytest.param({"for": "child-tuning-d", "keep": 0.3, "head": "fresh"}, marks=pytest.mark.slow),
        pytest.param({"algorithm": "maml", "dropout": True}, marks=pytest.mark.slow),
    ],
    ids=["learned-rates", "lora", "fisher", "maml-dropout"],
)
def test_killed_and_resumed_ends_with_the_same_bits(root: Path, changed: dict[str, Any]) -> None:
    folder, whole = root / "primed", root / "whole"
    values = options(root, **LONG, **changed)
    child = prime_child(values)
    wait_for(lambda: (folder / "checkpoints/step-4/COMMIT").exists(), child)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not looks_like_a_model(folder)
    resumed = run_prime(**{**values, "save_steps": None}, resume=True)
    result = run_prime(**{**values, "save_steps": None, "output": str(whole)})
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (resumed.loss, resumed.rates) == (result.loss, result.rates)
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 25))


def test_sigterm_saves_and_says_how_to_go_on(root: Path) -> None:
    folder = root / "primed"
    child = prime_child(options(root, **LONG))
    wait_for((folder / "checkpoints/step-4/COMMIT").exists, child)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate()
    assert child.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after outer step" in said
    assert not looks_like_a_model(folder)
    assert not (folder / "metrics.json").exists()
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert (folder / f"checkpoints/step-{last}/COMMIT").exists()


def test_two_processes_cannot_prime_in_one_folder(root: Path) -> None:
    child = prime_child(options(root, **LONG))
    wait_for((root / "primed/prime.yaml").exists, child)
    with pytest.raises(ValueError, match=rf"another run \(process {child.pid}\) works in this folder"):
        run_prime(**options(root, **LONG, resume=True))
    child.kill()
    child.communicate()
