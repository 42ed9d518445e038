"""The optimizer of a Trainer's run: the class, options and groups that the Trainer would use, served by an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.optim import Optimizer

from subnetune.core.errors import UsageError
from subnetune.engine.choice import EngineName, PrecisionName
from subnetune.engine.lean import GradientsName
from subnetune.engine.reference import innermost
from subnetune.integrations.run_options import BEFORE_ENGINES
from subnetune.tuning import Tuning

if TYPE_CHECKING:
    from transformers import Trainer

# The Trainer gives these further orders of its own, such as float32 states for embeddings.
_MADE_BY_THE_TRAINER = ("bitsandbytes",)


@dataclass(frozen=True)
class Wish:
    """What the user asks of `Tuning.optimizer` beside class and hyper-parameters."""

    engine: EngineName = "auto"
    precision: PrecisionName = "same"
    gradients: GradientsName = "dense"

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments."""
        return asdict(self)

    def check_free(self, why: str) -> None:
        """Raise UsageError where more is asked for than the reference engine gives."""
        for name, value in self.options().items():
            if value not in ("auto", *BEFORE_ENGINES.values()):
                raise UsageError(f'{name}="{value}" cannot be had for this run: {why}')


def engine_name(trainer: Trainer, tuning: Tuning, wish: Wish) -> str:
    """Return the name of the engine that will serve the trainer's run. Raises UsageError where none serves as asked."""
    if wish.gradients != "dense" and trainer.args.world_size > 1:
        raise UsageError(
            f'gradients="{wish.gradients}" is not served under the Trainer with several processes, whose wrapper would '
            'average dense gradients: use a loop of your own with tuning.forward, or gradients="dense"'
        )
    if trainer.optimizer is not None:
        wish.check_free("the optimizer was passed to the trainer, and steps as it does")
        return "reference"
    cls, hyper = _class_and_options(trainer)
    if _made_by_the_trainer(cls, hyper):
        wish.check_free(f"{_name(cls)} does not take named parameters")
        return "reference"
    return tuning.engine_for(cls, hyper, **wish.options()).name


def make_optimizer(trainer: Trainer, tuning: Tuning, wish: Wish, by_the_trainer: Callable[[], object]) -> Optimizer:
    """Return the optimizer that the trainer's arguments ask for over what trains, served by `tuning`.

    One that the caller passed, or that only the Trainer can make (`by_the_trainer` does), is attached: the reference
    engine. Raises UsageError for one that cannot hold the recipe's groups, and for a wish that cannot be met.
    """
    engine_name(trainer, tuning, wish)
    if trainer.optimizer is not None:
        if tuning.recipe.groups:
            raise UsageError(
                "this recipe has learning-rate groups, which an optimizer passed as `optimizers` cannot follow: "
                "choose it with TrainingArguments(optim=...) or `optimizer_cls_and_kwargs`"
            )
        return _attached(tuning, trainer.optimizer)
    cls, hyper = _class_and_options(trainer)
    if not _made_by_the_trainer(cls, hyper):
        groups = list(parameter_groups(trainer, tuning, hyper.get("lr")))
        return tuning.optimizer(cls, **wish.options(), groups=groups, **hyper)
    if tuning.recipe.groups:
        if _groups_by_itself(cls, hyper):
            raise UsageError(
                f"{_name(cls)} groups parameters by itself and cannot follow this recipe's groups: choose another "
                "`optim`"
            )
        hyper = {**hyper, "params": list(parameter_groups(trainer, tuning, hyper.get("lr")))}
    asked = trainer.optimizer_cls_and_kwargs
    trainer.optimizer_cls_and_kwargs = (cls, dict(hyper))  # the Trainer takes groups from here, and out of the dict
    try:
        by_the_trainer()
    finally:
        trainer.optimizer_cls_and_kwargs = asked
    return _attached(tuning, trainer.optimizer)


def parameter_groups(trainer: Trainer, tuning: Tuning, lr: float | None) -> Iterator[dict[str, Any]]:
    """Yield the recipe's groups with names; where one leaves the weight decay open, the Trainer's rule splits it."""
    model = cast(nn.Module, trainer.model)
    decaying = set(trainer.get_decay_parameter_names(cast(Any, model)))
    decays = {id(p) for name, p in model.named_parameters() if name in decaying}
    for group in tuning.param_groups(lr):
        if "weight_decay" in group:
            yield group
            continue
        pairs = list(zip(group["params"], group["param_names"], strict=True))
        for rate, which in ((trainer.args.weight_decay, True), (0.0, False)):
            part = [pair for pair in pairs if (id(pair[0]) in decays) is which]
            if part or not tuning.recipe.groups:  # without groups of the recipe's: always the Trainer's two
                tensors, names = [tensor for tensor, _ in part], [name for _, name in part]
                yield {**group, "params": tensors, "param_names": names, "weight_decay": rate}


def _attached(tuning: Tuning, optimizer: object) -> Optimizer:
    inner = innermost(optimizer)
    if not isinstance(inner, Optimizer):
        raise UsageError(f"TunedTrainer needs a torch optimizer, got {type(inner).__name__}")
    tuning.attach(inner)
    return inner


def _class_and_options(trainer: Trainer) -> tuple[Any, Mapping[str, Any]]:
    asked = trainer.optimizer_cls_and_kwargs
    return asked or trainer.get_optimizer_cls_and_kwargs(trainer.args, cast(Any, trainer.model))


def _made_by_the_trainer(cls: Any, hyper: Mapping[str, Any]) -> bool:
    return _groups_by_itself(cls, hyper) or cls.__module__.startswith(_MADE_BY_THE_TRAINER)


def _groups_by_itself(cls: Any, hyper: Mapping[str, Any]) -> bool:
    own = {"params", "model", "optimizer_dict"} & set(hyper)
    return bool(own) or not (isinstance(cls, type) and issubclass(cls, Optimizer))


def _name(cls: Any) -> str:
    return str(getattr(cls, "__name__", cls))
