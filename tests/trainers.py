"""Tiny Trainer runs: data, arguments, and pieces with states of every kind, for the tests of the integrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from subnetune.core.recipe import Recipe, Scope, Selector
from subnetune.core.types import Batch, Forward, Live, Mask, Output, Params, Setting, State, Step
from subnetune.integrations.transformers import TunedTrainer
from subnetune.score.fisher import Fisher
from subnetune.select.top import Top
from subnetune.update import HoldUnselected, MaskGradient
from tiny import VOCABULARY, tiny, without_dropout

EXACT = (MaskGradient(), HoldUnselected())
CLASSIFIER = Scope(selected=("@layers",), whole=("@head",))
WHOLE = Recipe(scope=Scope(selected=(), whole=("*",)))
OWN = ("engine", "precision", "gradients", "tasks")  # arguments of TunedTrainer alone
SPARSE = Recipe(scope=CLASSIFIER, selector=Top(Fisher(), keep=0.2), update=EXACT)


def examples(count: int = 40, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return labelled token sequences of one length."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (count, 7), generator=random)
    labels = torch.randint(0, 2, (count,), generator=random)
    return [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": y} for i, y in zip(ids, labels, strict=True)
    ]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    """Return arguments of ten steps with a decay and a clip that bite, on the CPU."""
    usual: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "optim": "adamw_torch",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return TrainingArguments(**{**usual, **changes})


def small(dropout: bool = True) -> nn.Module:
    """Return a tiny BERT classifier, the same at every call."""
    model = tiny("bert", num_hidden_layers=2)
    return model if dropout else without_dropout(model)


def tuned(folder: Path, recipe: Recipe, *, model: nn.Module | None = None, **changes: Any) -> TunedTrainer:
    """Return a trainer of the tiny classifier with this recipe."""
    own = _own(changes)
    new = changes.pop("new", ())
    model = small() if model is None else model
    return TunedTrainer(model=model, args=arguments(folder, **changes), recipe=recipe, new=new, **own)


def stock(folder: Path, *, model: nn.Module | None = None, **changes: Any) -> Trainer:
    """Return the stock trainer of the same run."""
    own = _own(changes)
    return Trainer(model=small() if model is None else model, args=arguments(folder, **changes), **own)


def _own(changes: dict[str, Any]) -> dict[str, Any]:
    names = ("train_dataset", "eval_dataset", "callbacks", "compute_loss_func", "optimizers", *OWN)
    return {"train_dataset": examples(), **{name: changes.pop(name) for name in names if name in changes}}


class StopAt(TrainerCallback):
    """Saves and ends the run after this many steps, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
        return control


@dataclass(frozen=True)
class CountedScore:
    """Scores by magnitude and counts how often it was asked."""

    calls: ClassVar[list[int]] = []

    def __call__(self, setting: Setting) -> Params:
        self.calls.append(setting.steps)
        return {name: p.detach().abs() for name, p in setting.params.items()}


@dataclass(frozen=True)
class Wandering(Selector):
    """A dynamic selector whose mask depends on gradients of the past: tensors, whole numbers and bits in its state."""

    static: ClassVar[bool] = False

    def init(self, setting: Setting) -> State:
        sums = {name: torch.zeros_like(p) for name, p in setting.params.items()}
        bits = {name: torch.ones(p.shape, dtype=torch.bool) for name, p in setting.params.items()}
        return {"sums": sums, "seen": 0, "big": torch.tensor(300_000_001), "bits": bits, "note": "collecting"}

    def mask(self, state: State, params: Params, step: Step) -> Mask:
        return state["bits"]

    def observe(self, state: State, params: Params, mask: Mask | None, step: Step) -> None:
        state["seen"] += 1
        state["big"] += 1
        for name, p in params.items():
            if p.grad is not None:
                state["sums"][name].add_(p.grad.square())
        if state["seen"] % 3 == 0:
            state["note"] = "updating"
            for name, total in state["sums"].items():
                state["bits"][name] = total > total.median()


@dataclass(frozen=True)
class Doubled:
    """Runs the model twice and averages, and adds a penalty of one."""

    penalty: float = 0.0

    def __call__(self, forward: Forward, model: nn.Module, batch: Batch, live: Live) -> Output:
        one, two = forward(model, batch), forward(model, batch)
        assert one.logits.shape[0] == batch["input_ids"].shape[0]
        return Output((one.loss + two.loss) / 2 + self.penalty, one.logits)
