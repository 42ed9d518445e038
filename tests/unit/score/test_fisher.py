"""Fisher: closed forms by hand, the estimators, the budget, labels, and a model left as found."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pieces import Line, line_batches, recipe_namespace, setting
from subnetune.core.errors import DataError, NumericError, UsageError
from subnetune.core.types import Batch, Output, default_forward
from subnetune.score.fisher import Fisher
from tiny import batch, batches, bits, differing, tiny

WEIGHT = torch.tensor([0.5, -1.0, 2.0])


def per_example(batches: list[Batch]) -> torch.Tensor:
    """Gradients of half the squared error, one row an example: (prediction - label) * x."""
    x, y = torch.cat([b["x"] for b in batches]), torch.cat([b["labels"] for b in batches])
    return (x @ WEIGHT - y).unsqueeze(1) * x  # (examples, 3)


def test_per_sample_is_the_mean_of_squared_gradients_by_hand() -> None:
    data = line_batches((2, 3))
    score = Fisher(estimator="per-sample")(setting(Line(), data))["weight"]
    torch.testing.assert_close(score, per_example(data).square().mean(0), rtol=1e-6, atol=0)


def test_batch_squares_the_gradient_of_each_batchs_mean_loss() -> None:
    data = line_batches((2, 3))
    score = Fisher(estimator="batch")(setting(Line(), data))["weight"]
    wanted = torch.stack([per_example([b]).mean(0).square() for b in data]).mean(0)
    torch.testing.assert_close(score, wanted, rtol=1e-6, atol=0)
    assert not torch.allclose(score, per_example(data).square().mean(0), rtol=0.1)


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 6), seed=st.integers(0, 1000), clip=st.sampled_from([None, 0.3, 1.0]))
def test_batches_of_one_make_both_estimators_equal(rows: int, seed: int, clip: float | None) -> None:
    data = line_batches((1,) * rows, seed)
    scores = [Fisher(estimator=e, clip=clip)(setting(Line(), data))["weight"] for e in ("batch", "per-sample")]
    assert torch.equal(*scores)


def test_per_sample_on_a_transformer_equals_batches_of_one() -> None:
    model = tiny("bert")
    data = batches(2, rows=3)
    single = [{k: v[i : i + 1] for k, v in b.items()} for b in data for i in range(3)]
    one = Fisher(estimator="per-sample")(setting(model, data, forward=default_forward))
    two = Fisher(estimator="batch")(setting(model, single, forward=default_forward))
    assert set(one) == set(two) == {name for name, _ in model.named_parameters()}
    for name in one:  # hooks give them up to rounding; where gradients cancel, rounding is all there is
        torch.testing.assert_close(one[name], two[name], rtol=2e-5, atol=1e-12)
    assert one["bert.encoder.layer.0.intermediate.dense.weight"].max() > 0


def test_clip_bounds_each_tensors_gradient_norm_before_squaring() -> None:
    data = line_batches((1, 1))
    score = Fisher(clip=0.25)(setting(Line(), data))["weight"]
    rows = per_example(data)
    clipped = rows * (0.25 / (rows.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
    torch.testing.assert_close(score, clipped.square().mean(0), rtol=1e-6, atol=0)
    assert score.sum() <= 0.25**2


@pytest.mark.parametrize(("estimator", "pieces"), [("batch", 2), ("per-sample", 4)])
def test_the_budget_cuts_the_last_batch(estimator: str, pieces: int) -> None:
    data = line_batches((3, 3, 3))
    cut = [data[0], {k: v[:1] for k, v in data[1].items()}]
    calls = []

    def forward(model: nn.Module, batch: Batch) -> Output:
        calls.append(len(batch["labels"]))
        return model(**batch)  # type: ignore[no-any-return]

    score = Fisher(estimator=estimator, samples=4)(setting(Line(), data, forward=forward))["weight"]
    assert torch.equal(score, Fisher(estimator=estimator)(setting(Line(), cut))["weight"])
    assert len(calls) == pieces
    assert sum(calls) == 4


def test_a_tensor_that_the_loss_does_not_use_gets_no_score() -> None:
    assert set(Fisher()(setting(Line(), line_batches()))) == {"weight"}


def test_low_precision_weights_are_scored_in_single_precision() -> None:
    data = line_batches((1,) * 40, dtype=torch.bfloat16)
    score = Fisher()(setting(Line(torch.bfloat16), data))["weight"]
    assert score.dtype == torch.float32
    total = torch.zeros(3)
    for b in data:
        error = (b["x"] @ WEIGHT.bfloat16() - b["labels"]).float()
        total += (error.unsqueeze(1) * b["x"].float()).bfloat16().float().square().sum(0)
    torch.testing.assert_close(score, total / 40, rtol=0.02, atol=0)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("labels", ["true", "sampled"])
@pytest.mark.parametrize("estimator", ["batch", "per-sample"])
def test_the_model_and_every_random_state_stay_as_found(mode: str, labels: str, estimator: str) -> None:
    model = Line(dropout=0.5)
    model.drop.eval()  # a mixed mode must come back as it was
    model.weight.grad = torch.full((3,), 7.0)
    model.spare.requires_grad_(False)
    model.calls.fill_(5)
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(
        torch.arange(4), batch_size=2, shuffle=True, generator=generator,
        collate_fn=lambda rows: {"x": torch.ones(len(rows), 3), "labels": torch.randn(len(rows))},
    )  # fmt: skip
    grad, before = model.weight.grad, bits(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    Fisher(estimator=estimator, mode=mode, labels=labels)(setting(model, loader.__iter__, names=["weight"]))
    assert model.training
    assert not model.drop.training
    assert model.weight.grad is grad
    assert torch.equal(grad, torch.full((3,), 7.0))
    assert model.weight.requires_grad
    assert not model.spare.requires_grad
    assert model.calls == 5
    assert differing(before, bits(model)) == []
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_it_leaves_the_model_as_found_when_the_loss_fails() -> None:
    model = Line().eval()
    data = line_batches((2,))
    data[0]["x"][0, 0] = float("nan")
    with pytest.raises(NumericError, match="loss of piece 0"):
        Fisher(mode="train")(setting(model, data, names=["weight"]))
    assert not model.training
    assert model.spare.requires_grad


def test_an_infinite_gradient_names_its_tensor() -> None:
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def forward(self, labels: torch.Tensor) -> Output:
            return Output(self.weight.sqrt().sum(), labels)  # finite, but its slope at zero is not

    with pytest.raises(NumericError, match="gradient of 'weight'"):
        Fisher()(setting(Root(), [{"labels": torch.zeros(1)}]))


def test_dropout_is_off_unless_asked_for() -> None:
    data = line_batches((2, 3))
    plain = Fisher()(setting(Line(), data))["weight"]
    assert torch.equal(Fisher()(setting(Line(dropout=0.5), data))["weight"], plain)
    assert not torch.equal(Fisher(mode="train")(setting(Line(dropout=0.5), data))["weight"], plain)


def test_only_selected_tensors_are_scored() -> None:
    model = tiny("bert")
    name = "bert.encoder.layer.1.output.dense.weight"
    assert set(Fisher()(setting(model, [batch()], names=[name], forward=default_forward))) == {name}


def test_sampled_labels_give_the_fisher_of_the_models_own_distribution() -> None:
    # For a softmax over two classes on one example the expectation is p(1 - p) x^2 for the second class's weights.
    class Logistic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.0, 1.0]))

        def forward(self, labels: torch.Tensor) -> Output:
            logits = self.weight.expand(labels.numel(), 2)
            return Output(nn.functional.cross_entropy(logits, labels), logits)

    data = [{"labels": torch.zeros(4000, dtype=torch.int64)}]
    p = torch.softmax(torch.tensor([0.0, 1.0]), 0)[1]
    fisher = Fisher(estimator="per-sample", labels="sampled", samples=1000)
    # All examples share one prediction, so the draws alone decide: 1000 of them, standard error of about 0.004.
    score = fisher(setting(Logistic(), data))["weight"]
    torch.testing.assert_close(score, (p * (1 - p)).expand(2), rtol=0.08, atol=0)
    true = Fisher(estimator="per-sample", samples=1)(setting(Logistic(), data))["weight"]
    torch.testing.assert_close(true, (p * p).expand(2), rtol=1e-5, atol=0)


def test_sampled_labels_follow_the_seed_alone() -> None:
    model, data = tiny("bert"), batches(2)
    fisher = Fisher(labels="sampled")
    first = fisher(setting(model, data, forward=default_forward, seed=1))
    torch.rand(5)
    again = fisher(setting(model, data, forward=default_forward, seed=1))
    other = [fisher(setting(model, data, forward=default_forward, seed=s)) for s in (2, 3)]
    name = "classifier.weight"
    assert torch.equal(first[name], again[name])
    assert any(not torch.equal(first[name], o[name]) for o in other)


@pytest.mark.parametrize(("kind", "task"), [("llama", "CausalLM"), ("bert", "MaskedLM"), ("t5", "Seq2SeqLM")])
def test_sampled_labels_refuse_language_models_and_say_why(kind: str, task: str) -> None:
    model = tiny(kind, task)
    with pytest.raises(UsageError, match="need generation; use labels='true'"):
        Fisher(labels="sampled")(setting(model, [batch(task)], forward=default_forward))


def test_no_batches_no_examples() -> None:
    with pytest.raises(UsageError, match="give the Tuning batches"):
        Fisher()(setting(Line(), None))
    with pytest.raises(DataError, match="gave none"):
        Fisher()(setting(Line(), []))


@pytest.mark.parametrize(
    "wrong",
    [
        {"estimator": "sample"},
        {"labels": "model"},
        {"mode": "test"},
        {"clip": 0.0},
        {"clip": float("nan")},
        {"samples": 0},
        {"samples": 2.5},
        {"samples": True},
    ],
)
def test_wrong_fields_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Fisher(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("fisher", [Fisher(), Fisher("per-sample", "sampled", "train", 1.0, 100)])
def test_it_is_a_value(fisher: Fisher) -> None:
    assert eval(repr(fisher), recipe_namespace()) == fisher
    assert fisher.needs == ("batches",)


@pytest.mark.parametrize("estimator", ["batch", "per-sample"])
def test_examples_without_any_label_add_nothing(estimator: str) -> None:
    """Their loss is a mean over nothing: a short text of which no token was masked, a prompt that fills the length."""
    model = nn.Linear(3, 2)

    def forward(module: nn.Module, given: Batch) -> Output:
        logits = module(given["x"])  # (examples, length, 2)
        return Output(nn.functional.cross_entropy(logits.flatten(0, 1), given["labels"].flatten()), logits)

    def data(*rows: int) -> list[Batch]:
        x = torch.arange(36.0).reshape(4, 3, 3) / 36
        labels = torch.tensor([[0, 1, -100], [-100, -100, -100], [1, -100, -100], [-100, -100, -100]])
        return [{"x": x[[row]], "labels": labels[[row]]} for row in rows]

    whole = [{key: torch.cat([b[key] for b in data(0, 1, 2)]) for key in ("x", "labels")}, *data(3)]
    fisher = Fisher(estimator=estimator)
    scores = [fisher(setting(model, batches, forward=forward)) for batches in (data(0, 1, 2, 3), data(0, 2))]
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in ("weight", "bias"))
    assert torch.isfinite(fisher(setting(model, whole, forward=forward))["weight"]).all()
    with pytest.raises(DataError, match="none with a label"):
        fisher(setting(model, data(1, 3), forward=forward))
