"""Linear heads on a frozen encoder: what they see in each architecture, how they are fitted, what is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from subnetune.core.errors import NumericError, UsageError
from subnetune.delta.models import load_pretrained
from subnetune.experiment.config import RunConfig
from subnetune.experiment.probes import Features, fit_and_predict, probe_scores
from subnetune.prepare.concat_pooling import ConcatPooling
from subnetune.tasks import compute_metrics, find_task, load_task
from subnetune.tasks.majority import majority_scores
from tiny_run import WORDS, make_model

# How each architecture's own head goes on from the features; heads that pick the first token themselves get one token.
HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "bert": lambda model, f: model.classifier(f),
    "albert": lambda model, f: model.classifier(f),
    "roberta": lambda model, f: model.classifier(f[:, None]),
    "electra": lambda model, f: model.classifier(f[:, None]),
    "distilbert": lambda model, f: model.classifier(model.pre_classifier(f).relu()),
    "deberta-v2": lambda model, f: model.classifier(model.pooler(f[:, None])),
    "gpt2": lambda model, f: model.score(f),
    "llama": lambda model, f: model.score(f),
    "qwen2": lambda model, f: model.score(f),
    "t5": lambda model, f: model.classification_head(f),
}


def features(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with Features(model) as wrapped, torch.no_grad():
        found: Tensor = wrapped.eval()(**batch).logits
    return found


def inputs(left: bool = False) -> dict[str, Tensor]:
    """A batch of four with two padding tokens in the first row, at its end or at its beginning; each ends in 1."""
    batch = tiny.batch()
    batch["input_ids"][0, -3] = batch["input_ids"][1:, -1] = 1  # T5 classifies from the end of the text
    if left:
        batch = {key: values.roll(2, dims=1) if key != "labels" else values for key, values in batch.items()}
        batch["attention_mask"][1:] = 1
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_goes_on_from_the_features_to_the_models_logits(kind: str) -> None:
    model = tiny.tiny(kind)
    found = features(model, inputs())
    assert found.shape == (4, tiny.WIDTH)
    assert model.training
    model.eval()
    with torch.no_grad():
        wanted = model(**inputs()).logits
        torch.testing.assert_close(HEADS[kind](model, found), wanted)
        assert wanted.std() > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_last_token_is_found_with_padding_on_the_left_too(kind: str) -> None:
    model = tiny.tiny(kind)
    found = features(model, inputs(left=True))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(HEADS[kind](model, found), model(**inputs(left=True)).logits)


def test_a_concat_pooling_head_sees_the_pooled_vector() -> None:
    model = tiny.tiny("bert")
    ConcatPooling(hidden=8).restructure(model)
    found = features(model, inputs())
    assert found.shape == (4, 3 * tiny.WIDTH)
    head: Any = model.classifier
    model.eval()
    with torch.no_grad():
        hidden = head.pooled_linear(head.pooled_norm(found)).relu()
        torch.testing.assert_close(head.hidden_linear(head.hidden_norm(hidden)), model(**inputs()).logits)


def test_a_model_without_a_head_is_refused() -> None:
    import transformers

    model = transformers.AutoModel.from_config(tiny.configuration("bert"))
    with pytest.raises(UsageError, match="BertModel has no head"):
        Features(model)


def test_hooks_and_modes_are_taken_back_whatever_happens() -> None:
    model: Any = tiny.tiny("roberta")
    model.roberta.eval()  # as a user may have left it
    modes = [module.training for module in model.modules()]
    batch = {"input_ids": torch.full((1, 3), 10**6)}  # beyond the embeddings
    with pytest.raises(IndexError), Features(model) as wrapped:
        wrapped.eval()(**batch)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_scores_are_fitted_as_ridge_regression_on_standardised_features() -> None:
    random = np.random.default_rng(0)
    x, new = random.normal(3.0, [1.0, 20.0, 0.1], (30, 3)), random.normal(3.0, [1.0, 20.0, 0.1], (5, 3))
    y = x @ [1.0, -0.1, 5.0] + random.normal(size=30)
    mean, deviation = x.mean(0), x.std(0)
    z = (x - mean) / deviation
    weights = np.linalg.solve(z.T @ z + np.eye(3), z.T @ (y - y.mean()))
    found = fit_and_predict(find_task("stsb"), x, y.tolist(), {"dev": new})
    np.testing.assert_allclose(found["dev"], (new - mean) / deviation @ weights + y.mean(), rtol=1e-9)


def test_classes_are_fitted_as_logistic_regression_on_standardised_features() -> None:
    random = np.random.default_rng(1)
    x = np.concatenate([random.normal(0.0, 3.0, (20, 2)), random.normal(2.0, 3.0, (20, 2))])
    y = np.repeat([0, 1], 20)
    new = random.normal(1.0, 3.0, (200, 2))
    mean, deviation = x.mean(0), x.std(0)
    z, weights, bias = (x - mean) / deviation, np.zeros(2), 0.0
    for _ in range(5000):  # sum of log losses plus half the squared weights, by plain gradient descent
        error = 1 / (1 + np.exp(-(z @ weights + bias))) - y
        weights, bias = weights - 0.02 * (z.T @ error + weights), bias - 0.02 * error.sum()
    margins = (new - mean) / deviation @ weights + bias
    sure = np.abs(margins) > 1e-3
    found = fit_and_predict(find_task("rte"), x.astype(np.float32), y.tolist(), {"dev": new})["dev"]
    assert sure.sum() > 190
    assert 20 < found.sum() < 180
    np.testing.assert_array_equal(found[sure], (margins > 0)[sure])


# -- whole ---------------------------------------------------------------------------------------------------------


def put(file: Path, columns: str, rows: list[tuple[object, ...]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(["\t".join(columns.split()), *("\t".join(map(str, row)) for row in rows)]) + "\n")


def sentence(i: int) -> str:
    return " ".join(WORDS[(i * k + k * k) % len(WORDS)] for k in range(2, 6))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and RTE, STS-B, WNLI (with one class in train) and HANS in their official formats."""
    root = tmp_path_factory.mktemp("probes")
    make_model(root / "model")
    for split, start, count in (("train", 0, 24), ("dev", 100, 9)):
        numbers = range(start, start + count)
        names = ("entailment", "not_entailment")
        rte = [(sentence(i), sentence(i + 3), names["cat" in sentence(i)]) for i in numbers]
        put(root / "RTE" / f"{split}.tsv", "sentence1 sentence2 label", rte)
        sts = [(sentence(i), sentence(i + 1), sentence(i).count("e") / 2) for i in numbers]
        put(root / "STS-B" / f"{split}.tsv", "sentence1 sentence2 score", sts)
        wnli = [(sentence(i), sentence(i + 1), i % 2 if split == "dev" else 1) for i in numbers]
        put(root / "WNLI" / f"{split}.tsv", "sentence1 sentence2 label", wnli)
    hans = [(sentence(i), sentence(i + 1), "entailment", "overlap") for i in range(3)]
    put(root / "hans" / "dev.tsv", "sentence1 sentence2 gold_label heuristic", hans)
    return root


@pytest.fixture(scope="module")
def model(root: Path) -> nn.Module:
    made, _ = load_pretrained(str(root / "model"), "AutoModelForSequenceClassification", labels={0: "no", 1: "yes"})
    with torch.no_grad():  # as drawn, all texts look alike, and standardised features are the rounding's
        for module in made.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(20.0)
    return made


@pytest.fixture(scope="module")
def tokenizer(root: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(root / "model")


def config(root: Path, task: str = "sst2") -> RunConfig:
    values = {"model": str(root / "model"), "task": task, "data_dir": str(root), "max_length": 16}
    return RunConfig.from_values({**values, "eval_batch_size": 4})


def pooled(model: Any, tokenizer: Any, rows: list[list[str]]) -> Any:
    """The pooled output for each pair of texts, one at a time."""
    texts = [tokenizer(a, b, truncation=True, max_length=16, return_tensors="pt") for a, b, *_ in rows]
    with torch.no_grad():
        return np.concatenate([model.eval().bert(**text).pooler_output.numpy() for text in texts])


def test_what_is_measured_is_dev_by_a_head_fitted_on_train(root: Path, model: Any, tokenizer: Any) -> None:
    found, skipped, levels = probe_scores(model, tokenizer, config(root), ("rte", "stsb"))
    assert skipped == {}
    assert levels == {name: majority_scores(load_task(name, root))["dev"] for name in ("rte", "stsb")}
    assert list(found) == ["rte", "stsb"]
    for name, folder, label in (("rte", "RTE", ["entailment", "not_entailment"].index), ("stsb", "STS-B", float)):
        task = find_task(name)
        read = {s: [x.split("\t") for x in (root / folder / f"{s}.tsv").read_text().splitlines()[1:]] for s in SPLITS}
        known, new = (pooled(model, tokenizer, read[split]) for split in SPLITS)
        answers = fit_and_predict(task, known, [label(row[2]) for row in read["train"]], {"dev": new})["dev"]
        wanted = compute_metrics(task, answers, [label(row[2]) for row in read["dev"]])
        assert found[name] == pytest.approx(wanted, abs=1e-5)
        assert list(found[name]) == list(task.metrics)


SPLITS = ("train", "dev")


def test_the_same_twice_and_nothing_else_changes(root: Path, model: Any, tokenizer: Any) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = probe_scores(model, tokenizer, config(root), ("rte", "stsb"))
    assert probe_scores(model, tokenizer, config(root), ("rte", "stsb")) == first
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


def test_what_is_left_out_and_why(root: Path, model: Any, tokenizer: Any) -> None:
    found, skipped, _ = probe_scores(model, tokenizer, config(root, "rte"), ("rte", "hans", "wnli", "qqp"))
    assert found == {}
    assert skipped == {
        "hans": "as a probe: no training examples",
        "wnli": "as a probe: only one class among the training examples",
        "qqp": "as a probe: GLUE qqp, split 'train': no such file",
    }


def test_a_limit_is_for_train_alone(root: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def fitted(task: Any, known: Any, labels: Any, asked: Any) -> Any:
        sizes.append((len(known), len(asked["dev"])))
        return fit_and_predict(task, known, labels, asked)

    monkeypatch.setattr("subnetune.experiment.probes.fit_and_predict", fitted)
    probe_scores(model, tokenizer, config(root), ("rte",), max_examples=10)
    assert sizes == [(10, 9)]


def test_features_that_are_not_numbers(root: Path, tokenizer: Any) -> None:
    broken: Any
    broken, _ = load_pretrained(str(root / "model"), "AutoModelForSequenceClassification", labels={0: "no", 1: "yes"})
    broken.bert.pooler.dense.bias.data.fill_(float("nan"))
    with pytest.raises(NumericError, match=f"rte: {24 * 16} features"):
        probe_scores(broken, tokenizer, config(root), ("rte",))
