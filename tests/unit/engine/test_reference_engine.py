"""The reference engine on three-number tensors: when rules run, in which order, and what they see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from subnetune.core.errors import UsageError
from subnetune.core.passes import Passes
from subnetune.core.recipe import Recipe, Selector
from subnetune.core.types import Live, Mask, Params, State, Step
from subnetune.engine.reference import Handle, ReferenceEngine, clip_what_trains, confine_gradients, innermost, servable
from subnetune.update import HoldUnselected

CHOSEN = torch.tensor([True, False, True])


@dataclass(frozen=True)
class Watcher(Selector):
    """A mask by hand, and a record of what `observe` saw."""

    seen: tuple[list[Any], ...] = field(default_factory=lambda: ([],))
    static: ClassVar[bool] = True

    def init(self, setting: Any) -> State:
        return {}

    def mask(self, state: State, params: Params, step: Step) -> Mask:
        return {"w": CHOSEN}

    def observe(self, state: State, params: Params, mask: Mask | None, step: Step) -> None:
        self.seen[0].append((params["w"].grad.tolist(), torch.is_grad_enabled()))


class Host:
    """A host of one tensor."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.steps = 0

    def live(self, optimizer: Any = None) -> Live:
        selector = self.recipe.selector
        mask = None if selector is None else selector.mask({}, {"w": self.w}, Step(self.steps, 0))
        return Live({"w": self.w}, {}, mask, {}, Step(self.steps, 0), optimizer, {}, Passes())

    def advance(self) -> None:
        self.steps += 1


def rule(name: str, record: list[str], fail: str = "") -> Any:
    @contextmanager
    def around(live: Live) -> Iterator[None]:
        record.append(f"{name} before")
        if fail == "before":
            raise RuntimeError(name)
        assert not torch.is_grad_enabled()
        yield
        record.append(f"{name} after")

    return around


def test_rules_nest_around_the_step_and_the_selector_observes_in_between() -> None:
    record: list[str] = []
    watcher = Watcher()
    host = Host(Recipe(selector=watcher, update=(rule("a", record), rule("b", record))))
    optimizer = torch.optim.SGD([host.w], lr=1.0)
    ReferenceEngine(host, optimizer, "reference")
    host.w.grad = torch.tensor([1.0, 1.0, 1.0])
    optimizer.step()
    assert record == ["a before", "b before", "b after", "a after"]
    assert watcher.seen[0] == [([1.0, 1.0, 1.0], False)]
    assert host.w.tolist() == [0.0, 1.0, 2.0]
    assert host.steps == 1


def test_holding_puts_unselected_entries_back() -> None:
    host = Host(Recipe(selector=Watcher(), update=(HoldUnselected(),)))
    optimizer = torch.optim.SGD([host.w], lr=1.0, weight_decay=0.5)
    ReferenceEngine(host, optimizer, "reference")
    host.w.grad = torch.tensor([1.0, 1.0, 1.0])
    optimizer.step()
    assert host.w.tolist() == [-0.5, 2.0, 0.5]


def test_a_rule_that_raises_leaves_the_others_and_stops_the_step() -> None:
    record: list[str] = []
    host = Host(Recipe(update=(rule("a", record), rule("b", record, fail="before"))))
    optimizer = torch.optim.SGD([host.w], lr=1.0)
    ReferenceEngine(host, optimizer, "reference")
    host.w.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="b"):
        optimizer.step()
    assert host.w.tolist() == [1.0, 2.0, 3.0]
    assert host.steps == 0
    with pytest.raises(RuntimeError, match="b"):  # not "half done": nothing was stepped
        optimizer.step()


def test_a_removed_engine_leaves_the_optimizer_alone() -> None:
    host = Host(Recipe(selector=Watcher(), update=(HoldUnselected(),)))
    optimizer = torch.optim.SGD([host.w], lr=1.0)
    engine = ReferenceEngine(host, optimizer, "reference")
    engine.remove()
    host.w.grad = torch.ones(3)
    optimizer.step()
    assert host.w.tolist() == [0.0, 1.0, 2.0]
    assert host.steps == 0


def test_a_handle_undoes_once() -> None:
    undone: list[int] = []
    with Handle(lambda: undone.append(1)) as handle:
        assert undone == []
    handle.remove()
    assert undone == [1]


def test_confined_gradients_are_zero_even_where_they_were_infinite() -> None:
    w = nn.Parameter(torch.zeros(3))
    w.grad = torch.tensor([1.0, float("inf"), float("nan")])
    confine_gradients({"w": w, "unused": nn.Parameter(torch.zeros(2))}, {"w": torch.tensor([True, False, False])})
    assert w.grad.tolist() == [1.0, 0.0, 0.0]
    confine_gradients({"w": w}, None)
    assert w.grad.tolist() == [1.0, 0.0, 0.0]


def test_clipping_without_a_wish_leaves_unselected_gradients() -> None:
    host = Host(Recipe(selector=Watcher()))
    host.w.grad = torch.tensor([3.0, 4.0, 0.0])
    norm = clip_what_trains(host.recipe, host.live(), {"w": host.w}, 1.0)
    assert norm.item() == 5.0
    torch.testing.assert_close(host.w.grad, torch.tensor([0.6, 0.8, 0.0]))


def test_clipping_with_a_holding_rule_sees_what_trains() -> None:
    host = Host(Recipe(selector=Watcher(), update=(HoldUnselected(),)))
    host.w.grad = torch.tensor([3.0, 4.0, 0.0])
    norm = clip_what_trains(host.recipe, host.live(), {"w": host.w}, 1.0)
    assert norm.item() == 3.0
    torch.testing.assert_close(host.w.grad, torch.tensor([1.0, 0.0, 0.0]))


def test_the_innermost_optimizer_is_found() -> None:
    class Wrapper:
        def __init__(self, optimizer: Any) -> None:
            self.optimizer = optimizer

    w = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([w], lr=1.0)
    assert innermost(optimizer) is optimizer
    assert innermost(Wrapper(Wrapper(optimizer))) is optimizer
    assert servable(Wrapper(optimizer), {"w": w}) is optimizer
    with pytest.raises(UsageError, match="needs a torch optimizer, got Wrapper"):
        servable(Wrapper(3), {})
    with pytest.raises(UsageError, match="does not hold 1 tensors that train, such as 'v'"):
        servable(optimizer, {"v": nn.Parameter(torch.zeros(1))})
