"""Which modules own the selected tensors, and whether hooks on them see all that a loss does with these tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import Node

from subnetune.core.types import Params
from subnetune.score.example_formulas import Formula, formula_of


class NotByHooks(Exception):
    """Why hooks cannot give the gradients of single examples here. Never leaves the scorer: it takes the loop then."""


class Owner(NamedTuple):
    """A module, its selected tensors (attribute -> canonical name), and the formula of their gradients."""

    module: nn.Module
    names: dict[str, str]
    formula: Formula


def owners(model: nn.Module, params: Params) -> list[Owner]:
    """Return the modules of known type that own selected tensors; NotByHooks for a tensor that no such module owns."""
    wanted = {id(p): name for name, p in params.items()}
    found: list[Owner] = []
    strange: dict[str, str] = {}
    for module in model.modules():
        own = {a: wanted[id(p)] for a, p in module.named_parameters(recurse=False) if id(p) in wanted}
        formula = formula_of(module) if own else None
        if formula is None:
            strange |= dict.fromkeys(own.values(), type(module).__name__)
        else:
            found.append(Owner(module, own, formula))
    known = {name for owner in found for name in owner.names.values()}
    for name in params:
        if name not in known:
            raise NotByHooks(f"{name!r} lies in a module of type {strange.get(name, 'unknown')}")
    return found


def uses(loss: Tensor) -> tuple[Counter[int], set[Node]]:
    """Return how often the graph of `loss` reads each leaf, by the tensor's id, and all nodes of the graph."""
    reads: Counter[int] = Counter()
    seen: set[Node] = set()
    ahead = [] if loss.grad_fn is None else [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node in seen:
            continue
        seen.add(node)
        for before, _ in node.next_functions:
            if before is None:
                continue
            leaf = getattr(before, "variable", None)  # where a leaf's gradient would be accumulated
            if isinstance(leaf, Tensor):
                reads[id(leaf)] += 1
            else:
                ahead.append(before)
    return reads, seen


def check_uses(params: Params, reads: Counter[int], tapped: Iterable[Owner]) -> None:
    """Raise NotByHooks unless each tensor that is read is read once, by an owner whose output was tapped."""
    taps = Counter(name for owner in tapped for name in owner.names.values())
    for name, p in params.items():
        if reads[id(p)] > 1:
            raise NotByHooks(f"{name!r} is used {reads[id(p)]} times")
        if reads[id(p)] != taps[name]:
            raise NotByHooks(f"{name!r} is used where no module has one row for each example")
