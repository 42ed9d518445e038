"""How a Tuning serves optimizers: groups, attaching, steps, clipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from subnetune import (
    Group,
    HoldUnselected,
    MaskGradient,
    MixUnselected,
    Random,
    Recipe,
    Scope,
    Top,
    Tuning,
)
from subnetune.core.errors import LifeCycleError, UsageError
from subnetune.core.types import Mask, Params, State, Step
from tiny import batch, bits, differing
from tuning_cases import DRAWN, RANDOM, small, step

# -- optimizer, groups ------------------------------------------------------------------------------------------------


def test_groups_scale_rates_and_replace_decay() -> None:
    groups = (Group("@layers[0]", lr_scale=0.5), Group("@bias", weight_decay=0.0), Group("*", lr_scale=0.1))
    tuning = Tuning(Recipe(Scope(("*",)), groups=groups), small())
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1.0, weight_decay=0.3)
    rates = {
        name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["param_names"]
    }
    assert rates["bert.encoder.layer.0.output.dense.weight"] == (0.05, 0.3)
    assert rates["bert.encoder.layer.0.output.dense.bias"] == (0.05, 0.0)
    assert rates["bert.encoder.layer.1.output.dense.weight"] == (0.1, 0.3)
    assert rates["classifier.bias"] == (0.1, 0.0)
    assert set(rates) == set(tuning.scope.trained)


def test_scaled_rates_need_a_rate() -> None:
    tuning = Tuning(Recipe(Scope(("*",)), groups=(Group("@head", lr_scale=2.0),)), small())
    with pytest.raises(UsageError, match="explicit lr"):
        tuning.optimizer(torch.optim.AdamW)


# -- attach -----------------------------------------------------------------------------------------------------------


def test_attach_is_the_same_as_the_own_optimizer() -> None:
    ends = []
    for attached in (False, True):
        torch.manual_seed(3)
        model = small()
        tuning = Tuning(RANDOM, model)
        if attached:
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(tuning.param_groups(), lr=1e-2)
            tuning.attach(optimizer)
        else:
            optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2)
        for index in range(3):
            tuning.forward(batch(seed=index)).loss.backward()
            optimizer.step() if attached else tuning.step(optimizer)
            optimizer.zero_grad()
        assert tuning.index == 3
        ends.append(bits(model))
    assert differing(*ends) == []


def test_a_removed_handle_leaves_the_optimizer_plain() -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tuning.attach(optimizer) as handle:
        with pytest.raises(LifeCycleError, match="already serves an optimizer"):
            tuning.attach(torch.optim.SGD(model.parameters(), lr=0.1))
        assert step(tuning, optimizer)
    handle.remove()
    model(**batch()).loss.backward()
    optimizer.step()
    assert tuning.index == 1
    with pytest.raises(LifeCycleError, match="not served"):
        tuning.step(optimizer)
    again = tuning.optimizer(torch.optim.SGD, lr=0.1)
    assert step(tuning, again)
    assert tuning.index == 2


@pytest.mark.parametrize("of", ["part", "other", "none"])
def test_an_optimizer_that_lacks_what_trains_is_refused(of: str) -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    params = {"part": list(model.classifier.parameters()), "other": list(small().parameters())}.get(of)
    with pytest.raises(
        UsageError, match=r"does not hold \d+ tensors" if params else "needs a torch optimizer, got int"
    ):
        tuning.attach(torch.optim.SGD(params, lr=0.1) if params else 3)  # type: ignore[arg-type]


def test_an_optimizer_that_evaluates_closures_is_refused_before_anything_happens() -> None:
    class Sharp(torch.optim.SGD):
        def step(self, closure: Any) -> Any:  # type: ignore[override]
            return super().step(closure)

    model = small()
    tuning = Tuning(RANDOM, model)
    for cls in (torch.optim.LBFGS, Sharp):
        with pytest.raises(UsageError, match=f"{cls.__name__} evaluates closures.* cannot be served"):
            tuning.optimizer(cls, lr=0.1)
        assert all(p.requires_grad for p in model.parameters()), "nothing was begun"
    with pytest.raises(UsageError, match="LBFGS evaluates closures"):
        tuning.attach(torch.optim.LBFGS(model.parameters()))
    assert step(tuning, tuning.optimizer(torch.optim.Adadelta, lr=0.1)), "the Tuning is as free as before"


def test_accelerates_wrapper_is_seen_through_and_accumulation_counts_once() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = small()
    tuning = Tuning(RANDOM, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    happened = []
    for index in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(tuning.forward(batch(seed=index)).loss)
            happened.append(tuning.step(optimizer))
            optimizer.zero_grad()
    assert happened == [False, True, False, True]
    assert tuning.index == 2


# -- step -------------------------------------------------------------------------------------------------------------


def test_a_closure_is_refused_and_nothing_moves() -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    optimizer = tuning.optimizer(torch.optim.SGD, lr=0.1)
    before = bits(model)
    with pytest.raises(UsageError, match="closure"):
        optimizer.step(lambda: tuning.forward(batch()).loss)
    assert differing(before, bits(model)) == []
    assert tuning.index == 0


def test_a_step_that_raised_half_way_is_not_continued() -> None:
    class Breaks(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise RuntimeError("device lost")

    tuning = Tuning(RANDOM, small())
    optimizer = tuning.optimizer(Breaks, lr=0.1)
    with pytest.raises(RuntimeError, match="device lost"):
        step(tuning, optimizer)
    with pytest.raises(LifeCycleError, match="left half done"):
        step(tuning, optimizer)
    assert tuning.index == 0


def test_a_scheduler_on_top_changes_nothing_about_the_rules() -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1.0 / (1 + i))
    for index in range(3):
        assert step(tuning, optimizer, index)
        scheduler.step()
    assert tuning.index == 3
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 4)


# -- clip -------------------------------------------------------------------------------------------------------------


def dense_norm(model: nn.Module, mask: Any) -> tuple[float, float]:
    """The norms of the dense and of the masked gradient, in double precision, by hand."""
    dense = masked = 0.0
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        square = p.grad.double() ** 2
        dense += float(square.sum())
        masked += float((square * mask[name]).sum() if name in mask else square.sum())
    return dense**0.5, masked**0.5


@pytest.mark.parametrize(
    ("update", "masked"),
    [
        ((MaskGradient(), HoldUnselected()), True),
        ((HoldUnselected(),), True),
        ((MaskGradient(clip_first=True),), False),
        ((MaskGradient(clip_first=True), HoldUnselected()), False),  # the release's order, held all the same
        ((), False),
    ],
)
def test_clipping_sees_what_trains_unless_a_rule_copies_a_release(update: Any, masked: bool) -> None:
    model = small()
    tuning = Tuning(Recipe(Scope(("*",)), Top(Random(), 0.25), update), model)
    tuning.forward(batch()).loss.backward()
    dense, of_mask = dense_norm(model, tuning.mask)
    assert of_mask < 0.95 * dense
    assert float(tuning.clip(1e-3)) == pytest.approx(of_mask if masked else dense, rel=1e-5)
    after = dense_norm(model, tuning.mask)
    assert after[0] == pytest.approx(1e-3, rel=1e-2)


def test_a_dynamic_mask_is_not_put_under_the_clipping() -> None:
    model = small()
    tuning = Tuning(DRAWN, model)
    tuning.forward(batch()).loss.backward()
    dense, _ = dense_norm(model, {})
    assert float(tuning.clip(1e6)) == pytest.approx(dense, rel=1e-5)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "1", True, None])
def test_a_norm_that_is_no_positive_number_is_refused(bad: Any) -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    tuning.forward(batch()).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    with pytest.raises(UsageError, match="number > 0"):
        tuning.clip(bad)
    assert all(torch.equal(before[name], model.get_parameter(name).grad) for name in before)


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_clipping_gradients_that_are_still_scaled_is_told_and_nothing_moves(cls: Any) -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    optimizer, scaler = tuning.optimizer(cls, lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = bits(model)
    scaler.scale(tuning.forward(batch()).loss).backward()
    tuning.clip(1.0)
    with pytest.raises(UsageError, match=r"call scaler.unscale_\(optimizer\) before tuning.clip"):
        tuning.step(optimizer, scaler=scaler)
    assert differing(before, bits(model)) == []
    assert tuning.index == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_clipping_in_the_right_order_and_steps_without_clipping_pass(enabled: bool) -> None:
    model = small()
    tuning = Tuning(RANDOM, model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
    happened = []
    for index, (clips, overflows) in enumerate([(True, False), (True, enabled), (False, False), (True, False)]):
        scaler.scale(tuning.forward(batch(seed=index)).loss).backward()
        if overflows:
            model.classifier.bias.grad.fill_(float("inf"))
        if clips:
            scaler.unscale_(optimizer)
            tuning.clip(1.0)
        happened.append(tuning.step(optimizer, scaler=scaler))
        optimizer.zero_grad()
    assert happened == [True, not enabled, True, True]


def test_a_static_mask_is_made_once_and_again_after_loading() -> None:
    @dataclass(frozen=True)
    class Counted(Top):
        made: ClassVar[list[int]] = []

        def mask(self, state: State, params: Params, step: Step) -> Mask:
            self.made.append(step.index)
            return super().mask(state, params, step)

    recipe = Recipe(Scope(("@layers",), ("@head",)), Counted(Random(), 0.25), (MaskGradient(), HoldUnselected()))
    tuning = Tuning(recipe, small())
    optimizer = tuning.optimizer(torch.optim.SGD, lr=0.1)
    for index in range(3):
        assert step(tuning, optimizer, index)
    assert Counted.made == [0]
    state = tuning.state_dict()
    for bits_of in state["selector"]["mask"]["bits"].values():
        bits_of.zero_()
    again = Tuning(recipe, small())  # the optimizer that is served keeps to the child that it was built for
    again.load_state_dict(state)
    assert Counted.made == [0, 3]
    assert all(not again.mask[name].any() for name in again.scope.selected)
    step(again, again.optimizer(torch.optim.SGD, lr=0.1))
    assert Counted.made == [0, 3]


def test_copies_of_the_model_that_no_rule_reaches_are_refused() -> None:
    tuning = Tuning(Recipe(DRAWN.scope, DRAWN.selector, forward=(MixUnselected(),)), small())
    wrapped = torch.nn.DataParallel(tuning.model)
    tuning.forward(batch(), model=wrapped)  # without GPUs, or on one, it runs the model itself
    wrapped.device_ids = [0, 1]
    with pytest.raises(UsageError, match="DataParallel runs copies of the model, which MixUnselected does not reach"):
        tuning.forward(batch(), model=wrapped)
