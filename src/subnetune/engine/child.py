"""What trains, as an engine sees it: local tensors by name, and where the selected entries of each lie."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from subnetune.core.masks import full_bits, mask_of, pack
from subnetune.core.recipe import Recipe
from subnetune.core.structure import Structure
from subnetune.core.types import Live, Mask, State, Step, placement
from subnetune.engine.place import Place
from subnetune.engine.views import local_view


class Bound(Protocol):
    """What is asked of a binding: the model's structure, read anew, and what trains in it."""

    structure: Structure

    def trained(self) -> dict[str, Tensor]:
        """Return every parameter that trains at least in part."""

    def selected(self) -> dict[str, Tensor]:
        """Return the selected tensors (local shards) by canonical name."""


class Host(Protocol):
    """What an engine asks of the Tuning that it serves."""

    recipe: Recipe

    def live(self, optimizer: torch.optim.Optimizer | None = None) -> Live:
        """Return the selected tensors, anchors, mask and state of the step that is under way."""

    def stage(self) -> tuple[State, Step]:
        """Return the selector's state and the step that is under way: what `live` has of them, for less."""

    def advance(self) -> None:
        """Count one optimizer step that really happened."""


class Child:
    """The tensors of one Tuning that train. The model's tensors are the only truth: they are read at every use."""

    def __init__(self, host: Host, bound: Bound) -> None:
        self.host = host
        self._bound = bound
        self.selected = frozenset(bound.selected())
        self.names = tuple(bound.trained())
        self.static = host.recipe.selector is not None and host.recipe.selector.static
        self._places: dict[str, tuple[tuple[int, ...], Place | None]] = {}  # by name: the local shape, and the place

    def parameter(self, name: str) -> Tensor:
        """Return the parameter as the model holds it now, sharded or not."""
        return self._bound.structure.read(name)

    def modules(self) -> Iterator[nn.Module]:
        """Yield every module of the model once."""
        yield from self._bound.structure.modules()

    def owned_by(self, module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (attribute, canonical name, tensor) of the parameters that `module` holds itself."""
        yield from self._bound.structure.owned_by(module)

    def local(self, name: str) -> Tensor:
        """Return the local tensor with its gradient: the parameter, or a detached view of this rank's shard."""
        return local_view(self.parameter(name))

    def place(self, name: str, local: Tensor, live: Live | None = None) -> Place | None:
        """Return where the mask selects entries of a local tensor; None where all of them train.

        `live` gives the mask of this step; without it the mask must be static. A static mask is looked at once.
        """
        if name not in self.selected:
            return None
        if not self.static:
            return None if live is None or live.mask is None else place_of(live.mask, name, local)
        shape = tuple(local.shape)
        known = self._places.get(name)
        if known is None or known[0] != shape:
            mask = self.host.live().mask
            known = (shape, None if mask is None else place_of(mask, name, local))
            self._places[name] = known
        return known[1]


def place_of(mask: Mask, name: str, local: Tensor) -> Place | None:
    """Return where a mask selects entries of a local tensor; None where it selects all of them."""
    place = Place.of_bits(mask_bits(mask, name, local), local.numel())
    return None if place.count == place.size else place


def mask_bits(mask: Mask, name: str, local: Tensor) -> Tensor:
    """Return the packed bits of the mask of a local tensor, on its device."""
    if placement(local).sharded:
        return pack(mask_of(mask, name, local).expand(local.shape))
    return full_bits(mask, name, local).to(local.device)


def flat(tensor: Tensor) -> Tensor:
    """Return a flat view without history; of a gradient that is sparse or laid out otherwise, a copy."""
    dense = tensor.detach()
    return (dense.to_dense() if dense.is_sparse else dense).reshape(-1)
