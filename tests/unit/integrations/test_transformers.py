"""A recipe under the Hugging Face Trainer: the stock run where it selects everything, exact where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from subnetune import methods
from subnetune.core.errors import LifeCycleError, UsageError
from subnetune.core.recipe import Group, Recipe, Scope
from subnetune.core.types import Batch
from subnetune.delta import Delta
from subnetune.integrations.scoring_batches import planned_steps, scoring_batches
from subnetune.integrations.transformers import TunedTrainer
from subnetune.score.fisher import Fisher
from subnetune.select.top import Top
from subnetune.tuning import Tuning
from tiny import bits, differing
from trainers import CLASSIFIER, EXACT, SPARSE, WHOLE, CountedScore, Doubled, examples, small, stock, tuned

EVERYTHING = Recipe(scope=Scope(selected=("*",)), selector=Top(Fisher(), keep=1.0), update=EXACT)

FUSED = {"optim": "adamw_torch_fused"}


@pytest.mark.parametrize(
    ("recipe", "dropout", "changes"),
    [
        (WHOLE, False, {}),
        pytest.param(WHOLE, False, FUSED, marks=pytest.mark.slow),
        (WHOLE, True, {"gradient_accumulation_steps": 2, "max_steps": 6}),
        (methods.full(), True, FUSED),
        # Scored first: dropout and the order of the data must be those of the stock run.
        pytest.param(EVERYTHING, True, {}, marks=pytest.mark.slow),
        (EVERYTHING, True, {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 4, **FUSED}),
        pytest.param(WHOLE, True, {"bf16": True, "label_smoothing_factor": 0.1}, marks=pytest.mark.slow),
        pytest.param(WHOLE, False, {"max_grad_norm": 0.0}, marks=pytest.mark.slow),
    ],
    ids=["plain", "fused", "dropout", "groups", "scored", "epochs", "bf16", "unclipped"],
)
def test_a_recipe_that_trains_everything_is_the_stock_run(
    recipe: Recipe, dropout: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    theirs = stock(tmp_path / "a", model=small(dropout), **changes)
    theirs.train()
    ours = tuned(tmp_path / "b", recipe, model=small(dropout), **changes)  # building one seeds the run
    before = bits(ours.model)
    ours.train()
    assert differing(bits(theirs.model), bits(ours.model)) == []
    assert len(differing(before, bits(ours.model))) > 10
    assert ours.tuning.index == ours.state.global_step == theirs.state.global_step
    for mine, other in zip(ours.state.log_history[:-1], theirs.state.log_history[:-1], strict=True):
        assert mine == other  # loss, learning rate and grad_norm of every step


def test_the_run_is_the_plain_loop_clipping_what_trains(tmp_path: Path) -> None:
    trainer = tuned(
        tmp_path,
        SPARSE,
        model=small(dropout=False),
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        max_grad_norm=0.01,
    )
    trainer.train()
    model = small(dropout=False)
    data = examples()
    batches = [{k: torch.stack([row[k] for row in data[i : i + 4]]) for k in data[0]} for i in range(0, 40, 4)]
    order = partial_batches(trainer)
    tuning = Tuning(SPARSE, model, batches=lambda: order, steps=10, seed=3)
    trained = tuning.param_groups()[0]
    decay = [p for p, n in zip(trained["params"], trained["param_names"], strict=True) if is_decayed(n)]
    rest = [p for p, n in zip(trained["params"], trained["param_names"], strict=True) if not is_decayed(n)]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=1e-3
    )
    tuning.attach(optimizer)
    norms = []
    for batch in batches:
        tuning.forward(batch).loss.backward()
        norms.append(float(tuning.clip(0.01)))
        tuning.step(optimizer)
        optimizer.zero_grad()
    assert tuning.mask_digest() == trainer.tuning.mask_digest()
    assert differing(bits(model), bits(trainer.model)) == []
    assert [entry["grad_norm"] for entry in trainer.state.log_history[:-1]] == norms


def partial_batches(trainer: TunedTrainer) -> list[Batch]:
    return list(scoring_batches(trainer))


def is_decayed(name: str) -> bool:
    return not (name.endswith("bias") or "LayerNorm" in name)


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "sgd", "adafactor"])
def test_unselected_and_frozen_entries_keep_the_bits_of_the_base(optim: str, tmp_path: Path) -> None:
    trainer = tuned(tmp_path, SPARSE, optim=optim, learning_rate=1e-2)
    base = bits(trainer.model)
    trainer.train()
    now, mask = bits(trainer.model), trainer.tuning.mask
    moved = 0
    for name, old in base.items():
        if name in trainer.tuning.scope.whole:
            continue
        selected = mask[name].expand_as(old) if name in mask else torch.zeros_like(old, dtype=torch.bool)
        assert torch.equal(old[~selected].view(torch.int32), now[name][~selected].view(torch.int32)), name
        moved += int((old != now[name]).sum())
    assert moved > 500


def test_arguments_are_put_back_and_a_second_run_is_refused(tmp_path: Path) -> None:
    trainer = tuned(tmp_path, WHOLE, max_steps=2)
    trainer.train()
    assert trainer.args.max_grad_norm == 0.5
    with pytest.raises(LifeCycleError, match="has trained 2 steps"):
        trainer.train()
    broken = tuned(tmp_path, WHOLE, max_steps=2, max_grad_norm=float("nan"))
    with pytest.raises(UsageError, match="max_grad_norm is not a number"):
        broken.train()
    changed = tuned(tmp_path, WHOLE, max_steps=2)
    changed.args.max_steps = 3
    with pytest.raises(UsageError, match="3 steps, but had 2"):
        changed.train()
    assert changed.args.max_grad_norm == 0.5


def test_groups_scale_rates_and_leave_open_decay_to_the_trainer(tmp_path: Path) -> None:
    recipe = Recipe(
        scope=Scope(selected=(), whole=("*",)), groups=(Group("@head", lr_scale=10.0), Group("@embeddings", 0.5, 0.3))
    )
    trainer = tuned(tmp_path, recipe)
    groups = trainer.create_optimizer().param_groups
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}
    assert found["classifier.weight"] == (1e-2, 0.1)
    assert found["classifier.bias"] == (1e-2, 0.0)
    assert found["bert.embeddings.word_embeddings.weight"] == (5e-4, 0.3)
    assert found["bert.encoder.layer.0.attention.output.LayerNorm.weight"] == (1e-3, 0.0)
    assert found["bert.encoder.layer.1.intermediate.dense.weight"] == (1e-3, 0.1)
    assert len(found) == len(list(trainer.model.parameters()))
    assert trainer.optimizer_cls_and_kwargs is None
    trainer.train()
    assert trainer.tuning.index == 10
    model = small()
    given = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="learning-rate groups"):
        tuned(tmp_path, recipe, model=model, optimizers=(given, None)).train()


def test_an_optimizer_of_the_users_own_is_served(tmp_path: Path) -> None:
    model = small()
    given = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = tuned(tmp_path, SPARSE, model=model, optimizers=(given, None), max_steps=3)
    base = bits(model)
    trainer.train()
    assert trainer.tuning.index == 3
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    mask = trainer.tuning.mask[name]
    assert torch.equal(base[name][~mask], model.get_parameter(name)[~mask])
    assert not torch.equal(base[name][mask], model.get_parameter(name)[mask])
    lacking = small()
    half = torch.optim.SGD(lacking.bert.encoder.layer[0].parameters(), lr=0.1)
    with pytest.raises(UsageError, match="does not hold"):
        tuned(tmp_path, SPARSE, model=lacking, optimizers=(half, None)).train()


def test_evaluation_neither_starts_nor_changes_anything(tmp_path: Path) -> None:
    CountedScore.calls.clear()
    recipe = Recipe(scope=CLASSIFIER, selector=Top(CountedScore(), keep=0.3), update=EXACT, forward=(Doubled(),))
    ours, theirs = tuned(tmp_path, recipe, eval_dataset=examples(8, 1)), stock(tmp_path, eval_dataset=examples(8, 1))
    assert ours.evaluate()["eval_loss"] == theirs.evaluate()["eval_loss"]
    assert torch.equal(
        torch.tensor(ours.predict(examples(8, 2)).predictions), torch.tensor(theirs.predict(examples(8, 2)).predictions)
    )
    assert CountedScore.calls == []
    ours.train()
    assert CountedScore.calls == [10]


def test_scoring_batches_are_fixed_whole_and_on_the_device(tmp_path: Path) -> None:
    trainer = tuned(tmp_path, WHOLE)
    first, second = list(scoring_batches(trainer)), list(scoring_batches(trainer))
    assert [len(batch["labels"]) for batch in first] == [4] * 10
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)
    rows = sorted(row.tolist() for batch in first for row in batch["input_ids"])
    assert rows == sorted(row["input_ids"].tolist() for row in examples())
    assert planned_steps(trainer) == 10
    assert planned_steps(tuned(tmp_path, WHOLE, max_steps=-1, num_train_epochs=1.5, gradient_accumulation_steps=4)) == 5


def test_the_base_is_the_model_as_given_and_its_delta_ships(tmp_path: Path) -> None:
    trainer = tuned(tmp_path, SPARSE)
    base = bits(trainer.model)
    trainer.train()
    trainer.save_delta(tmp_path / "child.safetensors")
    trained = bits(trainer.model)
    trainer.tuning.close()
    other = small()
    assert differing(base, bits(other)) == []
    Delta.load(tmp_path / "child.safetensors").apply(other)
    assert differing(trained, bits(other)) == []


def test_a_dropped_trainer_lets_its_model_go(tmp_path: Path) -> None:
    model = small()
    first = tuned(tmp_path, WHOLE, model=model)
    with pytest.raises(LifeCycleError, match="another Tuning"):
        tuned(tmp_path, WHOLE, model=model)
    first.tuning.close()
    tuned(tmp_path, WHOLE, model=model, max_steps=1).train()
