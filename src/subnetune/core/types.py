"""The words that every part of the library shares: parameters, masks, steps, and what a piece may see.

Names are canonical: those of the unwrapped transformers model. Wrappers (DDP, `torch.compile`, PEFT) put prefixes
into names; `canonical_name` removes them by one table, so a mask or a delta never depends on how a model is wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from subnetune.core.errors import DataError
from subnetune.core.journal import Journal
from subnetune.core.passes import Passes

Params: TypeAlias = Mapping[str, Tensor]  # canonical name -> tensor
Mask: TypeAlias = Mapping[str, Tensor]  # bool; (), (rows, 1), (1, cols) or the parameter's shape; True = selected
State: TypeAlias = dict[str, Any]  # nested dict of tensors and plain numbers, saved as it is
Batch: TypeAlias = Mapping[str, Tensor]
Batches: TypeAlias = Iterable[Batch] | Callable[[], Iterable[Batch]]


class Output(NamedTuple):
    """What a forward pass gives: `loss` is a scalar, `logits` what the model predicts, (batch, ...)."""

    loss: Tensor
    logits: Tensor


Forward: TypeAlias = Callable[[nn.Module, Batch], Output]


class Step(NamedTuple):
    """A moment in training, counted in optimizer steps that really happened. `total` is 0 where it is not known."""

    index: int  # type: ignore[assignment]  # the word of the design; nobody looks a step up by value
    total: int


class Setting(NamedTuple):
    """All there is before step 0: what scorers, selectors and preparations are given.

    `params` are the selected tensors by canonical name; `batches()` gives a fresh iterable of batches on the model's
    device; `tasks` maps a task's name to such a callable; `steps` is the number of optimizer steps, 0 where unknown;
    `journal` keeps what a long score has done, or is None.
    """

    model: nn.Module
    params: Params
    forward: Forward
    batches: Callable[[], Iterable[Batch]] | None
    tasks: Mapping[str, Callable[[], Iterable[Batch]]]
    steps: int
    seed: int
    journal: Journal | None = None


class Live(NamedTuple):
    """All there is during a step: the selected tensors (local shards), their anchors, the mask and its state.

    `mask` None means that everything is selected. `target` is what unselected entries are mixed towards (the anchor,
    unless the selector has another). `passes` keeps what forward rules hang on the model's modules. Update rules run
    under `torch.no_grad()`.
    """

    params: Params
    anchor: Params
    mask: Mask | None
    state: State
    step: Step
    optimizer: Optimizer | None
    target: Params
    passes: Passes

    def sum(self, value: Tensor) -> Tensor:
        """Add `value` over the ranks that hold shards of these parameters; itself where nothing is sharded."""
        return value if not any(placement(p).sharded for p in self.params.values()) else all_reduce_sum(value)


Scorer: TypeAlias = Callable[[Setting], Params]  # one number per entry; leaves model and RNG as found
UpdateRule: TypeAlias = Callable[[Live], AbstractContextManager[None]]  # before and after the optimizer's step
ForwardRule: TypeAlias = Callable[[Forward, nn.Module, Batch, Live], Output]  # middleware: leftmost is outermost
Preparation: TypeAlias = Callable[[Setting], None]


class Placement(NamedTuple):
    """Where a local tensor lies in the whole one: `shape` of the whole tensor, `start` of the local part per axis."""

    shape: tuple[int, ...]
    start: tuple[int, ...]
    sharded: bool


def placement(tensor: Tensor) -> Placement:
    """Return where `tensor` lies in its unsharded tensor (the engine marks local shards; others are whole)."""
    mark = getattr(tensor, "subnetune_placement", None)
    return mark if mark is not None else Placement(tuple(tensor.shape), (0,) * tensor.dim(), False)


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a local part of a larger one."""
    mark = getattr(tensor, "subnetune_placement", None)
    return mark is not None and bool(mark.sharded)


def all_reduce_sum(value: Tensor) -> Tensor:
    """Return the sum of `value` over all ranks (a copy; `value` stays). The value itself without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total


# What wrappers put into parameter names, and what they leave of it. Order matters: outermost wrappers first.
_PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")
_INFIXES = (
    "._orig_mod",
    "._checkpoint_wrapped_module",
    "._fsdp_wrapped_module",
    ".base_layer",
    ".modules_to_save.default",
)


def canonical_name(name: str) -> str:
    """Return the name that the parameter has in the unwrapped model."""
    stripped = True
    while stripped:
        stripped = False
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                name, stripped = name[len(prefix) :], True
    for infix in _INFIXES:
        name = name.replace(infix + ".", ".")
    return name


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DDP and `torch.compile` wrappers (PEFT wrappers stay: they own parameters)."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def default_forward(model: nn.Module, batch: Batch) -> Output:
    """Call a Hugging Face model on a batch that holds `labels`; return its loss and logits.

    Raises DataError for a batch that is no mapping, and where the model gives no loss, because there are no labels.
    """
    check_batch(batch)
    out = model(**batch)
    if getattr(out, "loss", None) is None:
        raise DataError(
            f"the model gave no loss for a batch with {', '.join(map(repr, batch))}: name the targets 'labels', or "
            "pass Tuning(..., forward=) a function that returns Output(loss, logits)"
        )
    return Output(out.loss, out.logits)


def check_batch(batch: object) -> None:
    """Raise DataError for a batch that is no mapping, such as the list that a TensorDataset's data loader gives."""
    if not isinstance(batch, Mapping):
        raise DataError(
            f"a batch is a {type(batch).__name__}; wanted a mapping of tensors with `labels`, such as "
            "{'input_ids': ..., 'labels': ...}: let the data set return dicts, or give the DataLoader a collate_fn "
            "that makes one"
        )


def batches_of(batches: Batches) -> Callable[[], Iterable[Batch]]:
    """Return a callable that gives a fresh pass over `batches` each time."""
    if callable(batches):
        return batches
    return lambda: batches


def no_grad_copy(params: Params) -> dict[str, Tensor]:
    """Return detached copies of the tensors, each in its own storage."""
    return {name: torch.clone(p.detach()) for name, p in params.items()}
