"""The model as both loops see it: what each may touch, under which masks, and how it is put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.core.roles import role_names
from subnetune.core.scope import group_rates, resolve
from subnetune.core.structure import Structure
from subnetune.core.types import Setting
from subnetune.prepare.priming.fit import check_fit
from subnetune.prepare.priming.fresh import Fresh
from subnetune.prepare.priming.losses import Losses
from subnetune.prepare.priming.masks import Masks
from subnetune.prepare.priming.start import Start
from subnetune.prepare.priming.touched import parent_names

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Learner:
    """Binds a `Prime` to a model whose adapters are in place; `added` names those that priming added.

    `moved` and `parent`: what the inner and the outer loop may touch, canonical names in the model's order. `scale`:
    each moved tensor's share of the inner rate.
    """

    def __init__(self, prime: Prime, setting: Setting, added: set[str]) -> None:
        self.prime, self.model, self.structure = prime, setting.model, Structure(setting.model)
        head = role_names(self.structure, "@head") if prime.head == "fresh" else set()
        if prime.head == "fresh" and not head:
            raise UsageError("Prime: head='fresh', and nothing lies outside the base model: use head='shared'")
        drawn = added | head
        self.parent = parent_names(prime.outer, self.structure, drawn)
        resolved = resolve(prime.inner.scope, self.structure)
        self.moved = resolved.trained
        rates = group_rates(prime.inner.groups, self.structure, self.moved)
        self.scale = {name: scale for (scale, _), names in rates.items() for name in names}
        check_fit(prime, self.model, self.parent, self.moved)
        self.fresh, self.losses = Fresh(self.structure, drawn, setting.seed), Losses(prime, setting.forward)
        self.masks = Masks(prime, setting, self.structure, resolved.selected)

    def tensors(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return the parameters of these names, as the model holds them now."""
        return {name: self.structure.read(name) for name in names}

    def require(self, names: Iterable[str]) -> None:
        """Let these parameters require gradients, and no other."""
        wanted = set(names)
        for name, p in self.tensors(self.structure.names).items():
            if p.is_floating_point():
                p.requires_grad_(name in wanted)

    @contextmanager
    def kept(self) -> Iterator[Start]:
        """Give what keeps the values that the inner loop moves, and put their bits back on the way out."""
        start = Start(self.tensors(self.moved))
        try:
            yield start
        finally:
            self.masks.clear()
            start.put_back()

    def drop_gradients(self) -> None:
        """Drop the gradients of what the outer loop must not move."""
        for name in set(self.structure.names) - set(self.parent):
            self.structure.read(name).grad = None

    def close(self) -> None:
        """Take the forward rules' hooks off."""
        self.masks.close()
