"""Reptile, implicit MAML and the outer optimizer against closed forms and plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pieces import call, setting
from priming_cases import ALL, BIASES, Two, error, outer, plain, prime, primed, two_tasks, weights
from subnetune import Prime, Random, Recipe, Scope, Top
from subnetune.core.types import Batch, Output
from subnetune.prepare.priming.conjugate import solve
from subnetune.prepare.priming.primer import Primer
from tiny import bits, differing


def test_reptile_follows_the_way_of_the_inner_loop() -> None:
    model, tasks, piece = Two(), two_tasks(), prime(algorithm="reptile", inner=BIASES, inner_steps=3)
    theta = weights(model)
    moved = [n for n in theta if n.endswith("bias")]
    _, ends = plain(piece, Two(), theta, moved, dict.fromkeys(moved, piece.inner_lr), tasks)
    wanted = {n: theta[n] - (ends[0][n] + ends[1][n]) / 2 for n in moved}
    got = outer(piece, model, tasks)
    assert set(got) == set(moved), "what the inner loop does not touch does not move"
    assert error(got, wanted) < 1e-12


def test_reptile_moves_what_both_loops_may_touch() -> None:
    got = outer(prime(algorithm="reptile", inner=ALL, outer=Scope(("second.*",))), Two())
    assert set(got) == {"second.weight", "second.bias"}


class Bowl(nn.Module):
    """prediction = scale * (x @ weight) + offset; the loss, half the mean squared error, is quadratic in `weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor([1.3], dtype=torch.float64))
        self.offset = nn.Parameter(torch.tensor([0.2], dtype=torch.float64))

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        prediction = self.scale * (x @ self.weight) + self.offset
        return Output(0.5 * (prediction - labels).square().mean(), prediction)


def rows(seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(8, 4, generator=random, dtype=torch.float64),
        "labels": torch.randn(8, generator=random, dtype=torch.float64),
    }


def minimum(theta: dict[str, Tensor], batch: Batch, pull: float, chosen: Tensor) -> Tensor:
    """Where the support loss plus the pull is smallest over the chosen entries of `weight`, by a linear solve."""
    x, n = theta["scale"] * batch["x"], len(batch["x"])
    rest = torch.where(chosen, 0.0, theta["weight"])
    hessian = (x.T @ x / n + pull * torch.eye(4, dtype=torch.float64))[chosen][:, chosen]
    right = (x.T @ (batch["labels"] - theta["offset"] - x @ rest) / n + pull * theta["weight"])[chosen]
    return rest.masked_scatter(chosen, torch.linalg.solve(hessian, right))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("scope", ["*", "weight", "offset|scale"])
def test_implicit_gradients_are_those_of_the_exact_bilevel_problem(masked: bool, scope: str) -> None:
    tasks = {name: lambda seed=seed: [rows(seed), rows(seed + 1)] for name, seed in (("a", 1), ("b", 5))}
    selector = Top(Random(), 0.5) if masked else None
    inner = Recipe(Scope(("weight",)), selector)
    piece = prime(
        algorithm="imaml", inner=inner, outer=Scope((scope,)), inner_steps=400, inner_lr=0.2, support=1, pull=0.7
    )
    model = Bowl()
    chosen = torch.ones(4, dtype=torch.bool)
    if masked:
        state = Top(Random(), 0.5).init(setting(model, names=["weight"]))
        chosen = Top(Random(), 0.5).mask(state, {"weight": model.weight}, None)["weight"].clone()
        assert int(chosen.sum()) == 2

    def value(theta: dict[str, Tensor]) -> float:
        total = 0.0
        for task in ("a", "b"):
            support, query = tasks[task]()
            adapted = {**theta, "weight": minimum(theta, support, piece.pull, chosen)}
            prediction = adapted["scale"] * (query["x"] @ adapted["weight"]) + adapted["offset"]
            total += 0.5 * float((prediction - query["labels"]).square().mean()) / 2
        return total

    theta = {name: p.detach() for name, p in model.named_parameters()}
    wanted = {}
    for name in [n for n in theta if scope == "*" or n in scope.split("|")]:
        slope = torch.zeros_like(theta[name])
        for i in range(slope.numel()):
            way = torch.zeros_like(slope)
            way[i] = 1e-5
            ends = [value({**theta, name: theta[name] + sign * way}) for sign in (1.0, -1.0)]
            slope[i] = (ends[0] - ends[1]) / 2e-5
        wanted[name] = slope
    place = setting(model, forward=call)._replace(tasks=tasks)
    got = gradients_of(piece, model, place)
    assert set(got) == set(wanted)
    assert error(got, wanted) < 1e-5


def gradients_of(piece: Prime, model: nn.Module, place: Any) -> dict[str, Tensor]:
    from subnetune.prepare.priming.algorithms import gradients
    from subnetune.prepare.priming.episodes import Episodes

    with Primer(piece, place) as primer:
        gradients(primer.learner, Episodes(piece, place.tasks, 0), 0, primer.rates)
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_conjugate_gradients_solve_in_as_many_steps_as_there_are_directions() -> None:
    random = torch.Generator().manual_seed(2)
    root = torch.randn(4, 4, generator=random, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(4, dtype=torch.float64)
    right = {"a": torch.randn(3, generator=random, dtype=torch.float64), "b": torch.ones(1, dtype=torch.float64)}

    def apply(v: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = matrix @ torch.cat([v["a"], v["b"]])
        return {"a": whole[:3], "b": whole[3:]}

    found = solve(apply, right, 4)
    wanted = torch.linalg.solve(matrix, torch.cat([right["a"], right["b"]]))
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]), wanted, rtol=1e-9, atol=0.0)
    bent = solve(lambda v: {n: -x for n, x in v.items()}, right, 4)
    assert all(torch.equal(bent[n], right[n]) for n in right), "no convex direction: the first-order answer"
    assert all(not x.any() for x in solve(apply, {n: 0.0 * x for n, x in right.items()}, 4).values())


@pytest.mark.parametrize("algorithm", ["fomaml", "maml", "reptile", "imaml"])
@pytest.mark.parametrize("clip", [None, 0.01], ids=["unclipped", "clipped"])
def test_the_outer_loop_is_adamw_at_a_falling_rate(algorithm: str, clip: float | None) -> None:
    fields = {"algorithm": algorithm, "inner": ALL, "clip": clip, "weight_decay": 0.1}
    piece = prime(**fields, **({"support": 1} if algorithm == "imaml" else {}))
    model, other, tasks = Two(), Two(), two_tasks()
    piece(primed(piece, model, tasks))
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.0, weight_decay=0.1)
    from subnetune.prepare.priming.algorithms import gradients
    from subnetune.prepare.priming.episodes import Episodes

    stream = Episodes(piece, tasks, 0)
    for index in range(3):
        with Primer(piece, primed(piece, other, tasks)) as primer:
            gradients(primer.learner, stream, index, primer.rates)
            found = {n: p.grad for n, p in other.named_parameters()}
        for n, p in other.named_parameters():
            p.grad = found[n]
        if clip is not None:
            assert torch.nn.utils.clip_grad_norm_(other.parameters(), clip) > clip
        optimizer.param_groups[0]["lr"] = piece.lr * (3 - index) / 3
        optimizer.step()
        optimizer.zero_grad()
    assert error(weights(model), weights(other)) < 1e-7
    assert error(weights(model), weights(Two())) > 1e-3


def test_a_constant_rate_stays() -> None:
    piece = prime(schedule="constant", weight_decay=0.5, clip=None)
    falling = prime(weight_decay=0.5, clip=None)
    ends = []
    for one in (piece, falling):
        model = Two()
        one(primed(one, model))
        ends.append(weights(model))
    assert error(ends[0], ends[1]) > 1e-4
    first = []
    for one in (piece, falling):
        model = Two()
        with Primer(one, primed(one, model)) as primer:
            primer.step()
        first.append(bits(model))
    assert differing(*first) == []


@pytest.mark.parametrize("algorithm", ["fomaml", "maml", "reptile", "imaml"])
def test_a_rate_of_zero_changes_no_bit(algorithm: str) -> None:
    model = Two()
    with torch.no_grad():
        model.first.weight[0, 0] = -0.0
    before = bits(model)
    piece = prime(algorithm=algorithm, inner=ALL, lr=0.0, weight_decay=0.3)
    piece(primed(piece, model))
    assert differing(before, bits(model)) == []


def test_rates_are_learned_beside_the_parent_and_without_it() -> None:
    for lr in (1e-2, 0.0):
        model, piece = Two(), prime(inner=ALL, inner_rates="learned", rates_lr=0.05, lr=lr)
        with Primer(piece, primed(piece, model)) as primer:
            primer.step()
            log = primer.rates.log.detach()
            assert log.dtype == torch.float64
            torch.testing.assert_close(log.abs(), torch.full_like(log, 0.05), rtol=1e-3, atol=0.0)  # Adam's first step
            rate = primer.rates.numbers()["second.weight"]
            assert rate == pytest.approx(0.3 * float(log[primer.rates.names.index("second.weight")].exp()))
        assert (differing(bits(Two()), bits(model)) == []) == (lr == 0.0)
