"""Outer gradients of MAML, first and second order, against finite differences and against plain loops."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pieces import call
from priming_cases import (
    ALL,
    BIASES,
    ONE,
    Theta,
    Two,
    bert,
    bert_tasks,
    error,
    outer,
    plain,
    prime,
    primed,
    projected,
    random_ways,
    slopes,
    two_tasks,
    weights,
)
from subnetune import Bernoulli, Group, HoldUnselected, MaskGradient, Prime, Random, Recipe, Scope, Top, methods
from subnetune.core.types import default_forward
from subnetune.prepare.priming.primer import Primer
from tiny import batches

HOLDING = (MaskGradient(), HoldUnselected())
GROUPS = Recipe(Scope(("*",)), groups=(Group("*bias", 3.0), Group("second.*", 0.5)))
CASES: dict[str, dict[str, Any]] = {
    "biases": {"inner": BIASES},
    "all": {"inner": ALL},
    "one-layer": {"inner": ONE},
    "static-mask": {"inner": Recipe(Scope(("*",)), Top(Random(), 0.4), HOLDING)},
    "changing-mask": {"inner": Recipe(Scope(("*weight",), ("*bias",)), Bernoulli(0.5), HOLDING)},
    "group-rates": {"inner": GROUPS},
    "one-support-batch": {"inner": ALL, "support": 1, "inner_steps": 3},
    "several-support-and-query-batches": {"inner": BIASES, "support": 2, "inner_steps": 3, "query": 2},
    "no-common-tensor": {"inner": BIASES, "outer": Scope(("*weight",))},
}


# Each case, and one with a matrix that two layers share, in the default run.
each_case = pytest.mark.parametrize(
    ("name", "tied"),
    [
        pytest.param(name, tied, id=f"{name}-tied" if tied else name, marks=pytest.mark.slow if late else ())
        for tied in (False, True)
        for name in CASES
        for late in [tied and name != "group-rates"]
    ],
)


def moved_by(piece: Prime, model: nn.Module) -> list[str]:
    """What the inner loop trains; of a tied pair the canonical name."""
    names = [name for name, _ in model.named_parameters()]
    tied = ["first.weight"] if "second.weight" not in names else []
    if piece.inner == BIASES:
        return [n for n in names if n.endswith("bias")]
    return [n for n in names if n.startswith("second.") or n in tied] if piece.inner == ONE else names


def rates_of(piece: Prime, model: nn.Module) -> dict[str, float]:
    moved, tied = moved_by(piece, model), "second.weight" not in dict(model.named_parameters())
    half = [n for n in moved if n.startswith("second.") or (tied and n == "first.weight")]
    scale = {n: (3.0 if n.endswith("bias") else 1.0) * (0.5 if n in half else 1.0) for n in moved}
    return {n: piece.inner_lr * (scale[n] if piece.inner == GROUPS else 1.0) for n in moved}


def parents(piece: Prime, model: nn.Module) -> list[str]:
    return [n for n, _ in model.named_parameters() if piece.outer == Scope() or n.endswith("weight")]


@each_case
def test_second_order_gradients_are_those_of_finite_differences(name: str, tied: bool) -> None:
    piece, model, tasks = prime(algorithm="maml", **CASES[name]), Two(tied), two_tasks()
    moved, rates, own = moved_by(piece, model), rates_of(piece, model), copy.deepcopy(model)

    def value(theta: Theta) -> float:
        return float(plain(piece, own, theta, moved, rates, tasks)[0])

    got, ways = outer(piece, model, tasks), random_ways(model)
    assert set(got) == set(parents(piece, model))
    wanted = slopes(value, weights(model), {n: ways[n] for n in got})
    assert error(projected(got, ways), wanted) < 1e-5
    first = outer(prime(**CASES[name]), model, tasks)
    assert error(projected(first, ways), wanted) > 1e-3, "the inner steps are too small to tell the orders apart"


@each_case
def test_first_order_gradients_are_those_of_a_loop_that_stops_the_inner_gradient(name: str, tied: bool) -> None:
    piece, model, tasks = prime(**CASES[name]), Two(tied), two_tasks()
    moved, theta = moved_by(piece, model), {n: p.requires_grad_() for n, p in weights(model).items()}
    loss, _ = plain(piece, copy.deepcopy(model), theta, moved, rates_of(piece, model), tasks)
    got = outer(piece, model, tasks)
    names = parents(piece, model)
    wanted = dict(zip(names, torch.autograd.grad(loss, [theta[n] for n in names]), strict=True))
    assert set(got) == set(wanted)
    assert error(got, wanted) < 1e-12


@pytest.mark.parametrize("algorithm", ["fomaml", "maml"])
def test_gradients_of_learned_rates(algorithm: str) -> None:
    model, tasks = Two(), two_tasks()
    piece = prime(algorithm=algorithm, inner=GROUPS, inner_rates="learned")
    moved, theta = moved_by(piece, model), weights(model)
    fixed = rates_of(piece, model)
    with Primer(piece, primed(piece, model, tasks)) as primer:
        names = primer.rates.names
    assert sorted(names) == sorted(moved)
    log = {"log_rates": torch.zeros(len(names), dtype=torch.float64, requires_grad=True)}

    def value(found: Theta) -> torch.Tensor:
        rates = {n: fixed[n] * factor for n, factor in zip(names, found["log_rates"].exp(), strict=True)}
        return plain(piece, copy.deepcopy(model), theta, moved, rates, tasks)[0]

    # The first order of a rate, too, takes the inner gradients as constants.
    first = torch.autograd.grad(value(log), log["log_rates"])[0]
    exact = torch.zeros(len(names), dtype=torch.float64)
    for i in range(len(names)):
        way = {"log_rates": torch.eye(len(names), dtype=torch.float64)[i]}
        exact[i] = slopes(lambda found: float(value(found)), {"log_rates": log["log_rates"].detach()}, way)["log_rates"]
    wanted = first if algorithm == "fomaml" else exact
    got = outer(piece, model, tasks)
    assert error(got, {"log_rates": wanted}) < 1e-5
    assert error({"log_rates": first}, {"log_rates": exact}) > 1e-3
    fixed_rates = outer(prime(algorithm=algorithm, inner=GROUPS), model, tasks)
    assert "log_rates" not in fixed_rates
    assert all(torch.allclose(g, got[name], rtol=1e-12, atol=1e-14) for name, g in fixed_rates.items())


@pytest.mark.parametrize("inner", [ALL, BIASES], ids=["all", "biases"])
def test_both_orders_are_one_where_the_inner_rate_is_zero(inner: Recipe) -> None:
    one, two = (outer(prime(algorithm=name, inner=inner, inner_lr=0.0), Two()) for name in ("fomaml", "maml"))
    assert set(one) == set(two)
    assert all(torch.equal(g, two[name]) or (g - two[name]).abs().max() < 1e-15 for name, g in one.items())


def test_without_inner_steps_the_gradient_is_that_of_the_query_batches() -> None:
    model, tasks = Two(), two_tasks()
    got = outer(prime(inner_steps=0, query=2), model, tasks)
    losses = [call(model, batch).loss for name in ("a", "b") for batch in tasks[name]()[:2]]
    wanted = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()))
    assert error(got, dict(zip(weights(model), wanted, strict=True))) < 1e-14


def quiet_bert() -> nn.Module:
    return bert(torch.float64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def along(piece: Prime, model: nn.Module, moved: Callable[[str], bool], names: set[str]) -> None:
    """Second-order gradients of a transformer against differences along random ways; names are canonical."""
    tasks, own = bert_tasks(), copy.deepcopy(model)
    got, ways = outer(piece, model, tasks), random_ways(model)
    assert set(got) == names
    theta = weights(model)  # by the names that the model itself has
    spelled = {n.replace(".base_layer.", "."): n for n in theta}
    rates = {n: piece.inner_lr for n in theta if moved(n)}
    way = {spelled[n]: ways[spelled[n]] for n in names}
    for part in (lambda n: True, lambda n: "embeddings" in n, lambda n: "attention" in n):
        chosen = {n: d for n, d in way.items() if part(n)}
        ends = []
        for h in (1e-5, -1e-5):
            there = {**theta, **{n: theta[n] + h * d for n, d in chosen.items()}}
            ends.append(float(plain(piece, own, there, list(rates), rates, tasks, forward=default_forward)[0]))
        wanted = (ends[0] - ends[1]) / 2e-5
        slope = sum(float((got[n] * way[spelled[n]]).sum()) for n in names if part(n))
        assert abs(slope - wanted) < 1e-5 * abs(wanted)


def test_second_order_gradients_of_attention_that_torch_fuses() -> None:
    model = quiet_bert()
    assert model.config._attn_implementation == "sdpa"
    piece = prime(algorithm="maml", inner=methods.bitfit())
    along(piece, model, lambda n: n.endswith("bias") or n.startswith("classifier."), set(weights(model)))


def test_second_order_gradients_through_adapters() -> None:
    pytest.importorskip("peft")
    model = quiet_bert()
    names = set(weights(model))
    recipe = methods.lora(r=2)
    recipe.prepare[0].restructure(model)  # adapters that are there: the same for every task
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_B" in name:
                p.add_(0.1 * torch.randn(p.shape, generator=random, dtype=p.dtype))
    # The outer loop moves the pretrained weights and the shared head, and no adapter.
    piece = prime(algorithm="maml", inner=recipe)
    along(piece, model, lambda n: ".lora_" in n or n.startswith("classifier."), names)


def test_a_kernel_without_a_second_derivative_is_named() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2.0

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 2.0

    class Model(Two):
        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
            return super().forward(Once.apply(self.first.bias) + x, labels)

    with pytest.raises(ValueError, match="second derivative"):
        outer(prime(algorithm="maml", inner=ALL), Model())
    assert outer(prime(inner=ALL), Model())


def test_batches_of_other_tasks_do_not_matter() -> None:
    more = {**two_tasks(), "c": lambda: batches(1)}
    one, two = outer(prime(), Two(), two_tasks()), outer(prime(), Two(), more)
    assert all(torch.equal(g, two[name]) for name, g in one.items())
