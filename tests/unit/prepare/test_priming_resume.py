"""A priming that is stopped after any step and goes on is the one that never stopped."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

from priming_cases import ALL, BIASES, Tasks, Two, bert, bert_tasks, prime, primed, two_tasks
from subnetune import Bernoulli, CheckpointError, HoldUnselected, MaskGradient, Prime, Recipe, Scope, Top, methods
from subnetune.core.errors import LifeCycleError
from subnetune.prepare.priming.primer import Primer
from subnetune.score.fisher import Fisher
from tiny import bits, differing

HOLDING = (MaskGradient(), HoldUnselected())
SCORED = Recipe(Scope(("*weight",), ("*bias",)), Top(Fisher(), 0.4), HOLDING)
CASES: dict[str, dict[str, Any]] = {
    "fomaml": {},
    "maml": {"algorithm": "maml"},
    "reptile": {"algorithm": "reptile"},
    "imaml": {"algorithm": "imaml"},
    "learned-rates": {"inner": ALL, "inner_rates": "learned", "rates_lr": 0.1},
    "learned-rates-maml": {"algorithm": "maml", "inner": ALL, "inner_rates": "learned", "rates_lr": 0.1},
    "masks-that-change": {"inner": Recipe(Scope(("*",)), Bernoulli(0.5), HOLDING)},
    "scores": {"inner": SCORED},
}


def saved(value: object) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    return lambda: torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def everywhere(piece: Prime, make: Any, tasks: Tasks, parent: Any = lambda name: True) -> None:
    """Stop before each step; go on in a new model, with random states of its own."""
    model: nn.Module = make()
    stops = []
    with Primer(piece, primed(piece, model, tasks)) as primer:
        for _ in range(piece.steps):
            stops.append((saved(bits(model)), saved(primer.state_dict())))
            primer.step()
        stops.append((saved(bits(model)), saved(primer.state_dict())))
    for index, (weights, state) in enumerate(stops):
        torch.manual_seed(index + 50)
        again = make()
        with Primer(piece, primed(piece, again, tasks)) as primer:
            with torch.no_grad():
                for name, p in primer.learner.tensors(primer.learner.structure.names).items():
                    p.copy_(weights()[name])
            primer.load_state_dict(state())
            assert primer.index == index
            while primer.index < piece.steps:
                primer.step()
        assert differing(bits(model), bits(again)) == [], f"stopped before step {index}"


@pytest.mark.parametrize("name", CASES)
def test_a_priming_goes_on_bit_for_bit(name: str) -> None:
    piece = prime(**{"dropout": True, "weight_decay": 0.1, **CASES[name]})
    tasks = two_tasks(5)  # passes that do not end where steps do
    everywhere(piece, lambda: Two(dropout=0.2), tasks)


@pytest.mark.parametrize("head", ["fresh", pytest.param("shared", marks=pytest.mark.slow)])
def test_heads_and_adapters_are_drawn_again_as_they_were(head: str) -> None:
    pytest.importorskip("peft")
    piece = prime(head=head, inner=methods.lora(r=2), inner_lr=0.05, dropout=True, steps=2)
    everywhere(piece, bert, bert_tasks())


def test_batches_in_a_random_order_are_the_same_again() -> None:
    data = {n: torch.utils.data.DataLoader(t(), batch_size=None, shuffle=True) for n, t in two_tasks().items()}
    tasks = {n: lambda loader=loader: loader for n, loader in data.items()}
    piece = prime()
    everywhere(piece, Two, tasks)


def state_of(piece: Prime, seed: int = 0) -> dict[str, Any]:
    with Primer(piece, primed(piece, Two(), seed=seed)) as primer:
        primer.step()
        return primer.state_dict()


def test_a_state_of_another_priming_is_refused() -> None:
    piece = prime()
    good = state_of(piece)
    others = {
        "of recipe": state_of(prime(inner_lr=0.2)),
        "of seed 1, not of 0": state_of(piece, seed=1),
        "no state of a priming: it has no 'log_rates'": {k: v for k, v in good.items() if k != "log_rates"},
        "no 'index'": {},
        "not the state of this priming's optimizer": {**good, "optimizer": {}},
        r"optimizer \(.*size": {**good, "log_rates": torch.zeros(99)},
    }
    for words, state in others.items():
        with Primer(piece, primed(piece, Two())) as primer, pytest.raises(CheckpointError, match=words):
            primer.load_state_dict(state)
    with Primer(piece, primed(piece, Two())) as primer:
        primer.step()
        with pytest.raises(LifeCycleError, match="taken steps"):
            primer.load_state_dict(good)


def test_what_was_scored_is_not_scored_again() -> None:
    piece, calls = prime(inner=SCORED), []

    def counting(name: str) -> Any:
        def fresh() -> Any:
            calls.append(name)
            return two_tasks()[name]()

        return fresh

    tasks = {"a": counting("a"), "b": counting("b")}
    with Primer(piece, primed(piece, Two(), tasks)) as primer:
        primer.step()
        state = primer.state_dict()
    once = len(calls)
    calls.clear()
    with Primer(piece, primed(piece, Two(), tasks)) as primer:
        primer.load_state_dict(state)
        primer.step()
    assert len(calls) == once - 2, "a pass over each task was for the scores"


def test_biases_are_what_moved_in_the_plain_case() -> None:
    model, piece = Two(), prime(inner=BIASES, outer=Scope(("*bias",)))
    before = bits(model)
    piece(primed(piece, model))
    assert set(differing(before, bits(model))) == {"first.bias", "second.bias", "third.bias"}
