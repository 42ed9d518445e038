"""What the delta is for: another process puts it on the base and says exactly what the trained model said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from conftest import minilm_folder, shared_folder
from subnetune.experiment import loop
from subnetune.experiment.evaluate import measure, predict_logits
from tiny_run import make_root, options, run

# The command line's predict, and the logits that it made its table from.
_PREDICT = """
import sys
import subnetune.experiment.evaluate as evaluate
predict_logits = evaluate.predict_logits
def keeping(*arguments):
    logits = predict_logits(*arguments)
    open(sys.argv[1], "wb").write(logits.numpy().tobytes())
    return logits
evaluate.predict_logits = keeping
from subnetune.cli.main import main
main(sys.argv[2:])
"""


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)


def subnetune(*arguments: object) -> subprocess.CompletedProcess[str]:
    return python("-m", "subnetune.cli", *arguments)


def test_another_process_predicts_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_root(tmp_path)
    trained: list[bytes] = []

    def keeping(model: Any, task: Any, splits: Any, collate: Any, batch_size: int) -> Any:
        [(_, encoded)] = splits.values()
        trained.append(predict_logits(model, encoded, collate, batch_size).numpy().tobytes())
        return measure(model, task, splits, collate, batch_size)

    monkeypatch.setattr(loop, "measure", keeping)
    run(**options(root, epochs=1))
    own = ("--dev-file", root / "dev.csv", "--text", "sentence", "--label", "label", "--threads", 1)
    told = python(
        *("-c", _PREDICT, root / "told", "predict", "--model", root / "model", "--delta", root / "run", *own),
        *("--output", root / "told.csv"),
    )
    assert told.returncode == 0, told.stderr
    assert len(trained[-1]) == 11 * 2 * 4  # examples, classes, bytes; of the model after its last step
    assert (root / "told").read_bytes() == trained[-1]


@pytest.mark.slow
def test_the_packaged_encoder_on_real_data(tmp_path: Path) -> None:
    base, data = minilm_folder(), shared_folder("data")
    run, task = tmp_path / "rte-d", ("--task", "rte", "--data-dir", data, "--max-eval", 40, "--threads", 1)
    trained = subnetune(
        *("train", "--model", "minilm", *task, "--method", "child-tuning-d", "--keep", 0.3, "--seed", 42),
        *("--max-train", 64, "--max-steps", 4, "--output", run),
    )
    assert trained.returncode == 0, trained.stderr
    evaluated = subnetune("evaluate", "--model", "minilm", "--delta", run, *task)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.splitlines()[-1] == trained.stdout.splitlines()[-1]
    assert evaluated.stdout.splitlines()[-1].startswith("accuracy 0.")
    verified = subnetune("delta", "verify", run, "--model", "minilm")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.splitlines()[-1] == "verified"
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["encoder.layer.3.attention.self.query.weight"][7, 11] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    refused = subnetune("delta", "verify", run, "--model", other)
    assert refused.returncode == 3
    assert "wrong base" in refused.stderr
