"""What every engine does around a step that its Tuning does not take itself, is not taken, or has another's state."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

from subnetune.core.errors import CheckpointError, LifeCycleError, UsageError
from subnetune.core.recipe import Recipe, Scope
from subnetune.core.types import Mask, Params, Setting, State, Step
from subnetune.score.fisher import Fisher
from subnetune.score.magnitude import Magnitude
from subnetune.select.bernoulli import Bernoulli
from subnetune.select.top import Top
from subnetune.tuning import Tuning
from subnetune.update import HoldUnselected, MaskGradient
from tiny import batch, bits, differing, tiny

RECIPE = Recipe(
    scope=Scope(selected=("@layers",), whole=("@head",)),
    selector=Top(Magnitude(), keep=0.3),
    update=(MaskGradient(), HoldUnselected()),
)
ENGINES = ("reference", "packed", "fused")


def served(engine: str, eps: float = 1e-8) -> tuple[Tuning, Optimizer]:
    tuning = Tuning(RECIPE, tiny("bert").eval(), steps=8)
    return tuning, tuning.optimizer(torch.optim.AdamW, engine=engine, lr=1e-2, weight_decay=0.1, eps=eps)


def backward(tuning: Tuning) -> None:
    tuning.forward(batch()).loss.backward()


@pytest.mark.parametrize("engine", ENGINES)
def test_clipping_inside_the_step_is_clipping_before_it(engine: str) -> None:
    (outside, one), (inside, two) = served(engine), served(engine)
    norms: list[torch.Tensor] = []
    inside.before_step(lambda _: norms.append(inside.clip(0.01)))
    for _ in range(3):
        backward(outside)
        before = outside.clip(0.01)
        outside.step(one)
        one.zero_grad()
        backward(inside)
        two.step()  # as a trainer does, past the Tuning
        inside.model.zero_grad()
        assert float(norms[-1]) == float(before) > 0.01
    assert inside.index == 3
    assert differing(bits(outside.model), bits(inside.model)) == []


def test_there_must_be_a_step_to_run_before() -> None:
    with pytest.raises(LifeCycleError, match="no optimizer is served yet"):
        Tuning(RECIPE, tiny("bert"), steps=8).before_step(lambda _: None)


class SkipsFirst:
    """Calls the step of the optimizer that it wraps from the second time on, as accelerate does in an accumulation."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.calls = optimizer, 0

    def step(self) -> None:
        self.calls += 1
        if self.calls > 1:
            self.optimizer.step()


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_what_was_clipped_before_a_step_that_was_not_taken_stays_so(engine: str) -> None:
    runs = []
    for each in (engine, "reference"):
        tuning, optimizer = served(each)
        skipping: Any = SkipsFirst(optimizer)
        for taken in (False, True):
            backward(tuning)
            tuning.clip(0.01)
            assert tuning.step(skipping) is taken
        runs.append(bits(tuning.model))
    if engine == "packed":
        assert differing(*runs) == []
    else:
        for name, value in runs[0].items():
            torch.testing.assert_close(value, runs[1][name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("other", ENGINES)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_state_of_another_engine_is_refused_and_says_which(engine: str, other: str) -> None:
    tuning, optimizer = served(other)
    backward(tuning)
    tuning.step(optimizer)
    saved = optimizer.state_dict()
    _, here = served(engine)
    if engine == other:
        here.load_state_dict(saved)
        assert here.state_dict()["state"].keys() == saved["state"].keys()
        return
    with pytest.raises(CheckpointError, match=other):
        here.load_state_dict(saved)
    assert not here.state_dict()["state"]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_state_of_another_child_comes_before_the_optimizer(engine: str) -> None:
    recipe = Recipe(Scope(("@layers",), ("@head",)), Top(Fisher(), keep=0.3), (HoldUnselected(),))
    other, here = (Tuning(recipe, tiny("bert").eval(), batches=[batch(seed=seed)], steps=8) for seed in (1, 2))
    state = other.state_dict()
    assert other.mask_digest() != here.mask_digest()
    here.optimizer(torch.optim.AdamW, engine=engine, lr=1e-2)
    digest = here.mask_digest()
    with pytest.raises(LifeCycleError, match="load the state first"):
        here.load_state_dict(state)
    assert here.mask_digest() == digest
    here.load_state_dict(here.state_dict())


@dataclass(frozen=True)
class Never(Bernoulli):
    """A contributor's selector, made from ours, whose masks are others."""

    def mask(self, state: State, params: Params, step: Step) -> Mask:
        return {name: torch.zeros((), dtype=torch.bool) for name in params}


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_a_selector_made_from_bernoulli_has_its_own_masks(engine: str) -> None:
    recipe = Recipe(RECIPE.scope, Never(0.5), RECIPE.update)
    tuning = Tuning(recipe, tiny("bert").eval(), steps=8)
    optimizer = tuning.optimizer(torch.optim.AdamW, engine=engine, lr=1e-2)
    before = bits(tuning.model)
    backward(tuning)
    tuning.step(optimizer)
    moved = differing(before, bits(tuning.model))
    assert moved
    assert not set(moved) & set(tuning.selected())


# -- gradients between clipping and the step --------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_gradients_that_are_taken_away_after_clipping_leave_the_others_clipped(engine: str) -> None:
    """As where a head waits: the smallest of all gradients are most often a head's."""
    runs = []
    for each in (engine, "reference"):
        tuning, optimizer = served(each, eps=1e-3)  # so large that the gradients' scale is seen
        for _ in range(2):
            backward(tuning)
            tuning.clip(0.01)
            for parameter in tuning.model.classifier.parameters():
                parameter.grad = None
            assert tuning.step(optimizer)
            optimizer.zero_grad()
        runs.append(bits(tuning.model))
    if engine == "packed":
        assert differing(*runs) == []
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("change", ["more", "noise", "exchanged", "cleared"])
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_gradients_that_change_between_clipping_and_the_step_are_an_error(engine: str, change: str) -> None:
    tuning, optimizer = served(engine)
    backward(tuning)
    tuning.clip(0.01)
    trained = [p for p in tuning.model.parameters() if p.grad is not None]
    if change == "cleared":
        tuning.model.zero_grad()
    if change in ("more", "cleared"):
        backward(tuning)
    for parameter in trained:
        if change == "noise":
            parameter.grad += 1e-3
        if change == "exchanged":
            parameter.grad = 2 * parameter.grad
    before = bits(tuning.model)
    with pytest.raises(UsageError, match="the gradients changed since they were clipped"):
        tuning.step(optimizer)
    assert tuning.index == 0
    assert differing(before, bits(tuning.model)) == []
    optimizer.zero_grad()
    backward(tuning)
    tuning.clip(0.01)
    assert tuning.step(optimizer)


# -- what would have no effect, or another one ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_states_that_somebody_empties_past_the_state_dict_are_an_error(engine: str) -> None:
    tuning, optimizer = served(engine)
    backward(tuning)
    tuning.step(optimizer)
    with pytest.raises(UsageError, match="to begin with fresh ones"):
        optimizer.state = defaultdict(dict)
    with pytest.raises(UsageError, match="to begin with fresh ones"):
        optimizer.state.clear()
    with pytest.raises(UsageError, match="to begin with fresh ones"):
        optimizer.state[tuning.model.classifier.bias] = {}
    assert optimizer.state_dict()["state"]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {}})
    assert not optimizer.state_dict()["state"]


@dataclass(frozen=True)
class Untold(Never):
    """One that does not tell which fraction it keeps."""

    def init(self, setting: Setting) -> State:
        return {}


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_a_fraction_that_no_state_tells_cannot_be_divided_by(engine: str) -> None:
    recipe = Recipe(RECIPE.scope, Untold(0.5), (MaskGradient(rescale=True), HoldUnselected()))
    tuning = Tuning(recipe, tiny("bert").eval(), steps=8)
    optimizer = tuning.optimizer(torch.optim.AdamW, engine=engine, lr=1e-2)
    backward(tuning)
    with pytest.raises(UsageError, match="holds no 'keep'"):
        tuning.step(optimizer)
