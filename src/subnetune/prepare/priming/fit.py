"""What cannot be meant on the model at hand, said before the first step."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from torch import nn

from subnetune.core.errors import UsageError
from subnetune.prepare.priming.checks import DIFFERENTIATES_TWICE

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


def check_fit(prime: Prime, model: nn.Module, parent: Collection[str], moved: Collection[str]) -> None:
    """Raise UsageError for second derivatives of a model that recomputes its layers, since what is recomputed has no
    graph, and for Reptile where the two loops have no tensor in common."""
    checkpointed = any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())
    if checkpointed and prime.algorithm in DIFFERENTIATES_TWICE:
        raise UsageError(
            f"Prime: {prime.algorithm} needs the graph that gradient checkpointing gives up: switch that off "
            "(model.gradient_checkpointing_disable()), or use fomaml or reptile"
        )
    if prime.algorithm == "reptile" and not set(parent) & set(moved):
        raise UsageError(
            "Prime: reptile moves the parent along the inner loop's way, and here the two loops have no tensor in "
            "common, as with adapters and a fresh head: use fomaml"
        )
