"""The loop against a plain torch loop, its accumulation, its files, and the policies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from subnetune.core.errors import UsageError
from subnetune.delta import load
from subnetune.experiment.config import RunConfig, load_config
from subnetune.experiment.data import epoch_order
from subnetune.experiment.environment import has_bf16, seed_everything
from subnetune.select.maskfile import read_mask
from tiny_run import make_examples, make_root, options, run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_root(tmp_path_factory.mktemp("loop"))
    config = json.loads((folder / "model" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "model" / "config.json").write_text(json.dumps(config))
    return folder


def full(root: Path, **changed: Any) -> dict[str, Any]:
    values = options(root, method="full", weight_decay=0.0, warmup=2, **changed)
    del values["keep"]
    return values


def weights(root: Path, run_path: Path) -> dict[str, torch.Tensor]:
    model = load(str(root / "model"), run_path)
    return {name: p.detach() for name, p in model.named_parameters()}


def plain_loop(root: Path, batch_size: int, epochs: int) -> dict[str, torch.Tensor]:
    """What one would write without this library: transformers' model, AdamW, clipping, a linear schedule by hand."""
    import csv

    with (root / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    seed_everything(42, "head")
    model = AutoModelForSequenceClassification.from_pretrained(root / "model", num_labels=2)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    total = epochs * math.ceil(len(rows) / batch_size)
    step = 0
    for epoch in range(epochs):
        order = epoch_order(len(rows), 42, epoch)
        for start in range(0, len(rows), batch_size):
            chosen = [rows[i] for i in order[start : start + batch_size]]
            batch = tokenizer([row["sentence"] for row in chosen], padding=True, return_tensors="pt")
            labels = torch.tensor([int(row["label"] == "plain") for row in chosen])
            optimizer.param_groups[0]["lr"] = 5e-3 * (step / 2 if step < 2 else (total - step) / (total - 2))
            model(**batch, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return {name: p.detach() for name, p in model.named_parameters()}


def test_equals_a_plain_loop_bit_for_bit(root: Path, tmp_path: Path) -> None:
    result = run(**full(root, output=str(tmp_path / "run"), batch_size=4, accumulate=1))
    found, expected = weights(root, result.path), plain_loop(root, 4, 2)
    assert found.keys() == expected.keys()
    moved = 0
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        moved += int(tensor.abs().sum() > 0)
    assert moved > 10


def test_accumulation_equals_one_large_batch(root: Path, tmp_path: Path) -> None:
    """26 examples in steps of 12: the last step has 2, as one micro-batch of 2 instead of three of 4."""
    whole = run(**full(root, output=str(tmp_path / "whole"), batch_size=12, accumulate=1, epochs=1))
    parts = run(**full(root, output=str(tmp_path / "parts"), batch_size=5, accumulate=1, epochs=1))
    split = run(**full(root, output=str(tmp_path / "split"), batch_size=4, accumulate=3, epochs=1))
    logs = {
        r.path.name: [json.loads(x) for x in (r.path / "log.jsonl").read_text().splitlines()]
        for r in (whole, split, parts)
    }
    assert [e["step"] for e in logs["split"] if "loss" in e] == [1, 2, 3]
    for one, other in zip(logs["whole"], logs["split"], strict=True):
        if "loss" in one:
            assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
            assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    expected = weights(root, whole.path)
    for name, tensor in weights(root, split.path).items():
        assert torch.allclose(tensor, expected[name], atol=2e-5), name


def test_the_run_directory_explains_itself(root: Path, tmp_path: Path) -> None:
    values = options(root, output=str(tmp_path / "run"), save_steps=3)
    result = run(**values)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names == {
        *("config.yaml", "metrics.json", "log.jsonl", "delta.safetensors", "mask.safetensors", "environment.json"),
        *("labels.json", "tokenizer", "checkpoints", ".lock"),
    }
    config = load_config(tmp_path / "run" / "config.yaml", {})
    assert config.lr == 5e-3
    assert config.schedule is not None  # resolved
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["threads"] == 1
    assert environment["engine"].startswith("packed: a static mask")
    assert environment["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in json.dumps(environment)
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-12", "step-9"]
    mask = read_mask(tmp_path / "run" / "mask.safetensors")
    selected = sum(int(mask[name].sum()) for name in mask)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, 15))
    assert {*steps[0]} == {"step", "loss", "lr", "grad_norm", "seconds"}
    assert [entry["step"] for entry in log if "evaluation" in entry] == [7, 14]
    assert log[-1]["evaluation"] == result.evaluation
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["status"] == "finished"
    assert (metrics["metric"], metrics["value"]) == (result.metric, result.value)
    labels = [line.rpartition(",")[2] for line in (root / "dev.csv").read_text().splitlines()[1:]]
    answers = [line.rpartition(",")[2] for line in (root / "train.csv").read_text().splitlines()[1:]]
    always = max(sorted(set(answers)), key=answers.count)
    assert metrics["majority"]["dev"]["accuracy"] == pytest.approx(labels.count(always) / len(labels))
    assert result.delta_bytes == (tmp_path / "run" / "delta.safetensors").stat().st_size
    assert selected < result.trained <= selected + 2 * 16 + 2 + 16 * 16 + 16  # the mask, head, and at most the pooler
    assert result.trained < result.total


@pytest.mark.filterwarnings("ignore:.*are also in train")
@pytest.mark.parametrize("lr", [1e-12, 5e-3])
def test_a_run_that_learned_nothing_is_told(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lr: float
) -> None:
    values = options(root, output=str(tmp_path / "run"), dev_file=str(root / "train.csv"), method="full", keep=None)
    result = run(**values | {"lr": lr, "epochs": 10, "max_steps": 100})
    told = "always the same answer scores as well (dev accuracy " in capsys.readouterr().err
    assert told is result.at_majority is (lr < 1e-3)


def test_limits_and_the_last_epoch_that_is_cut(root: Path, tmp_path: Path) -> None:
    result = run(**options(root, output=str(tmp_path / "run"), max_steps=9, max_train=20))
    log = [json.loads(line) for line in (result.path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "evaluation" in entry] == [5, 9]
    assert log[-2]["step"] == 9


def test_an_engine_that_cannot_serve_is_refused_before_there_is_a_run(root: Path, tmp_path: Path) -> None:
    values = options(root, output=str(tmp_path / "run"), method="child-tuning-f")
    with pytest.raises(UsageError, match='engine="packed" cannot serve this run: the mask of Bernoulli changes'):
        run(**values, engine="packed")
    assert run(**values, max_steps=1).finished  # the folder is still free


def test_a_dynamic_mask_leaves_no_mask_file(root: Path, tmp_path: Path) -> None:
    result = run(**options(root, output=str(tmp_path / "run"), method="child-tuning-f", max_steps=1, warmup=0))
    assert not (result.path / "mask.safetensors").exists()


def test_the_best_policy_keeps_the_best_evaluation(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    scores = iter([0.2, 0.9, 0.9, 0.1])

    def measure(model: torch.nn.Module, *rest: Any) -> dict[str, dict[str, float]]:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return {"dev": {"accuracy": next(scores), "other": 1.0}}

    monkeypatch.setattr("subnetune.experiment.loop.measure", measure)
    result = run(**options(root, output=str(tmp_path / "run"), policy="best", epochs=4))
    assert result.value == 0.9
    assert json.loads((result.path / "metrics.json").read_text())["step"] == 14  # the first of the two equal ones
    kept = weights(root, result.path)
    assert all(torch.equal(kept[name], tensor) for name, tensor in seen[1].items())
    assert not all(torch.equal(kept[name], tensor) for name, tensor in seen[2].items())


def test_runs_in_one_process_do_not_see_each_other(root: Path, tmp_path: Path) -> None:
    values = options(root, max_steps=2)
    first = run(**{**values, "output": str(tmp_path / "a")})
    torch.manual_seed(1)
    torch.rand(5)
    second = run(**{**values, "output": str(tmp_path / "b")})
    other = run(**{**values, "output": str(tmp_path / "c"), "seed": 7})
    deltas = [(r.path / "delta.safetensors").read_bytes() for r in (first, second, other)]
    assert deltas[0] == deltas[1] != deltas[2]


def test_bf16_changes_the_training_forward_only(root: Path, tmp_path: Path) -> None:
    if not has_bf16(torch.device("cpu")):
        pytest.skip("this CPU has no bfloat16 instructions")
    exact = run(**options(root, output=str(tmp_path / "exact"), max_steps=4))
    half = run(**options(root, output=str(tmp_path / "half"), max_steps=4, bf16=True))
    found, expected = weights(root, half.path), weights(root, exact.path)
    assert any(not torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert all(torch.allclose(found[name], tensor, atol=0.05) for name, tensor in expected.items())


def test_what_cannot_be_meant_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--delta is for evaluate"):
        run(**options(root, output=str(tmp_path / "run"), delta=str(tmp_path)))
    with pytest.raises(UsageError, match="--task"):
        run(**RunConfig(output=tmp_path / "run").values())
    with pytest.raises(UsageError, match="more than the 32 tokens"):
        run(**options(root, output=str(tmp_path / "run"), max_length=64))
    assert not (tmp_path / "run" / "config.yaml").exists()
    make_examples(tmp_path / "more.csv", 4)
    result = run(
        **options(root, output=str(tmp_path / "run"), max_steps=1, warmup=0)
    )  # what failed left nothing behind
    assert result.finished
