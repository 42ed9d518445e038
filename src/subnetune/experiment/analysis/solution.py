"""A model at the end of its run, beside the weights that it started from, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from subnetune.core.errors import CheckpointError
from subnetune.core.fingerprint import named_parameters, parameter_aliases
from subnetune.core.structure import Structure
from subnetune.delta import Delta
from subnetune.delta.adapters import merged_adapters


@dataclass(frozen=True)
class Solution:
    """The base's values of every tensor that moved, by canonical name; adapters move the weights they are merged into.

    `adapted` names those weights. `why` says why adapters could not be merged: then `base` lacks their weights.
    """

    base: dict[str, Tensor]
    adapted: frozenset[str] = frozenset()
    why: str | None = None


@contextmanager
def solution(delta: Delta, model: nn.Module) -> Iterator[Solution]:
    """Have the delta in `model`, a base model, with adapters merged into the weights; afterwards it is the base again.

    Copies the tensors that move. Raises CheckpointError where delta and base do not belong together.
    """
    aliases, parameters = parameter_aliases(model), named_parameters(model)
    touched = {aliases.get(name, name) for name in delta.touched}
    base = {name: parameters[name].detach().clone() for name in touched & set(parameters)}
    handle = delta.apply(model)
    try:
        structure = Structure(model)
        layers = [module for module in structure.modules() if hasattr(module, "adapter_layer_names")]
        adapted = frozenset(structure.inside(*layers) - structure.adapters() - set(delta.new))
        values = {name: structure.read(name).detach().clone() for name in adapted - set(base)}
        with ExitStack() as merged:
            why = None
            try:
                if layers:
                    merged.enter_context(merged_adapters(model))
            except CheckpointError as error:
                why = str(error)
            yield Solution(base if why else base | values, adapted, why)
    finally:
        handle.remove()
