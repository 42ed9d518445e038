"""The inner recipe's selector and forward rules at work: masks and anchors of every inner step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from torch import Tensor

from subnetune.core.passes import Passes
from subnetune.core.structure import Structure
from subnetune.core.types import Batch, Live, Mask, Setting, State, Step

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Masks:
    """Masks of the tensors `names`. A selector that scores does so once, here, on the batches of all tasks."""

    def __init__(self, prime: Prime, setting: Setting, structure: Structure, names: tuple[str, ...]) -> None:
        self._selector, self._structure, self._names = prime.inner.selector, structure, names
        self._total = prime.steps * prime.inner_steps
        self._passes = Passes(setting.model if prime.inner.forward else None)
        self._state: State = {}

        def batches() -> Iterable[Batch]:
            return chain.from_iterable(setting.tasks[name]() for name in prime.tasks)

        if self._selector is not None:
            downstream = setting._replace(params=self._params(), batches=batches, steps=self._total)
            self._state = self._selector.init(downstream)

    def _params(self) -> dict[str, Tensor]:
        return {name: self._structure.read(name) for name in self._names}

    def live(self, index: int, start: Mapping[str, Tensor]) -> Live:
        """Return all there is in inner step `index` of the whole priming; `start` is what its episode began from."""
        self._passes.clear()
        params, step, anchor = self._params(), Step(index, self._total), {name: start[name] for name in self._names}
        mask: Mask | None = None if self._selector is None else self._selector.mask(self._state, params, step)
        return Live(params, anchor, mask, self._state, step, None, anchor, self._passes)

    def clear(self) -> None:
        """Take off the hooks of forward rules: an inner step is over."""
        self._passes.clear()

    def close(self) -> None:
        """Take them off for good."""
        self._passes.close()
