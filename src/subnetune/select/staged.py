"""Alternate between collecting squared gradients and updating only the entries where they were largest.

DPS (arXiv 2211.01642). Differs from the authors' release in: stages count optimizer steps, not forward passes; squares
are of what the optimizer gets (clipped, unscaled); exactly the quota is selected, ties by position; a resume goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from subnetune.core.masks import PackedMask
from subnetune.core.recipe import Selector
from subnetune.core.types import Mask, Params, Setting, State, Step, no_grad_copy
from subnetune.select.collected import add_squares, importance
from subnetune.select.stages import check_staged, stages
from subnetune.select.subnetwork import choose


@dataclass(frozen=True)
class Staged(Selector):
    """Collect for some steps, then train the fraction `keep` of each pool for some, and so on to the end.

    keep: the fraction of each pool (`per`: "tensor", "model" or "row") that an updating stage trains, in (0, 1].
    cycle: a collecting and an updating stage as a share of all steps, each rounded down; explore: its collecting share.
    collect: the selector whose masks hold while collecting; scores are averaged over its visits; None: everything.
    frequency_penalty: multiply scores by exp(-visits / stage length); "auto": in stages of 50 steps and more.
    snapshot: keep the weights with which each updating stage starts, for `MixUnselected` to mix towards.
    """

    keep: float
    cycle: float
    explore: float = 0.5
    collect: Selector | None = None
    per: str = "tensor"
    frequency_penalty: bool | str = "auto"
    snapshot: bool = False
    static: ClassVar[bool] = False
    confines_clip: ClassVar[bool] = True
    state_keys: ClassVar[tuple[str, ...]] = ("cycle", "scores", "visits", "mask", "target", "collector")

    def __post_init__(self) -> None:
        check_staged(self.keep, self.cycle, self.explore, self.collect, self.per, self.frequency_penalty, self.snapshot)

    @property
    def needs(self) -> tuple[str, ...]:
        """The number of steps, and what the collecting selector needs."""
        return ("steps", *(() if self.collect is None else self.collect.needs))

    def init(self, setting: Setting) -> State:
        """Return the state before step 0. Raises UsageError where a stage would have no step."""
        stages(setting.steps, self.cycle, self.explore)
        fresh = self.collect and self.collect.init(setting)
        return {"cycle": -1, "scores": {}, "visits": {}, "mask": None, "target": None, "collector": fresh}

    def mask(self, state: State, params: Params, step: Step) -> Mask | None:
        """Return the mask of this step; the first step of an updating stage chooses it."""
        plan = stages(step.total, self.cycle, self.explore)
        cycle, collecting = plan.at(step.index)
        state["watching"] = collecting
        if state["cycle"] != cycle:
            state.update(cycle=cycle, scores={}, visits={}, mask=None, target=None)
        if collecting:
            state["keep"] = 1.0 if self.collect is None else state["collector"].get("keep")
            return None if self.collect is None else self.collect.mask(state["collector"], params, step)
        if state["mask"] is None:
            ranked = importance(state, params, plan.collect, self.frequency_penalty)
            chosen = choose("Staged", ranked, params, self.keep, self.per, step).to_state()
            state.update(mask=chosen, scores={}, visits={}, target=no_grad_copy(params) if self.snapshot else None)
        state["keep"] = float(self.keep)
        return PackedMask.from_state(state["mask"])

    def observe(self, state: State, params: Params, mask: Mask | None, step: Step) -> None:
        """Add up squared gradients while collecting. Raises NumericError for one that is not finite."""
        if stages(step.total, self.cycle, self.explore).at(step.index)[1]:
            add_squares(state, params, mask, step)

    def target(self, state: State) -> Params | None:
        """Return the snapshot of an updating stage; None (the anchor) while collecting and without snapshots."""
        return None if state["target"] is None else dict(state["target"])
