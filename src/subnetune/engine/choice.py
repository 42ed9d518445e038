"""Which engine serves a recipe and an optimizer, and why: the fastest that is exact, or the one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

from subnetune.core.errors import UsageError
from subnetune.core.masks import kept_fraction
from subnetune.core.recipe import Recipe, Selector, check_choice
from subnetune.engine.child import Child
from subnetune.engine.fused import FusedAdamW, Treated
from subnetune.engine.kernels import Treatment, kernels_for
from subnetune.engine.lean import GradientsName, LeanGradients, check_gradients
from subnetune.engine.packed import ELEMENT_WISE, PackedOptimizer
from subnetune.engine.precision import PRECISIONS, Precision, is_narrow
from subnetune.engine.products import select_products
from subnetune.engine.reference import ReferenceEngine
from subnetune.engine.served import ServedOptimizer
from subnetune.engine.serving import ServedEngine
from subnetune.update.hold_unselected import HoldUnselected
from subnetune.update.mask_gradient import MaskGradient

EngineName: TypeAlias = Literal["auto", "reference", "packed", "fused"]
PrecisionName: TypeAlias = Literal["same", "master", "stochastic"]
ENGINES = ("auto", "reference", "packed", "fused")
SMALL = 1 << 20  # entries: for fewer, compiling (seconds) would not pay

_NOT_FUSED = ("amsgrad", "maximize", "capturable", "differentiable")


class Choice(NamedTuple):
    """An engine by name, and why it is this one."""

    name: str
    why: str

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


def choose(
    recipe: Recipe,
    cls: Any,
    hyper: Mapping[str, Any],
    trained: Mapping[str, Tensor],
    asked: str = "auto",
    precision: str = "same",
    gradients: str = "dense",
) -> Choice:
    """Return the engine for `recipe` under optimizers of class `cls`. Raises UsageError where none serves as asked."""
    check_choice("optimizer", "engine", asked, ENGINES)
    check_choice("optimizer", "precision", precision, PRECISIONS)
    found = _found(recipe, cls, hyper, trained, asked, precision)
    check_gradients(gradients, recipe, found.name, str(found))
    return found


def _found(
    recipe: Recipe, cls: Any, hyper: Mapping[str, Any], trained: Mapping[str, Tensor], asked: str, precision: str
) -> Choice:
    if precision != "same":
        return _converting(recipe, cls, trained, asked, precision)
    refused = {"packed": not_packed(recipe, cls, trained), "fused": not_fused(recipe, cls, hyper, trained)}
    if asked != "auto":
        if refused.get(asked):
            raise UsageError(f'engine="{asked}" cannot serve this run: {refused[asked]}')
        return Choice(asked, "asked for")
    if recipe.selector is None:
        return Choice("reference", "nothing is masked, so the optimizer's own step is all there is")
    device = next(iter(trained.values())).device.type
    size = sum(tensor.numel() for tensor in trained.values())
    against = refused["fused"]
    if against is None and size < SMALL:
        against = f"{size} entries train, and below {SMALL} compiling does not pay"
    elif against is None and not _compiled(device):  # asked last: it loads the compiler
        against = f"no compiled kernels for {device} are installed (numba, Triton)"
    if against is None:
        return Choice("fused", f"AdamW and the mask in one pass ({kernels_for(device).name} kernels)")
    if refused["packed"] is None:
        return Choice("packed", f"a static mask under an element-wise optimizer (not fused: {against})")
    return Choice("reference", f"not packed: {refused['packed']}; not fused: {against}")


def _converting(recipe: Recipe, cls: Any, trained: Mapping[str, Tensor], asked: str, precision: str) -> Choice:
    """Return the packed engine, the one that keeps leaves in another precision than the weights have."""
    why = f"the {asked} engine computes in the weights' precision" if asked not in ("auto", "packed") else None
    if recipe.selector is not None:
        why = why or not_packed(recipe, cls, trained)
    elif cls not in ELEMENT_WISE:
        why = why or _not_element_wise(cls)
    else:
        why = why or _not_plain(recipe, trained)
    if why is not None:
        raise UsageError(f'precision="{precision}" needs the packed engine, which cannot serve this run: {why}')
    if not any(is_narrow(tensor) for tensor in trained.values()):
        raise UsageError(
            f'precision="{precision}" is for bfloat16 and float16 weights, and nothing that trains here is one: '
            "leave it out, or load the model in bfloat16"
        )
    return Choice("packed", f'precision="{precision}" was asked for')


def make_engine(
    choice: Choice,
    child: Child,
    cls: Any,
    groups: list[dict[str, Any]],
    hyper: Mapping[str, Any],
    precision: Precision,
    gradients: GradientsName = "dense",
) -> ReferenceEngine:
    """Return the chosen engine with its optimizer, over `groups` of the parameters that train."""
    optimizer: Optimizer = cls(groups, **hyper)
    recipe = child.host.recipe
    if choice.name == "packed":
        served: ServedOptimizer = PackedOptimizer(optimizer, child, hyper, _divisor(recipe, child), precision)
    elif choice.name == "fused":
        extra = next((name for name in _NOT_FUSED for group in groups if group.get(name)), None)
        if extra is not None:
            raise UsageError(f'a group asks for {extra}, which the fused engine has not: use engine="reference"')
        served = FusedAdamW(optimizer, child, treated(recipe))
    else:
        return ReferenceEngine(child.host, optimizer, str(choice))
    if gradients == "dense":
        return ServedEngine(child.host, served, str(choice))
    lean = LeanGradients(child)
    told = "lean gradients" if gradients == "lean" else select_products(child, lean)
    served.use(lean)
    return ServedEngine(child.host, served, f"{choice}; {told}")


def treated(recipe: Recipe) -> Treated:
    """Return what the recipe's update rules do to unselected entries, and whether they rescale gradients."""
    masking = [rule for rule in recipe.update if isinstance(rule, MaskGradient)]
    holds = any(isinstance(rule, HoldUnselected) for rule in recipe.update)
    return Treated(Treatment(bool(masking), holds), any(rule.rescale for rule in masking))


def not_packed(recipe: Recipe, cls: Any, trained: Mapping[str, Tensor]) -> str | None:
    """Return why the packed engine cannot serve, or None where it can."""
    if recipe.selector is None:
        return "nothing is masked"
    if not recipe.selector.static:
        return f"the mask of {type(recipe.selector).__name__} changes during the run"
    if not treated(recipe).treatment.hold:
        return "no rule holds the unselected entries, so that they take part in the step"
    if cls not in ELEMENT_WISE:
        return _not_element_wise(cls)
    return _not_plain(recipe, trained)


def not_fused(recipe: Recipe, cls: Any, hyper: Mapping[str, Any], trained: Mapping[str, Tensor]) -> str | None:
    """Return why the fused engine cannot serve, or None where it can."""
    if cls is not torch.optim.AdamW:
        return f"fused is AdamW, and the optimizer is {getattr(cls, '__name__', cls)}"
    extra = [name for name in _NOT_FUSED if hyper.get(name)]
    if extra:
        return f"it has no {extra[0]}"
    watching = recipe.selector is not None and type(recipe.selector).observe is not Selector.observe
    if watching and treated(recipe).rescale:
        return f"{type(recipe.selector).__name__} observes gradients that MaskGradient(rescale=True) has divided"
    wrong = next((name for name, tensor in trained.items() if tensor.dtype != torch.float32), None)
    if wrong is not None:
        return f"{wrong!r} is {trained[wrong].dtype}, and its arithmetic is float32"
    return _not_plain(recipe, trained)


def _not_plain(recipe: Recipe, trained: Mapping[str, Tensor]) -> str | None:
    known = (MaskGradient, HoldUnselected)
    other = next((rule for rule in recipe.update if type(rule) not in known), None)
    if other is not None:
        return f"{type(other).__name__} works around the optimizer's own step"
    if recipe.selector is not None and recipe.selector.static and type(recipe.selector).observe is not Selector.observe:
        return f"{type(recipe.selector).__name__} observes gradients under a static mask"
    scattered = next((name for name, tensor in trained.items() if not tensor.is_contiguous()), None)
    return None if scattered is None else f"{scattered!r} is not contiguous in memory"


def _not_element_wise(cls: Any) -> str:
    return f"{getattr(cls, '__name__', cls)} is not among the optimizers known to treat every entry by itself"


def _compiled(device: str) -> bool:
    return kernels_for(device).name != "torch"


def _divisor(recipe: Recipe, child: Child) -> float | None:
    if not treated(recipe).rescale:
        return None
    return kept_fraction("MaskGradient(rescale=True)", child.host.live().state)
