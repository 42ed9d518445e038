"""Every command on a tiny model: train, evaluate, predict, score and the delta commands, all in this process."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ended import Ended
from ended import call as call_command
from subnetune.cli.main import main
from subnetune.cli.options import TRAIN
from subnetune.experiment.config import RunConfig
from subnetune.select.maskfile import read_mask
from tiny_run import make_root

Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Ended:
        return call_command(capsys, *arguments)

    return call


def files(root: Path) -> tuple[object, ...]:
    """The flags that name the examples of `root`."""
    return ("--dev-file", root / "dev.csv", "--text", "sentence", "--label", "label")


def training(root: Path, *more: object) -> tuple[object, ...]:
    options = ("--epochs", 2, "--batch-size", 2, "--lr", "5e-3", "--max-length", 16, "--threads", 1)
    return ("train", "--model", root / "model", "--train-file", root / "train.csv", *files(root), *options, *more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, its examples, and a finished Child-Tuning-D run in `run`."""
    root = make_root(tmp_path_factory.mktemp("cli"))
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in training(root, "--method", "child-tuning-d", "--keep", 0.3, "--output", root / "run")])
    assert stop.value.code in (0, None)
    return root


def test_evaluate_ends_with_the_line_that_train_ended_with(trained: Path, run: Run) -> None:
    again = run(*training(trained, "--method", "child-tuning-d", "--keep", 0.3, "--output", trained / "again"))
    assert again.code == 0
    assert re.fullmatch(r"accuracy 0\.\d{4,}", again.last)
    found = run("evaluate", "--model", trained / "model", "--delta", trained / "again", *files(trained), "--threads", 1)
    assert found.code == 0
    assert found.last == again.last
    assert f"run directory: {trained / 'again'}" in again.out
    metrics = json.loads((trained / "again" / "metrics.json").read_text())
    assert found.last == f"accuracy {metrics['value']:.6f}"


def test_the_configuration_of_a_run_gives_the_same_run(trained: Path, run: Run) -> None:
    output = trained / "from-config"
    ended = run("train", "--config", trained / "run" / "config.yaml", "--output", output)
    assert ended.code == 0
    assert (output / "delta.safetensors").read_bytes() == (trained / "run" / "delta.safetensors").read_bytes()


def test_an_engine_can_be_asked_for_and_is_recorded(trained: Path, run: Run) -> None:
    command = training(trained, "--method", "child-tuning-d", "--max-steps", 1, "--output", trained / "asked")
    refused = run(*command, "--engine", "reference", "--gradients", "lean")
    assert refused.code == 2
    assert 'gradients="lean" cannot serve this run' in refused.err
    ended = run(*command, "--engine", "fused", "--gradients", "lean")
    assert ended.code == 0
    line = "fused: asked for; lean gradients"
    assert f"engine {line}" in ended.err
    config = (trained / "asked" / "config.yaml").read_text()
    assert {"engine: fused", "gradients: lean"} <= set(config.splitlines())
    assert json.loads((trained / "asked" / "environment.json").read_text())["engine"] == line


def test_an_output_that_exists_is_refused_and_resuming_a_finished_run_changes_nothing(trained: Path, run: Run) -> None:
    command = training(trained, "--method", "child-tuning-d", "--keep", 0.3, "--output", trained / "run")
    before = {path: path.read_bytes() for path in (trained / "run").iterdir() if path.is_file()}
    refused = run(*command)
    assert refused.code == 2
    assert "--resume" in refused.err
    resumed = run(*command, "--resume")
    assert resumed.code == 0
    assert resumed.last.startswith("accuracy ")
    assert {path: path.read_bytes() for path in before} == before


def test_predict_writes_a_row_for_every_example(trained: Path, run: Run, tmp_path: Path) -> None:
    command = ("predict", "--model", trained / "model", "--delta", trained / "run", *files(trained))
    printed = run(*command)
    assert printed.code == 0
    rows = list(csv.DictReader(printed.out.splitlines()))
    assert len(rows) == 11
    assert {row["label"] for row in rows} <= {"plain", "negated"}
    assert all(abs(float(row["plain"]) + float(row["negated"]) - 1) < 1e-5 for row in rows)
    written = run(*command, "--output", tmp_path / "p.csv")
    assert written.out == f"11 predictions: {tmp_path / 'p.csv'}\n"
    assert (tmp_path / "p.csv").read_text() == printed.out


def test_the_mask_that_score_writes_is_the_one_that_train_selects(trained: Path, run: Run) -> None:
    mask = trained / "mask.safetensors"
    ended = run(
        *("score", "--model", trained / "model", "--train-file", trained / "train.csv", *files(trained)),
        *("--keep", 0.3, "--batch-size", 2, "--max-length", 16, "--output", mask, "--set", "mode=eval"),
    )
    assert ended.code == 0
    digest = ended.last.removeprefix("sha256 ")
    ours, theirs = read_mask(mask, digest), read_mask(trained / "run" / "mask.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    chosen, total = (int(n.replace(",", "")) for n in re.findall(r"all +([\d,]+) of +([\d,]+)", ended.out)[0])
    assert chosen == int(0.3 * total)
    assert re.search(r"^encoder\.layer\.1 |^bert\.encoder\.layer\.1 ", ended.out, re.M)
    own = ("--train-file", trained / "train.csv", "--text", "sentence", "--label", "label")  # nothing to evaluate on
    alone = run(
        *("score", "--model", trained / "model", *own, "--keep", 0.3, "--batch-size", 2, "--max-length", 16),
        *("--output", trained / "alone.safetensors", "--set", "mode=eval"),
    )
    assert alone.code == 0, alone.err
    assert alone.last == ended.last
    again = run("score", "--task", "demo", "--keep", 0.3, "--output", mask)
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--scorer", "fischer"), "did you mean 'fisher'"),
        (("--scorer", "movement"), "scorer 'movement' needs 'steps'"),
        (("--set", "estimater=batch"), "did you mean 'estimator'"),
        (("--set", "estimator"), "wanted NAME=VALUE"),
        (("--per", "rows"), "per must be one of"),
        (("--keep", "0"), "keep: got 0, allowed is a number in (0, 1]"),
        (("--keep", "010"), "octal"),
        (("--scope", "encoder.layers.*"), "encoder.layer"),
    ],
)
def test_a_score_that_cannot_be_made(trained: Path, run: Run, tmp_path: Path, more: tuple[str, ...], what: str) -> None:
    given = ("--model", trained / "model", "--train-file", trained / "train.csv", *files(trained), "--max-length", 16)
    keep = () if "--keep" in more else ("--keep", 0.3)
    ended = run("score", *given, *keep, "--output", tmp_path / "m", *more)
    assert ended.code == 2
    assert what in ended.err
    assert ended.err.startswith("error: ")
    assert not (tmp_path / "m").exists()


def test_inspect_and_verify_say_what_a_delta_holds(trained: Path, run: Run) -> None:
    shown = run("delta", "inspect", trained / "run")
    assert shown.code == 0
    for word in (
        "BertForSequenceClassification",
        "negated",
        "Top(scorer=Fisher(",
        "classifier.weight",
        "values stored",
    ):
        assert word in shown.out
    checked = run("delta", "verify", trained / "run", "--model", trained / "model")
    assert checked.code == 0
    assert checked.last == "verified"
    assert "moved within mask: yes" in checked.out
    assert "per trained entry" in checked.out


def test_verify_refuses_a_base_with_one_weight_changed(trained: Path, run: Run, tmp_path: Path) -> None:
    other = shutil.copytree(trained / "model", tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    name = "embeddings.word_embeddings.weight"  # frozen in the run, so the delta's own tensors all fit
    weights[name][3, 5] += 1e-3
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    for command in (("delta", "verify"), ("evaluate", "--delta")):
        rest = () if command[0] == "delta" else files(trained)
        ended = run(*command, trained / "run", "--model", other, *rest)
        assert ended.code == 3
        assert "wrong base" in ended.err


def test_verify_refuses_another_mask_and_a_mask_that_is_gone(trained: Path, run: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(trained / "run", tmp_path / "copy")
    (copy / "mask.safetensors").unlink()
    gone = run("delta", "verify", copy, "--model", trained / "model")
    assert gone.code == 3
    assert "give it with --mask FILE" in gone.err
    other = tmp_path / "other.safetensors"
    scored = run(
        *("score", "--model", trained / "model", "--train-file", trained / "train.csv", *files(trained)),
        *("--keep", 0.1, "--scorer", "random", "--max-length", 16, "--output", other),
    )
    assert scored.code == 0
    moved = run("delta", "verify", copy, "--model", trained / "model", "--mask", other)
    assert moved.code == 3
    assert "the mask is not the one that the delta was trained with" in moved.err


def test_apply_gives_a_plain_checkpoint_and_remove_the_base_back(trained: Path, run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tuned, back = tmp_path / "tuned", tmp_path / "back"
    applied = run("delta", "apply", trained / "run", "--model", trained / "model", "--output", tuned)
    assert applied.code == 0
    assert AutoModelForSequenceClassification.from_pretrained(tuned).config.id2label == {0: "negated", 1: "plain"}
    assert AutoTokenizer.from_pretrained(tuned).tokenize("the cat") == ["the", "cat"]
    removed = run(
        *("delta", "remove", trained / "run", "--model", tuned, "--base", trained / "model", "--output", back)
    )
    assert removed.code == 0
    base = load_file(trained / "model" / "model.safetensors")
    moved, restored = load_file(tuned / "model.safetensors"), load_file(back / "model.safetensors")
    assert any(not torch.equal(moved[f"bert.{name}"], value) for name, value in base.items())
    assert all(torch.equal(restored[f"bert.{name}"], value) for name, value in base.items())
    refused = run("delta", "apply", trained / "run", "--model", trained / "model", "--output", tuned)
    assert refused.code == 2
    wrong = run(
        *("delta", "remove", trained / "run", "--model", tuned, "--base", tuned, "--output", tmp_path / "no"),
    )
    assert wrong.code == 3
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(
    trained: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tmp_path / "tuned"
    assert run("delta", "apply", trained / "run", "--model", trained / "model", "--output", tuned).code == 0

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("subnetune.delta.models.copy_tokenizer", full)
    for command in (("apply", "--model", trained / "model"), ("remove", "--model", tuned, "--base", trained / "model")):
        ended = run("delta", command[0], trained / "run", *command[1:], "--output", tmp_path / "new" / "out")
        assert ended.code == 3
        assert "No space left" in ended.err
        assert list((tmp_path / "new").iterdir()) == []


def test_merge_makes_one_delta_or_a_checkpoint(trained: Path, run: Run, tmp_path: Path) -> None:
    one = run("delta", "merge", trained / "run", "--output", tmp_path / "one.safetensors")
    assert one.code == 0
    assert (tmp_path / "one.safetensors").read_bytes() == (trained / "run" / "delta.safetensors").read_bytes()
    both = run("delta", "merge", trained / "run", trained / "run", "--output", tmp_path / "two.safetensors")
    assert both.code == 3
    assert not (tmp_path / "two.safetensors").exists()
    folder = run("delta", "merge", trained / "run", "--model", trained / "model", "--output", tmp_path / "merged")
    assert folder.code == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_delta_that_is_not_there_or_damaged(trained: Path, run: Run, tmp_path: Path) -> None:
    missing = run("delta", "inspect", tmp_path / "none")
    assert missing.code == 3
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((trained / "run" / "delta.safetensors").read_bytes()[:-7])
    damaged = run("delta", "inspect", broken)
    assert damaged.code == 3
    assert str(broken) in damaged.err


def test_every_option_of_a_run_has_a_flag_with_a_meaning(run: Run) -> None:
    assert set(RunConfig.model_fields) == {*TRAIN, "delta"}
    shown = run("train", "--help")
    for name, field in RunConfig.model_fields.items():
        flag = {"options": "--set", "with_": "--with"}.get(name, f"--{name.replace('_', '-')}")
        assert field.description
        assert name == "delta" or flag in shown.out
