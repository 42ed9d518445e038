"""MAML's first experiment (arXiv 1703.03400, section 5.1): regression on sinusoids, from ten points each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pieces import call, setting
from priming_cases import ALL
from subnetune import Prime
from subnetune.core.types import Batch, Output
from subnetune.prepare.priming.primer import Primer

POINTS, RATE = 10, 0.02


class Curve(nn.Module):
    """The paper's network: two hidden layers of 40."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1))

    def forward(self, x: Tensor, labels: Tensor) -> Output:
        prediction = self.net(x)
        return Output(nn.functional.mse_loss(prediction, labels), prediction)


def sinusoid(number: int, opposite: bool = False, batches: int = 2, rows: int = POINTS) -> list[Batch]:
    """Points of y = a sin(x + b), x in [-5, 5], a in [0.1, 5], b in [0, pi]; all of them by the task's number.

    opposite: a is 2 and b zero or pi instead, by turns: what the tasks have in common is that their mean is zero.
    """
    random = torch.Generator().manual_seed(number)
    amplitude, phase = (float(v) for v in torch.rand(2, generator=random))
    height, shift = (2.0, math.pi * (number % 2)) if opposite else (0.1 + 4.9 * amplitude, math.pi * phase)
    found = []
    for _ in range(batches):
        x = 10.0 * torch.rand(rows, 1, generator=random) - 5.0
        found.append({"x": x, "labels": height * torch.sin(x + shift)})
    return found


def after_adapting(model: Curve, opposite: bool = False, tasks: int = 50, steps: int = 5) -> float:
    """The mean loss on new sinusoids after `steps` plain steps on ten points of each."""
    losses = []
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    for number in range(10_000, 10_000 + tasks):
        support, query = sinusoid(number, opposite)[0], sinusoid(number, opposite, rows=100)[1]
        for _ in range(steps):
            gradients = torch.autograd.grad(model(**support).loss, list(model.parameters()))
            with torch.no_grad():
                for p, g in zip(model.parameters(), gradients, strict=True):
                    p.sub_(RATE * g)
        with torch.no_grad():
            losses.append(float(model(**query).loss))
            for n, p in model.named_parameters():
                p.copy_(start[n])
    return sum(losses) / len(losses)


def trained(algorithm: str, inner_steps: int, steps: int, opposite: bool = False, tasks: int = 400) -> Curve:
    names = tuple(f"sinusoid {i}" for i in range(tasks))
    piece = Prime(
        names,
        ALL,
        algorithm=algorithm,
        steps=steps,
        task_batch=2 if opposite else 4,
        inner_steps=inner_steps,
        inner_lr=RATE,
        support=1 if inner_steps else None,
        lr=1e-2,
        clip=10.0,
    )
    model = Curve()
    batches = {n: lambda i=i: sinusoid(i, opposite) for i, n in enumerate(names)}
    with Primer(piece, setting(model, forward=call)._replace(tasks=batches)) as primer:
        while primer.index < piece.steps:
            primer.step()
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "steps"), [("fomaml", 400), ("maml", 300)])
def test_primed_networks_adapt_to_new_sinusoids_far_better_than_jointly_trained_ones(
    algorithm: str, steps: int
) -> None:
    joint = after_adapting(trained("fomaml", 0, 6 * steps))  # as many gradients of a batch
    assert after_adapting(trained(algorithm, 5, steps)) < 0.5 * joint


def test_a_few_steps_of_priming_already_tell_a_sinusoid_from_its_opposite() -> None:
    primed, joint = trained("maml", 5, 40, opposite=True, tasks=20), trained("fomaml", 0, 240, opposite=True, tasks=20)
    assert after_adapting(primed, opposite=True, tasks=6) < 0.5 * after_adapting(joint, opposite=True, tasks=6)
