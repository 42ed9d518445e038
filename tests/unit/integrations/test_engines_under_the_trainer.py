"""The engines under the Trainer: what the reference run does, bit for bit, and which engine serves a run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from subnetune import methods
from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.recipe import Group, Recipe
from subnetune.engine.fused import FusedAdamW
from subnetune.engine.packed import PackedOptimizer
from subnetune.engine.reference import innermost
from subnetune.integrations.checkpoint_folder import OPTIONS
from subnetune.integrations.optimizers import Wish, engine_name
from subnetune.integrations.transformers import TunedTrainer
from subnetune.score.magnitude import Magnitude
from subnetune.select.bernoulli import Bernoulli
from subnetune.select.top import Top
from tiny import bits, differing
from trainers import CLASSIFIER, EXACT, WHOLE, StopAt, small, tuned

STATIC = Recipe(scope=CLASSIFIER, selector=Top(Magnitude(), keep=0.3), update=EXACT)
RANDOM = Recipe(scope=CLASSIFIER, selector=Bernoulli(0.4), update=EXACT)
SPARSE = Recipe(scope=CLASSIFIER, selector=Top(Magnitude(), keep=0.05), update=EXACT)
GROUPED = Recipe(
    scope=CLASSIFIER, selector=Top(Magnitude(), keep=0.3), update=EXACT, groups=(Group("@head", lr_scale=10.0),)
)
BITES = {"max_grad_norm": 0.05, "max_steps": 4}  # gradients have norms of about 0.5
FUSED = {"optim": "adamw_torch_fused"}


def logged(trainer: TunedTrainer) -> list[dict[str, float]]:
    """What each step says: loss, gradient norm, learning rate."""
    return trainer.state.log_history[:-1]


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (
            STATIC,
            {"lr_scheduler_type": "cosine", "warmup_steps": 2, "gradient_accumulation_steps": 2, **BITES, **FUSED},
        ),
        (STATIC, {"gradients": "lean", "gradient_accumulation_steps": 2, **BITES}),
        pytest.param(STATIC, {"max_steps": 10, "max_grad_norm": 0.0}, marks=pytest.mark.slow),
        pytest.param(STATIC, {"bf16": True, **BITES}, marks=pytest.mark.slow),
        pytest.param(GROUPED, BITES, marks=pytest.mark.slow),
        pytest.param(STATIC, {"optim": "sgd", "optim_args": "momentum=0.9", **BITES}, marks=pytest.mark.slow),
    ],
    ids=["mixed", "lean", "plain", "bf16", "groups", "sgd"],
)
def test_the_packed_run_is_the_reference_run(recipe: Recipe, changes: dict[str, Any], tmp_path: Path) -> None:
    dense = {key: value for key, value in changes.items() if key != "gradients"}
    plain = tuned(tmp_path / "a", recipe, engine="reference", **dense)
    base = bits(plain.model)
    plain.train()
    packed = tuned(tmp_path / "b", recipe, engine="packed", **changes)
    packed.train()
    assert isinstance(innermost(packed.optimizer), PackedOptimizer)
    assert packed.tuning.engine.startswith("packed: asked for")
    assert differing(bits(plain.model), bits(packed.model)) == []
    assert len(differing(base, bits(packed.model))) > 10
    assert logged(plain) == logged(packed)
    assert packed.tuning.index == plain.tuning.index == plain.args.max_steps


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        pytest.param(STATIC, {}, marks=pytest.mark.slow),
        (RANDOM, {}),
        pytest.param(SPARSE, {"gradients": "selected"}, marks=pytest.mark.slow),
    ],
    ids=["static", "random", "selected"],
)
def test_the_fused_run_is_the_reference_run_to_rounding(recipe: Recipe, more: dict[str, str], tmp_path: Path) -> None:
    runs = []
    for engine in ({"engine": "reference"}, {"engine": "fused", **more}):
        runs.append(tuned(tmp_path, recipe, model=small(dropout=False), max_steps=3, **engine, **FUSED))
        runs[-1].train()
    assert isinstance(innermost(runs[1].optimizer), FusedAdamW)
    for name, value in bits(runs[0].model).items():
        torch.testing.assert_close(bits(runs[1].model)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        pytest.param(STATIC, {"engine": "packed"}, marks=pytest.mark.slow),
        (STATIC, {"engine": "packed", "gradients": "lean", "gradient_accumulation_steps": 2}),
        pytest.param(STATIC, {"engine": "fused"}, marks=pytest.mark.slow),
        (RANDOM, {"engine": "fused"}),
    ],
    ids=["packed", "lean", "fused", "random"],
)
def test_stop_and_resume_is_the_run_that_was_never_stopped(
    recipe: Recipe, changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = tuned(tmp_path / "one", recipe, max_steps=4, **changes)
    whole.train()
    tuned(tmp_path / "two", recipe, max_steps=4, callbacks=[StopAt(2)], **changes).train()
    saved = torch.load(tmp_path / "two" / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert saved[OPTIONS]["engine"] == saved["about"]["engine"] == changes["engine"]
    torch.manual_seed(999)
    second = tuned(tmp_path / "two", recipe, max_steps=4, **changes)
    second.train(resume_from_checkpoint=True)
    assert differing(bits(whole.model), bits(second.model)) == []
    ours, theirs = second.optimizer.state_dict()["state"], whole.optimizer.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for name, state in theirs.items():
        assert all(torch.equal(torch.as_tensor(ours[name][key]), torch.as_tensor(state[key])) for key in state)


def test_a_checkpoint_of_another_engine_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    tuned(tmp_path, STATIC, callbacks=[StopAt(1)]).train()
    trainer = tuned(tmp_path, STATIC, engine="reference")
    before = bits(trainer.model)
    with pytest.raises(CheckpointError, match="the run has engine='packed', now 'reference'. Set them"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.tuning.index == 0
    assert differing(before, bits(trainer.model)) == []


def test_a_checkpoint_from_before_there_were_engines_is_one_of_the_reference(tmp_path: Path) -> None:
    tuned(tmp_path, STATIC, engine="reference", max_steps=3, callbacks=[StopAt(2)]).train()
    file = tmp_path / "checkpoint-2" / "optimizer.pt"
    saved = torch.load(file, weights_only=True)
    for name in ("engine", "precision", "gradients"):
        del saved[OPTIONS][name]
    torch.save(saved, file)
    with pytest.raises(CheckpointError, match="the run has engine='reference', now 'packed'. Set them"):
        tuned(tmp_path, STATIC, max_steps=3).train(resume_from_checkpoint=True)
    second = tuned(tmp_path, STATIC, engine="reference", max_steps=3)
    second.train(resume_from_checkpoint=True)
    assert second.tuning.index == 3


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        (STATIC, {}, r"^packed: a static mask under an element-wise optimizer \(not fused: \d+ entries"),
        (RANDOM, {}, r"^reference: not packed: the mask of Bernoulli changes"),
        (WHOLE, {}, "^reference: nothing is masked"),
        (STATIC, {"optim": "adafactor"}, "^reference: not packed: Adafactor is not among"),
        (STATIC, {"engine": "reference"}, "^reference: asked for"),
    ],
    ids=["static", "random", "whole", "adafactor", "asked"],
)
def test_the_run_says_which_engine_serves_it(
    recipe: Recipe, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    trainer = tuned(tmp_path, recipe, **changes)
    trainer.create_optimizer()
    assert re.search(said, trainer.tuning.engine)


@pytest.mark.parametrize(
    ("recipe", "changes", "told"),
    [
        (RANDOM, {"engine": "packed"}, 'engine="packed" cannot serve this run: the mask of Bernoulli changes'),
        (STATIC, {"engine": "fused", "optim": "sgd"}, 'engine="fused" cannot serve this run: fused is AdamW'),
        (STATIC, {"engine": "quick"}, "quick"),
        (STATIC, {"optim": "adafactor", "gradients": "lean"}, 'gradients="lean" cannot serve this run'),
        (methods.full(), {"precision": "master", "optim": "adafactor"}, 'precision="master" needs the packed engine'),
    ],
    ids=["packed", "fused", "unknown", "lean", "precision"],
)
def test_what_cannot_be_had_is_refused_when_the_trainer_is_built(
    recipe: Recipe, changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        tuned(tmp_path, recipe, **changes)


@pytest.mark.parametrize("asked", [{"engine": "packed"}, {"precision": "master"}, {"gradients": "lean"}])
def test_an_optimizer_of_the_users_own_is_the_reference_engines(asked: dict[str, Any], tmp_path: Path) -> None:
    model = small()
    given = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="the optimizer was passed to the trainer"):
        tuned(tmp_path, STATIC, model=model, optimizers=(given, None), **asked)


def test_packed_gradients_are_refused_in_several_processes(tmp_path: Path) -> None:
    trainer = tuned(tmp_path, STATIC)
    several = SimpleNamespace(optimizer=None, args=SimpleNamespace(world_size=2))
    told = 'gradients="lean" is not served under the Trainer with several processes.*or gradients="dense"$'
    with pytest.raises(UsageError, match=told):
        engine_name(several, trainer.tuning, Wish(gradients="lean"))  # type: ignore[arg-type]
