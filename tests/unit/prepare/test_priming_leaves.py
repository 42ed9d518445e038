"""What priming leaves as it found it: the parent inside an episode, and all but the parent behind a priming."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from priming_cases import ALL, BIASES, Two, bert, outer, prime, primed, two_tasks
from subnetune import Bernoulli, HoldUnselected, MaskGradient, NumericError, Prime, Recipe, Scope, SetDropout, methods
from subnetune.core.errors import DataError
from subnetune.core.types import Batch
from subnetune.prepare.priming.primer import Primer
from tiny import bits, differing

ALGORITHMS = ("fomaml", "maml", "reptile", "imaml")
each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@each_algorithm
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_episode_leaves_the_bits_of_the_parent(algorithm: str, dtype: torch.dtype) -> None:
    model = Two(dtype=dtype)
    with torch.no_grad():
        model.first.weight[0, 0], model.second.bias[0] = -0.0, -0.0
    before = bits(model)
    found = outer(prime(algorithm=algorithm, inner=ALL), model, two_tasks(dtype=dtype))
    assert found["first.weight"].dtype == dtype
    assert differing(before, bits(model)) == []


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a priming may not leave changed beside the parent's values."""
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.tolist() for name, p in model.named_parameters()},
        "buffers": {name: buffer.tolist() for name, buffer in model.named_buffers()},
        "rates": [module.p for module in model.modules() if isinstance(module, nn.Dropout)],
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "of tensors": [bool(p._backward_hooks) or bool(p._post_accumulate_grad_hooks) for p in model.parameters()],
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": numpy.random.get_state()[1].tolist(),
    }


def lived_in() -> Two:
    """A model in a state of its own: modes, flags, gradients, dropout, a count."""
    model = Two(dropout=0.3).train()
    model.second.eval()
    model.first.bias.requires_grad_(False)
    model.third.weight.grad = torch.ones_like(model.third.weight)
    model.calls += 5
    return model


FORWARD = Recipe(Scope(("*",)), forward=methods.r_drop(weight=0.5).forward)
MASKED = Recipe(Scope(("*",)), Bernoulli(0.5), (MaskGradient(), HoldUnselected()))


@each_algorithm
@pytest.mark.parametrize("dropout", [False, True], ids=["still", "dropping"])
def test_all_but_the_parent_is_as_it_was_found(algorithm: str, dropout: bool) -> None:
    model, inner = lived_in(), Recipe(Scope(("*bias",)), prepare=(SetDropout(0.2),))
    before, values = snapshot(model), bits(model)
    piece = prime(algorithm=algorithm, inner=inner, dropout=dropout)
    piece(primed(piece, model))
    assert snapshot(model) == before
    assert differing(values, bits(model))


@pytest.mark.parametrize("inner", [FORWARD, MASKED], ids=["forward-rule", "mask"])
def test_rules_and_masks_leave_nothing_behind(inner: Recipe) -> None:
    model = lived_in()
    before = snapshot(model)
    piece = prime(inner=inner, dropout=True)
    piece(primed(piece, model))
    assert snapshot(model) == before


@each_algorithm
@pytest.mark.parametrize("after", [0, 2, 4, 5], ids=lambda after: f"batch-{after}")
def test_an_error_in_the_middle_leaves_everything(algorithm: str, after: int) -> None:
    model = lived_in()
    before, values = snapshot(model), bits(model)

    def fragile() -> Iterable[Batch]:
        whole = list(two_tasks()["a"]())
        return [*whole[:after], {**whole[after], "more": torch.zeros(1)}]

    piece = prime(algorithm=algorithm, inner=ALL, tasks=("a",))
    with pytest.raises(TypeError, match="'more'"):
        piece(primed(piece, model, {"a": fragile}))
    assert snapshot(model) == before
    assert differing(values, bits(model)) == [], "nothing moves before the first outer step is whole"


@each_algorithm
def test_what_is_not_finite_is_an_error_and_moves_nothing(algorithm: str) -> None:
    def burning() -> Iterable[Batch]:
        whole = [dict(b) for b in two_tasks()["a"]()]
        for batch in whole[3:]:
            batch["x"] = batch["x"] * float("nan")
        return whole

    model, piece = lived_in(), prime(algorithm=algorithm, inner=ALL, tasks=("a",), task_batch=1)
    before = snapshot(model)
    with Primer(piece, primed(piece, model, {"a": burning})) as primer:
        primer.step()  # two support batches and a query batch that are sound
        values = bits(model)
        state = {n: s.clone() for n, s in primer.state_dict()["optimizer"]["state"][0].items()}
        with pytest.raises(NumericError, match=r"outer step 2; nothing was updated.*inner_lr \(now 0.3\).*lr"):
            primer.step()
        assert primer.index == 1
        assert differing(values, bits(model)) == []
        assert all(torch.equal(s, primer.state_dict()["optimizer"]["state"][0][n]) for n, s in state.items())
    assert snapshot(model) == before


def test_rates_whose_gradient_is_not_finite_are_an_error() -> None:
    piece, model = prime(inner=ALL, inner_rates="learned"), Two()
    with Primer(piece, primed(piece, model)) as primer:
        with torch.no_grad():
            primer.rates.log.fill_(0.0)
        original = primer.rates.watching

        def spoiled(*arguments: Any) -> Any:
            primer.rates.log.grad = torch.full_like(primer.rates.log, float("nan"))
            return original(*arguments)

        primer.rates.watching = spoiled  # type: ignore[method-assign]
        with pytest.raises(NumericError, match="gradient norm nan"):
            primer.step()


@pytest.mark.parametrize("algorithm", ["fomaml", "maml", "imaml"])
@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_adapters_are_there_for_the_priming_alone(algorithm: str, fails: bool) -> None:
    pytest.importorskip("peft")
    model = bert()
    before, keys, values = snapshot(model), list(model.state_dict()), bits(model)
    piece: Prime = prime(algorithm=algorithm, inner=methods.lora(r=2), inner_lr=0.01, steps=2)
    place = primed(piece, model)
    if fails:
        place = place._replace(tasks={**place.tasks, "b": list})
        with pytest.raises(DataError, match="'b' has no batches"):
            piece(place)
    else:
        piece(place)
    assert snapshot(model) == before
    assert list(model.state_dict()) == keys
    moved = differing(values, bits(model))
    assert moved == [] if fails else "bert.embeddings.word_embeddings.weight" in moved


def test_a_mode_of_evaluation_comes_back_and_dropout_acts_where_it_is_asked_for() -> None:
    ends = []
    for dropout in (False, True):
        model = Two(dropout=0.5).eval()
        piece = prime(dropout=dropout)
        piece(primed(piece, model))
        assert not any(module.training for module in model.modules())
        ends.append(bits(model))
    plain = Two(dropout=0.0)
    without = prime()
    without(primed(without, plain))
    assert differing(ends[0], bits(plain)) == []
    assert differing(ends[0], ends[1])


def test_the_global_random_state_decides_nothing() -> None:
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        model, piece = Two(dropout=0.5), prime(dropout=True)
        piece(primed(piece, model))
        ends.append(bits(model))
    assert differing(*ends) == []
    other = Two(dropout=0.5)
    piece(primed(piece, other, seed=9))
    assert differing(ends[0], bits(other))


def test_biases_alone_are_copied_for_an_inner_loop_over_biases() -> None:
    model, piece = Two(), prime(inner=BIASES)
    with Primer(piece, primed(piece, model)) as primer:
        assert primer.learner.moved == ("first.bias", "second.bias", "third.bias")
        with primer.learner.kept() as start:
            assert set(start) == set(primer.learner.moved)
