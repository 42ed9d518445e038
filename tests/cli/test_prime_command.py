"""`subnetune prime` as it is typed: its flags, its messages and exit codes, and on real data from end to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import minilm_folder, shared_folder
from prime_case import make_prime_root
from subnetune.cli.main import main
from subnetune.cli.prime import PRIME
from subnetune.experiment.priming import PrimeConfig


def call(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def small(root: Path, *more: object) -> tuple[object, ...]:
    options = ("--steps", 1, "--inner-steps", 1, "--task-batch", 1, "--max-train", 16, "--max-length", 16)
    return ("prime", "--model", root / "model", "--tasks", "demo", *options, "--threads", 1, *more)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prime_root(tmp_path_factory.mktemp("prime"))


def test_every_option_is_a_flag() -> None:
    assert sorted(PRIME) == sorted(PrimeConfig.model_fields)


def test_it_ends_with_the_loss_and_leaves_the_options(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--for", "bitfit", "--outer", "@layers,@embeddings", "--freeze", "@norm", "--clip", 0, "--no-dropout")
    assert call(*small(root, *more, "--with", "l2-sp:weight=0.01", "--output", root / "out")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"primed model: {root / 'out'}"
    assert said[1].startswith("query_loss 0.")
    config = PrimeConfig.load(root / "out/prime.yaml", {})
    assert (config.for_, config.outer, config.freeze) == ("bitfit", ("@layers", "@embeddings"), ("@norm",))
    assert (config.clip, config.with_, config.steps) == (0, ("l2-sp:weight=0.01",), 1)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        ((), 2, "error: a priming needs for: give --for METHOD"),
        (("--for", "bitfit", "--steps", "many"), 2, "error: steps: got 'many', allowed is an integer of at least 1"),
        (("--for", "bitfit", "--bf16", "--algorithm", "maml"), 2, "error: bf16 is for first-order algorithms"),
        (("--for", "bitfit", "--tasks", "rte,sst2"), 2, "Take --head matched"),
        (("--for", "bitfit", "--tasks", "rte", "--data-dir", "nowhere"), 3, "error: "),
        (("--for", "bitfit", "--inner-lr", "1e30"), 4, "error: priming: the query loss is"),
    ],
    ids=["no-method", "no-number", "bf16-maml", "labels", "no-data", "not-finite"],
)
def test_errors(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], code: int, message: str
) -> None:
    assert call(*small(root, "--output", tmp_path / "out", *more)) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out/config.json").exists()


def test_a_refused_priming_leaves_its_folder_free(root: Path, tmp_path: Path) -> None:
    command = small(root, "--for", "bitfit", "--output", tmp_path / "out")
    assert call(*command, "--outer", "@layers[7]") == 2  # what the model alone can tell
    assert call(*command) == 0


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def to_the_end(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "subnetune.cli", *map(str, command)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", ["bitfit", "lora"])
def test_languages_end_to_end_and_killed_on_the_way(method: str, tmp_path: Path) -> None:
    minilm_folder()
    data = shared_folder("data", "ner", "wikiann").parents[1]
    examples = ("--data-dir", data, "--max-length", 32, "--threads", 1)
    tasks = ("--model", "minilm", "--tasks", "ner:en,ner:de", "--for", method, "--max-train", 60)
    command = ("prime", *tasks, *examples, "--steps", 8, "--inner-steps", 2, "--task-batch", 2, "--save-steps", 2)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    line = to_the_end(*command, "--output", whole)
    process = subprocess.Popen(
        [sys.executable, "-m", "subnetune.cli", *map(str, command), "--output", str(cut)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    deadline = time.monotonic() + 600
    while not (cut / "checkpoints/step-4/COMMIT").exists():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (cut / "config.json").exists()
    assert to_the_end(*command, "--output", cut, "--resume") == line
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    training = ("--max-train", 40, "--max-eval", 40, "--epochs", 1, "--output", tmp_path / "nl")
    assert to_the_end("train", "--model", cut, "--task", "ner:nl", "--method", method, *examples, *training).startswith(
        "f1 "
    )
