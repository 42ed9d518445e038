"""What cannot be carried through under the Hugging Face Trainer, and what must hold at each of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerCallback

from subnetune.core.errors import NumericError, UsageError
from subnetune.engine.reference import innermost, unscale_once
from subnetune.engine.served import ServedOptimizer

if TYPE_CHECKING:
    from transformers import Trainer


def refuse_unsupported(trainer: Trainer, rules: Sequence[object] = ()) -> None:
    """Raise UsageError, by name, for what a recipe with these forward rules cannot be carried through under."""
    args = trainer.args
    reasons = {
        "FSDP": trainer.is_fsdp_enabled and "shards are not served under the Trainer yet; use DDP",
        "DeepSpeed": trainer.is_deepspeed_enabled and "its engine takes the optimizer's steps itself; use DDP",
        "a model sharded while loading": getattr(trainer, "is_distributed_loading_by_transformers", False)
        and "its optimizer state cannot be saved; load the model whole",
        "model_init": trainer.model_init is not None
        and "it makes another model at every train(); build the model and pass model=",
        "several GPUs in one process": rules
        and args.n_gpu > 1
        and f"DataParallel runs copies of the model, which {type(rules[0]).__name__} does not reach; start a process "
        "for each (torchrun), or make one visible",
        "auto_find_batch_size": args.auto_find_batch_size
        and "it changes the number of steps during the run; set per_device_train_batch_size",
        "ignore_data_skip": args.ignore_data_skip
        and "a resumed run would not see the data that the whole run sees; leave it off",
        "fp16_full_eval / bf16_full_eval": (args.fp16_full_eval or args.bf16_full_eval)
        and "they cast the weights, after which no entry has its own bits; use bf16=True",
    }
    for what, why in reasons.items():
        if why:
            raise UsageError(f"TunedTrainer does not support {what}: {why}")


def scales(trainer: Trainer) -> bool:
    """Whether the trainer scales its loss (fp16): it then skips steps with gradients that are not finite by itself."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return scaler is not None and bool(scaler.is_enabled())


class UnscaleFirst(TrainerCallback):
    """Unscales fp16 gradients before the optimizer's step, where the Trainer has not, and clears them after it.

    Optimizers that unscale inside their kernel (fused) would get them scaled, and no rule could see what they are.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer between backward and step."""
        inner = innermost(kwargs.get("optimizer"))
        if scales(self._trainer) and isinstance(inner, Optimizer):
            unscale_once(self._trainer.accelerator.scaler, inner)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after `model.zero_grad()`, which does not reach what an engine has packed."""
        inner = innermost(kwargs.get("optimizer"))
        if isinstance(inner, ServedOptimizer):  # a step that was skipped leaves it there
            inner.zero_grad()


def check_finite(loss: Tensor | float, norm: Tensor, index: int) -> None:
    """Raise NumericError where the loss or the gradient norm of step `index` (0-based) is NaN or infinite."""
    for name, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            raise NumericError(
                f"the {name} is {float(value)} in step {index + 1}; nothing was updated by it. "
                "Check the data, or try a lower learning_rate, a max_grad_norm, more warmup, or no bf16"
            )
