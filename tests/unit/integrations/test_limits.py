"""What TunedTrainer refuses, and what it does with gradients that are scaled or not finite."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from subnetune import methods
from subnetune.core.errors import NumericError, UsageError
from subnetune.core.recipe import Recipe
from subnetune.forward import RDrop
from subnetune.integrations.limits import refuse_unsupported
from subnetune.integrations.transformers import TunedTrainer
from tiny import bits, differing
from trainers import CLASSIFIER, SPARSE, WHOLE, Doubled, arguments, examples, small, tuned


def settings(**changes: Any) -> Any:
    names = ("auto_find_batch_size", "ignore_data_skip", "fp16_full_eval", "bf16_full_eval")
    args = dict.fromkeys(names, False)
    usual = {"is_fsdp_enabled": False, "is_deepspeed_enabled": False, "model_init": None}
    given = {**args, **usual, **changes}
    own = SimpleNamespace(**{k: given[k] for k in args}, n_gpu=given.get("n_gpu", 1))
    return SimpleNamespace(**{k: given[k] for k in usual}, args=own)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"is_fsdp_enabled": True}, "FSDP"),
        ({"is_deepspeed_enabled": True}, "DeepSpeed"),
        ({"model_init": small}, "model_init"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"ignore_data_skip": True}, "ignore_data_skip"),
        ({"bf16_full_eval": True}, "bf16_full_eval"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    refuse_unsupported(settings())
    with pytest.raises(UsageError, match=named):
        refuse_unsupported(settings(**changes))


def test_forward_rules_do_not_reach_the_copies_that_several_gpus_of_one_process_run() -> None:
    refuse_unsupported(settings(n_gpu=2))
    refuse_unsupported(settings(), (RDrop(),))
    with pytest.raises(UsageError, match=r"several GPUs.*RDrop"):
        refuse_unsupported(settings(n_gpu=2), (RDrop(),))


def test_refusals_reach_the_constructor(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model_init"):
        TunedTrainer(model_init=small, args=arguments(tmp_path), train_dataset=examples(), recipe=WHOLE)
    with pytest.raises(UsageError, match="needs `batches`"):
        TunedTrainer(model=small(), args=arguments(tmp_path), recipe=SPARSE)
    with pytest.raises(UsageError, match="Recipe"):
        TunedTrainer(model=small(), args=arguments(tmp_path), train_dataset=examples(), recipe="child-tuning-d")  # type: ignore[arg-type]


class Overflow(TrainerCallback):
    """Makes one gradient infinite before a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            held = (p for group in kwargs["optimizer"].param_groups for p in group["params"])
            next(p for p in held if p.grad is not None and p.grad.any()).grad.fill_(float("inf"))


def scaled(folder: Path, accelerate_unscales: bool, overflow_at: int = -1, **changes: Any) -> TunedTrainer:
    """A trainer under the scaler that accelerate makes for fp16, which needs a GPU; the model runs in float32.

    `accelerate_unscales`: its `clip_grad_norm_`, which newer Trainers call to measure at `max_grad_norm=0` too,
    unscales as it does under fp16.
    """
    trainer = tuned(folder, SPARSE, callbacks=[Overflow(overflow_at)], **changes)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    if accelerate_unscales:
        clip = trainer.accelerator.clip_grad_norm_

        def unscale_and_clip(*args: Any, **kwargs: Any) -> torch.Tensor:
            trainer.accelerator.scaler.unscale_(trainer.optimizer.optimizer)
            return clip(*args, **kwargs)

        trainer.accelerator.clip_grad_norm_ = unscale_and_clip
    return trainer


@pytest.mark.parametrize(
    ("optim", "accelerate_unscales"),
    [
        ("adamw_torch", True),
        ("adamw_torch_fused", False),
        pytest.param("adamw_torch", False, marks=pytest.mark.slow),
        pytest.param("adamw_torch_fused", True, marks=pytest.mark.slow),
    ],
)
def test_scaled_gradients_are_clipped_unscaled(optim: str, accelerate_unscales: bool, tmp_path: Path) -> None:
    trainer = scaled(tmp_path, accelerate_unscales, optim=optim)
    trainer.train()
    plain = tuned(tmp_path, SPARSE, optim=optim)
    plain.train()
    assert differing(bits(plain.model), bits(trainer.model)) == []  # scales are powers of two
    norms = [[entry.get("grad_norm") for entry in run.state.log_history] for run in (trainer, plain)]
    assert norms[0] == norms[1]


@pytest.mark.parametrize(
    ("optim", "asked"),
    [
        ("adamw_torch", {}),
        ("adamw_torch", {"gradients": "lean"}),
        ("adamw_torch_fused", {"engine": "reference"}),
    ],
    ids=["packed", "lean", "reference"],
)
def test_an_overflow_advances_nothing(optim: str, asked: dict[str, str], tmp_path: Path) -> None:
    trainer = scaled(tmp_path, False, overflow_at=4, optim=optim, **asked)
    trainer.train()
    assert trainer.state.global_step == 10
    assert trainer.tuning.index == 9
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_loss_that_overflows_under_a_scaler_is_the_scalers_to_skip(tmp_path: Path) -> None:
    trainer = scaled(tmp_path, False)
    trainer.compute_loss_func = Spoils(trainer, "loss", float("inf"))
    trainer.train()
    assert trainer.tuning.index == 9
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


# -- FAULT 37: nothing that is not finite reaches the weights ---------------------------------------------------------


class Spoils:
    """A loss that goes wrong at the fourth step: its value, its gradient, or the value alone."""

    def __init__(self, trainer: TunedTrainer, what: str, bad: float) -> None:
        self.trainer, self.what, self.bad = trainer, what, bad
        self.before: dict[str, torch.Tensor] = {}

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(outputs.logits, labels)
        if self.trainer.tuning.index != 3 or self.before:
            return loss
        self.before = bits(self.trainer.model)
        if self.what == "gradient":
            loss.register_hook(lambda gradient: gradient * self.bad)
            return loss
        return loss * self.bad if self.what == "loss" else loss + self.bad


BAD = (("loss", "nan"), ("value", "inf"), ("gradient", "nan"), ("gradient", "inf"))
QUICK = {("loss", "adamw_torch_fused", 0.5), ("value", "adamw_torch", 0.0), ("gradient", "adamw_torch", 0.5)}


@pytest.mark.parametrize(
    ("what", "bad", "clip", "optim"),
    [
        pytest.param(what, bad, clip, optim, marks=() if (what, optim, clip) in QUICK else pytest.mark.slow)
        for what, bad in BAD
        for clip in (0.0, 0.5)
        for optim in ("adamw_torch", "adamw_torch_fused")
    ],
)
def test_fault_37_a_bad_step_stops_the_run(what: str, bad: str, clip: float, optim: str, tmp_path: Path) -> None:
    trainer = tuned(tmp_path, SPARSE, max_grad_norm=clip, optim=optim)
    spoils = trainer.compute_loss_func = Spoils(trainer, what, float(bad))
    named = "gradient norm" if what == "gradient" else "loss"
    with pytest.raises(NumericError, match=f"the {named} is .* in step 4; nothing was updated"):
        trainer.train()
    assert differing(spoils.before, bits(trainer.model)) == []
    assert trainer.tuning.index == 3
    assert [entry["step"] for entry in trainer.state.log_history] == [1, 2, 3]
    assert all(entry["loss"] > 0 and math.isfinite(entry["grad_norm"]) for entry in trainer.state.log_history)
    assert trainer.args.max_grad_norm == clip


@pytest.mark.parametrize("recipe", [methods.full(), Recipe(scope=CLASSIFIER, forward=(Doubled(),))])
def test_fault_37_holds_for_every_recipe_and_micro_batch(recipe: Recipe, tmp_path: Path) -> None:
    trainer = tuned(tmp_path, recipe, gradient_accumulation_steps=2)
    spoils = trainer.compute_loss_func = Spoils(trainer, "value", float("nan"))  # one of several forwards of step 4
    with pytest.raises(NumericError, match="the loss is nan in step 4"):
        trainer.train()
    assert differing(spoils.before, bits(trainer.model)) == []
