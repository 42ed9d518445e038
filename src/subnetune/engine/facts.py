"""What a Tuning tells about the run that it carries: scope, mask, base, counts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from subnetune.core.description import Description
from subnetune.core.errors import LifeCycleError
from subnetune.core.fingerprint import Fingerprint
from subnetune.core.masks import mask_digest
from subnetune.core.recipe import Recipe
from subnetune.core.scope import Resolved
from subnetune.core.types import Mask, Params, State, Step
from subnetune.engine.anchors import Anchors
from subnetune.engine.binding import Binding
from subnetune.engine.choice import Choice, EngineName, PrecisionName, choose
from subnetune.engine.lean import GradientsName
from subnetune.engine.ranks import check_same_on_all_ranks
from subnetune.engine.reference import ReferenceEngine
from subnetune.engine.saving import identity


class Facts:
    """The reading half of `Tuning`."""

    recipe: Recipe
    seed: int
    _steps: int
    _binding: Binding
    _anchor: Anchors
    _unprepared: dict[str, Tensor]
    _started: bool
    _index: int
    _state: State
    _engine: ReferenceEngine | None

    @abstractmethod
    def start(self) -> None:
        """Prepare, keep the anchor, score."""

    @abstractmethod
    def _current_mask(self, params: Params | None = None) -> Mask | None:
        """Return the mask of the step that is under way."""

    def _identity(self) -> dict[str, Any]:
        return identity(self.recipe, self.seed, self._steps, self.fingerprint.base)

    def _check_ranks(self, index: int, mask: Mask | None) -> None:
        check_same_on_all_ranks({**self._identity(), "index": index}, mask, self.selected(), self._binding.place[0])

    def _check_same_child(self, mask: Mask | None) -> None:
        # Engines look at a static mask once: another one under an optimizer that is served would train two children.
        if self._engine is None or not self._static():
            return
        if mask_digest(*self._binding.unsharded(mask)) != self.mask_digest():
            raise LifeCycleError(
                "this state selects other entries than the optimizer that is served already: load the state first, "
                "then call tuning.optimizer(...)"
            )

    def _static(self) -> bool:
        return self.recipe.selector is not None and self.recipe.selector.static

    @property
    def mask(self) -> Mask | None:
        """The static mask of the run, by canonical name; None where the mask changes or everything is selected."""
        self.start()
        return self._current_mask() if self._static() else None

    def mask_digest(self) -> str | None:
        """Return the digest of the static mask, however it is stored; None where there is none."""
        mask = self.mask
        return None if mask is None else mask_digest(*self._binding.unsharded(mask))

    @property
    def index(self) -> int:
        """Number of optimizer steps that really happened."""
        return self._index

    def stage(self) -> tuple[State, Step]:
        """Return the selector's state and the step that is under way."""
        return self._state, Step(self._index, self._steps)

    @property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of the base, the model as it was given."""
        return self._binding.fingerprint

    @property
    def scope(self) -> Resolved:
        """Which tensors are selected, whole and frozen, by canonical name."""
        return self._binding.scope

    def selected(self) -> dict[str, Tensor]:
        """Return the selected tensors by canonical name, as they are now."""
        return self._binding.selected()

    def base_names(self) -> list[str]:
        """Return the names of `base_values`, without putting any of them together."""
        self.start()
        names = dict.fromkeys((*self._anchor, *self._unprepared))
        return [name for name in names if name in self.fingerprint.tensors]

    def base_values(self) -> dict[str, Tensor]:
        """Return the base's values of every tensor that may have changed, without the newly initialised ones."""
        self.start()
        values = {**self._binding.gather(self._anchor), **self._unprepared}
        return {name: value for name, value in values.items() if name in self.fingerprint.tensors}

    def unheld(self) -> list[str]:
        """Return tensors whose unselected entries are not the anchor's, where the selected ones alone were kept."""
        return self._anchor.moved()

    def base_buffers(self) -> dict[str, Tensor]:
        """Return the persistent buffers as the base had them."""
        return dict(self._binding.buffers)

    @property
    def engine(self) -> str:
        """Which engine serves this recipe, and why."""
        if self._engine is not None:
            return self._engine.why
        return f"{self.engine_for(torch.optim.AdamW, {})}; for torch.optim.AdamW"

    def engine_for(
        self,
        cls: Any,
        hyper: Mapping[str, Any],
        *,
        engine: EngineName = "auto",
        precision: PrecisionName = "same",
        gradients: GradientsName = "dense",
    ) -> Choice:
        """Return the engine that `optimizer` would take for these arguments, and why; raises UsageError as it does."""
        return choose(self.recipe, cls, hyper, self._binding.trained(), engine, precision, gradients)

    def describe(self) -> Description:
        """Count what trains, per role. Works before `start`, when a static mask is not known yet."""
        dynamic = self.recipe.selector is not None and not self._static()
        chosen = self._started or not self._static()
        mask = self._current_mask() if chosen and not dynamic else None
        return self._binding.describe(mask, dynamic, chosen, self.engine)
