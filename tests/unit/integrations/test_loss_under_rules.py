"""The Trainer's loss inside forward rules: its normalising, its smoothing, its outputs."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from subnetune.core.recipe import Recipe
from subnetune.score.fisher import Fisher
from subnetune.select.top import Top
from tiny import bits, differing, tiny
from trainers import CLASSIFIER, EXACT, WHOLE, Doubled, examples, small, stock, tuned


@pytest.mark.parametrize(
    "changes",
    [{"label_smoothing_factor": 0.2}, pytest.param({}, marks=pytest.mark.slow)],
    ids=["smoothed", "plain"],
)
def test_a_rule_that_changes_nothing_leaves_the_loss_of_the_trainer(changes: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe(scope=WHOLE.scope, forward=(Doubled(),))
    usual = {"gradient_accumulation_steps": 2, "max_steps": 4, **changes}
    ours = tuned(tmp_path, recipe, model=small(dropout=False), **usual)
    theirs = stock(tmp_path, model=small(dropout=False), **usual)
    ours.train()
    theirs.train()
    for mine, other in zip(ours.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6)
    assert differing(bits(theirs.model), bits(ours.model)) == []  # halves and powers of two are exact


def sentences() -> list[dict[str, torch.Tensor]]:
    """Token sequences whose labels count unequally: the first i % 5 tokens are not predicted."""
    rows = examples()
    for i, row in enumerate(rows):
        row["labels"] = row["input_ids"].clone()
        row["labels"][: 1 + i % 5] = -100
    return rows


def test_a_language_model_keeps_its_normalisation_by_tokens(tmp_path: Path) -> None:
    runs = []
    for recipe in (None, WHOLE, Recipe(scope=WHOLE.scope, forward=(Doubled(),))):
        model = tiny("llama", "CausalLM", num_hidden_layers=2)
        changes: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_steps": 3, "train_dataset": sentences()}
        trainer = (stock if recipe is None else partial(tuned, recipe=recipe))(tmp_path, model=model, **changes)
        trainer.train()
        runs.append(trainer)
    theirs, ours, ruled = runs
    assert differing(bits(theirs.model), bits(ours.model)) == []
    assert differing(bits(theirs.model), bits(ruled.model)) == []
    first = [run.state.log_history[0]["loss"] for run in runs]
    assert first[0] == first[1] == pytest.approx(first[2], rel=1e-6)
    assert first[0] == pytest.approx(math.log(53), rel=0.1)  # a mean over tokens, not over micro-batches' sums


def by_items(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    ("accumulation", "function"),
    [
        (1, None),
        (2, by_items),
        pytest.param(1, by_items, marks=pytest.mark.slow),
        pytest.param(2, None, marks=pytest.mark.slow),
    ],
)
def test_a_penalty_counts_once_however_the_loss_is_normalised(function: Any, accumulation: int, tmp_path: Path) -> None:
    losses = []
    for penalty in (0.0, 1.0):
        trainer = tuned(
            tmp_path,
            Recipe(scope=CLASSIFIER, selector=Top(Fisher(), keep=0.5), update=EXACT, forward=(Doubled(penalty),)),
            model=small(dropout=False),
            compute_loss_func=function,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
        )
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history[:-1]])
    assert losses[1] == pytest.approx([loss + 1.0 for loss in losses[0]], rel=1e-5)


def test_where_the_model_does_not_normalise_the_trainer_can_be_told(tmp_path: Path) -> None:
    """BERT's classifiers take the number of items and leave it: the stock Trainer sums their micro-batches."""
    first = []
    for accumulation, told in ((1, None), (2, None), (2, False)):
        usual = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4 // accumulation}
        for make in (stock, partial(tuned, recipe=Recipe(scope=WHOLE.scope, forward=(Doubled(1.0),)))):
            trainer = make(tmp_path, model=small(dropout=False), max_steps=1, **usual)
            trainer.loss_is_scaled_for_ga = told
            trainer.train()
            first.append(trainer.state.log_history[0]["loss"])
    plain, penalised, summed, penalised_sum, told, penalised_told = first
    assert penalised == pytest.approx(plain + 1.0, rel=1e-5)
    assert summed == pytest.approx(2 * plain, rel=1e-4)
    assert penalised_sum == pytest.approx(summed + 1.0, rel=1e-5)
    assert (told, penalised_told) == pytest.approx((plain, plain + 1.0), rel=1e-4)


def test_compute_loss_returns_outputs_when_asked(tmp_path: Path) -> None:
    trainer = tuned(tmp_path, Recipe(scope=WHOLE.scope, forward=(Doubled(1.0),)), model=small(dropout=False))
    batch = trainer.data_collator(examples(4))
    loss, outputs = trainer.compute_loss(trainer.model.train(), batch, return_outputs=True)
    assert float(loss.detach()) == pytest.approx(float(outputs.loss.detach()) + 1.0)
    assert "labels" in batch
    assert trainer.compute_loss(trainer.model.eval(), batch).item() == pytest.approx(float(outputs.loss.detach()))
