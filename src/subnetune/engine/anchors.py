"""The values of what trains when training began: copies, or of tensors with a static mask the selected entries alone.

Where unselected entries are held, the model itself has their anchor. A tensor is put together when it is read; between
steps, that is: within one, an optimizer may have moved what a rule will put back. The fingerprint of each whole tensor
tells whether the model still has what it must have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from subnetune.core.errors import CheckpointError, LifeCycleError
from subnetune.core.fingerprint import fingerprint
from subnetune.core.types import Mask, placement
from subnetune.engine.binding import Binding
from subnetune.engine.child import place_of
from subnetune.engine.kernels import kernels_for
from subnetune.engine.norms import packed
from subnetune.engine.place import Place
from subnetune.engine.views import gathered, local_part, local_view


class Anchors(Mapping[str, Tensor]):
    """Anchors (local shards) by canonical name: `kept` as they were, `entries` of the others, (count,) each.

    `prints` are the fingerprints of those others, unsharded; `binding` and `mask` give the model's tensors and the
    run's mask.
    """

    def __init__(
        self,
        kept: Mapping[str, Tensor],
        entries: Mapping[str, Tensor] | None = None,
        prints: Mapping[str, str] | None = None,
        binding: Binding | None = None,
        mask: Callable[[], Mask | None] = lambda: None,
    ) -> None:
        self.kept, self.entries, self.prints = dict(kept), dict(entries or {}), dict(prints or {})
        self._binding, self._mask = binding, mask
        names = () if binding is None else binding.trained()
        self._names = tuple(names) if self.entries else tuple(self.kept)

    @torch.no_grad()
    def packed(
        self, binding: Binding, mask: Callable[[], Mask | None], earlier: Mapping[str, Tensor], selected: bool
    ) -> Anchors:
        """Return anchors that hold the selected entries alone, where `selected`; else copies, as these are.

        What these do not hold is taken from the model. `earlier` names what preparations changed.
        """
        if self.entries or (self.kept and not selected):
            return self
        if not selected:
            return Anchors(binding.snapshot())
        kept, entries, prints = {}, {}, {}
        here, choosing = binding.selected(), mask()
        for name, tensor in binding.trained().items():
            local = local_view(tensor)
            value = self.kept.get(name, local)
            place = place_of(choosing, name, local) if choosing is not None and name in here else None
            if place is None:
                kept[name] = value if name in self.kept else copied(local)
                continue
            entries[name] = packed(local_part(value, local).detach(), place)
            known = None if name in earlier else binding.fingerprint.tensors.get(name)
            prints[name] = known or fingerprint(gathered(value, tensor) if placement(value).sharded else value)
        return Anchors(kept, entries, prints, binding, mask)

    def local(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each name with a tensor that lies where the anchor does, without putting any together."""
        for name in self:
            yield name, self.kept[name] if name in self.kept else local_view(self._read(name))

    def moved(self) -> list[str]:
        """Return the tensors whose unselected entries are not what they were; every rank must join."""
        now = {name: fingerprint(gathered(self[name], self._read(name))) for name in self.entries}
        return [name for name in now if now[name] != self.prints[name]]

    def check(self) -> None:
        """Raise CheckpointError for entries (of a saved state) that do not fit the mask."""
        for name, values in self.entries.items():
            place = self._place(name, local_view(self._read(name)))
            if place is None or values.shape != (place.count,):
                raise CheckpointError(f"the anchor of {name!r} has {values.numel()} entries; the mask has others")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.entries:
            return self.kept[name]
        copy = copied(local_view(self._read(name)))
        place = self._place(name, copy)
        if place is None or place.count != self.entries[name].numel():
            raise LifeCycleError(f"{name!r} was sharded after its anchor was packed: shard the model first")
        kernels_for(copy.device.type).scatter(self.entries[name], place, copy.view(-1))
        return copy

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:  # the inherited one puts the tensor together
        return name in self.kept or name in self.entries

    def _read(self, name: str) -> Tensor:
        assert self._binding is not None
        return self._binding.structure.read(name)

    def _place(self, name: str, local: Tensor) -> Place | None:
        mask = self._mask()
        return None if mask is None else place_of(mask, name, local)


def copied(local: Tensor) -> Tensor:
    """Return a copy of a local tensor that knows where it lies."""
    copy = local.detach().clone()
    if placement(local).sharded:
        copy.subnetune_placement = placement(local)  # type: ignore[attr-defined]
    return copy
