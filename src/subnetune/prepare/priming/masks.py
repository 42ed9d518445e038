"""The inner recipe's selector and forward rules at work: masks and anchors of every inner step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING

from torch import Tensor

from subnetune.core.passes import Passes
from subnetune.core.structure import Structure
from subnetune.core.types import Batch, Live, Mask, Setting, State, Step
from subnetune.prepare.priming.chance import seeded
from subnetune.prepare.priming.checked import check_same_entries

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


class Masks:
    """Masks of the tensors `names`. A selector that scores does so once, in `begin`, on the batches of all tasks.

    `state`: the selector's; None before `begin`.
    """

    def __init__(self, prime: Prime, setting: Setting, structure: Structure, names: tuple[str, ...]) -> None:
        self._selector, self._structure, self._names = prime.inner.selector, structure, names
        self._total = prime.steps * prime.task_batch * prime.inner_steps

        def batches() -> Iterable[Batch]:
            return chain.from_iterable(setting.tasks[name]() for name in prime.tasks)

        # The journal is that of the fine-tuning's own score.
        self._setting = setting._replace(batches=batches, steps=self._total, journal=None)
        self.state: State | None = None if self._selector else {}
        self._passes = Passes(setting.model if prime.inner.forward else None)

    def _params(self) -> dict[str, Tensor]:
        return {name: self._structure.read(name) for name in self._names}

    def begin(self) -> None:
        """Score, where that is still to be done; a priming that is resumed has its state from before.

        Raises LifeCycleError where the ranks of a distributed run come to different masks.
        """
        if self.state is None:
            assert self._selector is not None
            params = self._params()
            with seeded(self._setting.seed, 0, "scores"):
                state = self._selector.init(self._setting._replace(params=params))
            if self._selector.static:
                check_same_entries(self._selector.mask(state, params, Step(0, self._total)), params)
            self.state = state

    def live(self, index: int, start: Mapping[str, Tensor]) -> Live:
        """Return all there is in inner step `index` of the whole priming; `start` is what its episode began from."""
        self._passes.clear()
        params, step = self._params(), Step(index, self._total)
        assert self.state is not None, "begin() comes first"
        state = self.state
        mask: Mask | None = None if self._selector is None else self._selector.mask(state, params, step)
        target = (None if self._selector is None else self._selector.target(state)) or start
        return Live(params, start, mask, state, step, None, target, self._passes)

    def clear(self) -> None:
        """Take off the hooks of forward rules: an inner step is over."""
        self._passes.clear()

    def close(self) -> None:
        """Take them off for good."""
        self._passes.close()
