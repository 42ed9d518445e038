"""The options of a Trainer's run that its result depends on: kept with each checkpoint, compared on a resume."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from subnetune.core.errors import CheckpointError
from subnetune.engine.reference import innermost

if TYPE_CHECKING:
    from transformers import Trainer

# Recipe, seed and number of steps are in the tuning state. Names that this transformers lacks read None.
_NAMES = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim",
    "optim_args",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "warmup_ratio",
    "per_device_train_batch_size",
    "n_gpu",  # of one process: they multiply its batch
    "gradient_accumulation_steps",
    "world_size",
    "data_seed",
    "train_sampling_strategy",
    "dataloader_drop_last",
    "max_grad_norm",
    "bf16",
    "fp16",
    "label_smoothing_factor",
    "neftune_noise_alpha",
)

# What checkpoints from before there was a choice do not tell.
BEFORE_ENGINES = {"engine": "reference", "precision": "same", "gradients": "dense"}


def run_options(trainer: Trainer) -> dict[str, Any]:
    """Return what a resumed run must have in common with the one it continues: plain numbers and strings by name.

    Ask before the Trainer has made its optimizer, and while `max_grad_norm` is what the user gave.
    """
    options = {name: _plain(getattr(trainer.args, name, None)) for name in _NAMES}
    options["max_grad_norm"] = max(float(trainer.args.max_grad_norm or 0.0), 0.0)  # all of these mean: no clipping
    data = trainer.train_dataset
    options["training examples"] = len(data) if isinstance(data, Sized) else None
    return options


def given_optimizer(trainer: Trainer) -> str | None:
    """Return class and hyper-parameters of the optimizer that the caller passed to the Trainer; None for none."""
    given = innermost(trainer.optimizer)
    if isinstance(given, Optimizer):
        return f"{type(given).__name__}({_plain(given.defaults)})"
    if trainer.optimizer_cls_and_kwargs is not None:
        cls, hyper = trainer.optimizer_cls_and_kwargs
        return f"{getattr(cls, '__name__', cls)}({_plain(hyper)})"
    return None


def check_options(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming every option that differs between a checkpoint's run and this one."""
    gone = object()
    differ = [
        f"{name}={saved[name]!r}, now {now.get(name)!r}" if name in saved else f"no {name}, now {now[name]!r}"
        for name in dict.fromkeys((*saved, *now))
        if saved.get(name, gone) != now.get(name, gone)
    ]
    if differ:
        raise CheckpointError(
            f"this is not the run that the checkpoint is of: the run has {'; '.join(differ)}. Set them as they were to "
            "resume, or start a new run, from the base, in an output_dir of its own"
        )


def _plain(value: Any) -> Any:
    # Only what torch.load takes with weights_only, and what prints the same in every process.
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key}={_plain(inner)}" for key, inner in sorted(value.items(), key=lambda pair: str(pair[0]))
        )
    if isinstance(value, list | tuple):
        return f"[{', '.join(str(_plain(inner)) for inner in value)}]"
    return type(value).__name__
