"""Fine-tune under the Hugging Face Trainer: two changed lines, everything else as its documentation says.

    trainer = TunedTrainer(model=model, args=args, train_dataset=data, recipe=methods.child_tuning_d(keep=0.3))
    trainer.train()
    trainer.save_delta("child.safetensors")

Only methods that the Trainer documents for subclasses are overridden. Differs from a stock Trainer in: the recipe's
rules run around each optimizer step; `max_grad_norm` clips what trains, inside the step, so while `train` runs
`args.max_grad_norm` reads 0 (a `training_args.bin` saved meanwhile and experiment trackers see that); the logged
`grad_norm` is the norm of what trains, before clipping; a loss or gradient norm that is not finite raises
NumericError before it is applied (under fp16 the Trainer's loss scaling skips such steps); a resumed run is the run
that was never stopped, or an error.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer

from subnetune.core.errors import LifeCycleError, UsageError
from subnetune.core.recipe import Recipe
from subnetune.core.types import Batch, Batches, Output
from subnetune.engine.choice import EngineName, PrecisionName
from subnetune.engine.lean import GradientsName
from subnetune.engine.reference import innermost, overflowed
from subnetune.engine.saving import recipe_text
from subnetune.integrations.checkpoint_folder import carry_state, folder_to_resume, read_tuning_state, required_files
from subnetune.integrations.limits import UnscaleFirst, check_finite, refuse_unsupported, scales
from subnetune.integrations.optimizers import Wish, engine_name, make_optimizer
from subnetune.integrations.run_options import BEFORE_ENGINES, check_options, given_optimizer, run_options
from subnetune.integrations.scoring_batches import planned_steps, scoring_batches
from subnetune.tuning import Tuning

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class TuningMixin(_Base):
    """Adds a recipe to a Trainer class: `class MyTrainer(TuningMixin, Seq2SeqTrainer): ...`.

    recipe: the method, such as `methods.child_tuning_d(keep=0.3)`.
    tasks: further batches by name, as `Prime` takes them: data loaders, or callables that return batches.
    new: names of newly initialised parameters, `from_pretrained(..., output_loading_info=True)[1]["missing_keys"]`;
        by default the head's.
    engine, precision, gradients: as in `Tuning.optimizer`; `trainer.tuning.engine` says which engine serves and why.
    All other arguments are the Trainer's own. The model is bound as it is when the Trainer is built: that is the base
    of the delta. Random masks come from `args.seed`. Raises UsageError for what cannot be served: FSDP, DeepSpeed,
    `model_init`, `auto_find_batch_size`, full half-precision evaluation (which casts the weights).
    """

    # A mixin passes on the arguments of whatever Trainer it is mixed into, hence *args and **kwargs.
    def __init__(
        self,
        *args: Any,
        recipe: Recipe,
        tasks: Mapping[str, Batches] | None = None,
        new: Iterable[str] | None = None,
        engine: EngineName = "auto",
        precision: PrecisionName = "same",
        gradients: GradientsName = "dense",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        refuse_unsupported(self, getattr(recipe, "forward", ()))
        self._served: Optimizer | None = None
        self._wish = Wish(engine, precision, gradients)
        self._options = {"optimizer given": given_optimizer(self), **self._wish.options(), **run_options(self)}
        self._limit = 0.0  # gradient norm to clip to inside the step; 0 while not training or not clipping
        self._norm: Tensor | None = None  # of what trains, at the last step, before clipping
        self._call: tuple[Tensor | int | None, float] | None = None  # (items in batch, scale) during compute_loss
        self._outputs: Any = None  # what the model gave in the last forward of compute_loss
        self._losses: Tensor | float | None = None  # their sum since the last step; None while not training
        self._steps = planned_steps(self)
        this = weakref.proxy(self)  # no reference cycle: a dropped trainer lets its model go
        self.add_callback(UnscaleFirst(this))
        self._tuning = Tuning(
            recipe,
            cast(nn.Module, self.model),
            batches=None if self.train_dataset is None else partial(scoring_batches, this),
            steps=self._steps,
            tasks=tasks,
            forward=lambda model, batch: this._run(model, batch),
            seed=self.args.seed,
            new=new,
        )
        engine_name(self, self._tuning, self._wish)  # raises now for what cannot be had

    @property
    def tuning(self) -> Tuning:
        """The Tuning that carries the recipe through this run."""
        return self._tuning

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Create the optimizer that TrainingArguments ask for over what trains, served by an engine.

        Without groups in the recipe the parameter groups are the Trainer's own (decay and no decay). With groups, a
        tensor has the recipe's learning-rate scale, and its weight decay where it gives one, else the Trainer's. An
        optimizer that the caller passed is served as it is, by the reference engine. Raises UsageError for one that
        cannot hold the groups, and for what was asked and cannot be had.
        """
        served = innermost(self.optimizer)
        if self._served is not None and served is self._served:
            return cast(Optimizer, self.optimizer)
        self._options["engine"] = engine_name(self, self.tuning, self._wish)
        self.tuning.start()  # freezes what does not train, before the Trainer looks for what does
        by_the_trainer = super().create_optimizer
        self._served = make_optimizer(self, self.tuning, self._wish, lambda: by_the_trainer(model))
        self.optimizer = self.optimizer if self.optimizer is not None else self._served
        this = weakref.proxy(self)
        self.tuning.before_step(lambda optimizer: this._check_and_clip(optimizer))
        carry_state(self._served, self.tuning, self._options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """Create the Trainer's schedule, after checking that the run has the length that the recipe was bound to.

        Raises UsageError where the arguments were changed after the trainer was built.
        """
        if num_training_steps != self._steps:
            raise UsageError(
                f"this run has {num_training_steps} steps, but had {self._steps} when the trainer was built: set "
                "max_steps, epochs and batch sizes before building TunedTrainer"
            )
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the Trainer's own loss (label smoothing, `compute_loss_func`, normalising) inside the forward rules.

        Where the Trainer normalises by the items of a whole accumulation, rules see a loss of the micro-batch's size,
        and what they add is averaged over the micro-batches, not summed. A model that is given that number and makes
        no use of it (BERT's classifiers) has its losses summed, here as by the stock Trainer, so that what rules add
        weighs less beside them: set `loss_is_scaled_for_ga = False` there. Evaluation is untouched.
        """
        if model.training and self.tuning.recipe.forward:
            loss, outputs = self._under_rules(model, inputs, num_items_in_batch)
            result: Any = (loss, outputs) if return_outputs else loss
        else:
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss = result[0] if return_outputs else result
        if self._losses is not None and model.training and not scales(self):
            self._losses = self._losses + loss.detach().sum()
        return result

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train; arguments and result are the Trainer's.

        On a resume the tuning state comes from the checkpoint before anything is prepared or scored. Raises
        CheckpointError for a checkpoint that lacks a file or belongs to another base, recipe, seed, length or options
        (rates, batch sizes, ranks, precision, number of examples, ...: each that differs is named), NumericError for
        a step whose loss or gradient norm is not finite, and LifeCycleError for a second run of one trainer.
        """
        asked = self.args.max_grad_norm
        if asked is not None and math.isnan(asked):
            raise UsageError("max_grad_norm is not a number; give one > 0, or 0 for no clipping")
        self._options.update(run_options(self))
        folder: str | None = None
        if resume_from_checkpoint:
            scaled = getattr(self.accelerator, "scaler", None) is not None
            needed = required_files(self.args.world_size, self.args.process_index, scaled)
            found = folder_to_resume(resume_from_checkpoint, self.args.output_dir, needed)
            state, options = read_tuning_state(found)
            saved = {**BEFORE_ENGINES, **options}
            same = state.get("recipe") == recipe_text(self.tuning.recipe)  # another one is the tuning's to refuse
            self._options["engine"] = engine_name(self, self.tuning, self._wish) if same else saved["engine"]
            check_options(saved, self._options)
            self.tuning.load_state_dict(state)
            folder = str(found)
        elif self.tuning.index:
            raise LifeCycleError(
                f"this trainer has trained {self.tuning.index} steps: resume from a checkpoint, or build a new one"
            )
        self._limit = asked if asked is not None and asked > 0 else 0.0
        self.args.max_grad_norm, self._losses = 0.0, 0.0
        try:
            return super().train(folder, trial, ignore_keys_for_eval)
        finally:
            self.args.max_grad_norm, self._limit, self._norm, self._losses = asked, 0.0, None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does; `grad_norm` is the norm of what trains before it was clipped inside the step."""
        if "grad_norm" in logs and self._norm is not None:
            logs["grad_norm"] = float(self._norm)
        super().log(logs, start_time)

    def save_delta(self, path: str | PathLike[str]) -> None:
        """Write what the run changed against the base to one safetensors file (by the main process)."""
        from subnetune.delta import Delta
        from subnetune.delta.about import about_tokenizer

        known = self.processing_class
        named = about_tokenizer(known, getattr(known, "name_or_path", "")) if known is not None else None
        delta = Delta.of(self.tuning, tokenizer=named)
        if self.is_world_process_zero():
            delta.save(Path(path))

    # -- inside -------------------------------------------------------------------------------------------------

    def _check_and_clip(self, optimizer: Optimizer) -> None:
        skipped = overflowed(optimizer)
        self._norm = self.tuning.clip(self._limit or math.inf)  # infinite: measured only
        losses, self._losses = self._losses, None if self._losses is None else 0.0
        if not skipped:
            check_finite(losses or 0.0, self._norm, self.tuning.index)

    def _under_rules(self, model: nn.Module, inputs: dict[str, Any], items: Tensor | int | None) -> tuple[Tensor, Any]:
        scale = self._micro_batches(items)
        self._call = (items, scale)
        try:
            return self.tuning.forward(inputs, model=model).loss / scale, self._outputs
        finally:
            self._call, self._outputs = None, None

    def _run(self, model: nn.Module, batch: Batch) -> Output:
        items, scale = (_items(self, batch), 1.0) if self._call is None else self._call
        # A copy: label smoothing takes the labels out, and a rule may run the same batch twice.
        loss, outputs = super().compute_loss(model, dict(batch), True, items)
        if self._call is not None:
            self._outputs = outputs
        return Output(loss * scale, _logits(outputs))

    def _micro_batches(self, items: Tensor | int | None) -> float:
        # How many micro-batches share the loss, where the Trainer has normalised over all of them; else 1.
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        return float(getattr(self, "current_gradient_accumulation_steps", 1)) if scaled else 1.0


class TunedTrainer(TuningMixin, Trainer):
    """The Hugging Face Trainer with a recipe: `TunedTrainer(..., recipe=methods.child_tuning_d(keep=0.3))`."""


def _items(trainer: Trainer, batch: Batch) -> Tensor | None:
    # For scores outside the training loop: a loss function of the user's own may divide by the number of labels.
    labels = batch.get("labels")
    if trainer.compute_loss_func is None or labels is None:
        return None
    return labels.ne(-100).sum()


def _logits(outputs: Any) -> Tensor:
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[1] if len(outputs) > 1 else None
    if not isinstance(logits, Tensor):
        raise UsageError("this recipe reads logits, but the model's output holds none")
    return logits
