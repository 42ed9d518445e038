"""Low-precision weights: updates smaller than their rounding are not lost, and what is not selected keeps its bits."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subnetune import HoldUnselected, MaskGradient, Random, Recipe, Scope, Top, Tuning, methods
from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.hashing import hash_at, hash_range
from subnetune.core.types import Output
from subnetune.engine.precision import round_by_chance
from tiny import batches, bits, differing, tiny

CHILD = Recipe(Scope(("@layers",), ("@head",)), Top(Random(), 0.2), (MaskGradient(), HoldUnselected()))
STEPS, RATE = 64, 1e-4  # of a weight at 1.0, whose neighbours in bfloat16 are 0.0039 and 0.0078 away


class Ones(nn.Module):
    """Weights of one, whose loss is their sum: every step of AdamW is the learning rate."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 64, dtype=dtype))


def total(model: nn.Module, batch: dict[str, Tensor]) -> Output:
    loss = -model.weight.float().sum()
    return Output(loss, loss)


def run(precision: str, dtype: torch.dtype = torch.bfloat16, steps: int = STEPS) -> tuple[nn.Module, Tensor]:
    """Train a fifth of the weights upwards by RATE a step; return the model and the mask."""
    model = Ones(dtype)
    tuning = Tuning(Recipe(Scope(), Top(Random(), 0.2), (HoldUnselected(),)), model, forward=total, seed=1)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=RATE, weight_decay=0.0, precision=precision)
    for _ in range(steps):
        tuning.forward({}).loss.backward()
        tuning.step(optimizer)
        optimizer.zero_grad()
    assert tuning.mask is not None
    return model, tuning.mask["weight"]


def test_small_updates_are_lost_without() -> None:
    model, mask = run("same")
    assert torch.equal(model.weight, Ones().weight)
    assert 0 < int(mask.sum()) < mask.numel()


def test_masters_are_the_rounding_of_a_float32_run() -> None:
    model, mask = run("master")
    exact, _ = run("same", torch.float32)
    assert torch.equal(model.weight, exact.weight.to(torch.bfloat16))
    assert bool((model.weight[mask] > 1.0).all())
    assert bool((model.weight[~mask] == 1.0).all())


def test_rounding_by_chance_moves_the_mean_as_far() -> None:
    model, mask = run("stochastic")
    moved = model.weight.detach()[mask].float() - 1.0
    spread = float(moved.std()) / len(moved) ** 0.5
    assert abs(float(moved.mean()) - STEPS * RATE) < 4 * spread
    assert spread > 0
    assert bool((model.weight[~mask] == 1.0).all())


def test_rounding_by_chance_is_unbiased_and_keeps_what_bfloat16_has() -> None:
    chance = hash_range(7, 0, "w", 0, 1 << 18)
    for value in (1.001, -1.001, 3.3e-5, -7.77e20):
        values = torch.full((1 << 18,), value)
        rounded = round_by_chance(values, chance).double()
        neighbours = rounded.unique()
        assert len(neighbours) == 2
        gap = float(neighbours[1] - neighbours[0])
        assert abs(float(rounded.mean()) - float(values[0].double())) < 4 * 0.5 * gap / 512  # four standard errors
    special = torch.tensor([0.0, -0.0, 1.0, float("inf"), -float("inf"), 3.3895e38, -1.5])
    kept = round_by_chance(special, chance[:7])
    assert torch.equal(kept.view(torch.int16), special.to(torch.bfloat16).view(torch.int16))
    largest = torch.tensor([torch.finfo(torch.float32).max])
    assert torch.equal(round_by_chance(largest, chance[:1]), largest.to(torch.bfloat16))
    assert bool(round_by_chance(torch.tensor([float("nan")]), chance[:1]).isnan())


def test_the_chance_of_an_entry_does_not_depend_on_what_else_is_asked() -> None:
    everything = hash_range(3, 5, "name/rounding", 0, 5000)
    some = torch.tensor([0, 17, 4095, 4096, 4999])
    assert torch.equal(hash_at(3, 5, "name/rounding", some), everything[some])
    far = torch.tensor([(1 << 32) - 1, 1 << 32, (1 << 32) + 5])
    assert torch.equal(hash_at(3, 5, "n", far), hash_range(3, 5, "n", (1 << 32) - 1, (1 << 32) + 6)[[0, 1, 6]])


@pytest.mark.parametrize("precision", ["master", "stochastic"])
@pytest.mark.parametrize("recipe", [CHILD, methods.bitfit()], ids=["masked", "whole"])
def test_a_resumed_run_is_the_one_that_never_stopped(recipe: Recipe, precision: str) -> None:
    data = batches(6)

    def fresh() -> nn.Module:
        model = tiny("bert", num_hidden_layers=1).to(torch.bfloat16)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model

    def begin(model: nn.Module, state: dict[str, Any] | None = None) -> tuple[Tuning, torch.optim.Optimizer]:
        tuning = Tuning(recipe, model, seed=2)
        if state is not None:
            tuning.load_state_dict(state)
        return tuning, tuning.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1, precision=precision)

    def train(tuning: Tuning, optimizer: torch.optim.Optimizer, part: list[dict[str, Tensor]]) -> None:
        for batch in part:
            tuning.forward(batch).loss.backward()
            tuning.clip(1.0)
            tuning.step(optimizer)
            optimizer.zero_grad()

    model = fresh()
    tuning, optimizer = begin(model)
    start = bits(model)
    train(tuning, optimizer, data[:3])
    file = io.BytesIO()
    torch.save([model.state_dict(), tuning.state_dict(), optimizer.state_dict()], file)
    train(tuning, optimizer, data[3:])
    file.seek(0)
    weights, of_tuning, of_optimizer = torch.load(file, weights_only=True)
    again = fresh()
    resumed, second = begin(again, of_tuning)
    again.load_state_dict(weights)
    second.load_state_dict(of_optimizer)
    train(resumed, second, data[3:])
    assert differing(bits(model), bits(again)) == []
    assert differing(start, bits(again)) != []
    mask = tuning.mask
    for name in tuning.selected() if mask is not None else ():
        kept = ~mask[name].expand(start[name].shape)
        assert torch.equal(start[name][kept].view(torch.int16), bits(model)[name][kept].view(torch.int16))


def test_a_weight_that_somebody_else_changed_is_read_again() -> None:
    model = Ones()
    tuning = Tuning(Recipe(), model, forward=total)
    optimizer = tuning.optimizer(torch.optim.SGD, lr=0.5, precision="master")
    for value in (1.0, 5.0):
        with torch.no_grad():
            model.weight.fill_(value)
        tuning.forward({}).loss.backward()
        tuning.step(optimizer)
        optimizer.zero_grad()
        assert bool((model.weight == value + 0.5).all())


def test_masters_of_another_precision_are_refused() -> None:
    def optimizer(precision: str) -> torch.optim.Optimizer:
        return Tuning(CHILD, tiny("bert", num_hidden_layers=1).to(torch.bfloat16), seed=2).optimizer(
            lr=1e-3, precision=precision
        )

    with pytest.raises(CheckpointError, match="precision 'master'"):
        optimizer("same").load_state_dict(optimizer("master").state_dict())


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (CHILD, {"precision": "double"}, "precision must be one of"),
        (CHILD, {"precision": "master", "engine": "reference"}, "the reference engine computes in the weights'"),
        (CHILD, {"precision": "master", "engine": "fused"}, "the fused engine computes in the weights'"),
        (CHILD, {"precision": "master", "cls": torch.optim.Adafactor}, "Adafactor is not among"),
        (methods.child_tuning_f(keep=0.3), {"precision": "stochastic"}, "the mask of Bernoulli changes"),
        (methods.recadam(), {"precision": "master"}, "Recall works around"),
    ],
    ids=["unknown", "reference", "fused", "adafactor", "dynamic", "recall"],
)
def test_what_cannot_be_served_is_refused_by_name(recipe: Recipe, options: dict[str, object], message: str) -> None:
    tuning = Tuning(recipe, tiny("bert", num_hidden_layers=1).to(torch.bfloat16), steps=10)
    with pytest.raises(UsageError, match=message):
        tuning.optimizer(**{"lr": 1e-3, **options})
    assert tuning.optimizer(lr=1e-3) is not None  # nothing was left half done


def test_chance_is_for_bfloat16_alone() -> None:
    tuning = Tuning(CHILD, tiny("bert", num_hidden_layers=1).to(torch.float16))
    with pytest.raises(UsageError, match=r"is torch\.float16"):
        tuning.optimizer(lr=1e-3, precision="stochastic")


@pytest.mark.parametrize("precision", ["master", "stochastic"])
def test_float32_weights_beside_others_are_as_ever(precision: str) -> None:
    ends = []
    for kind in ("same", precision):
        model = Ones()
        model.wide = nn.Parameter(torch.linspace(-1.0, 1.0, 64).view(8, 8))
        tuning = Tuning(
            Recipe(Scope(), Top(Random(), 0.2), (HoldUnselected(),)),
            model,
            forward=lambda model, batch: Output(loss := total(model, batch).loss + model.wide.square().sum(), loss),
            seed=1,
        )
        optimizer = tuning.optimizer(torch.optim.AdamW, engine="packed", lr=1e-2, precision=kind)
        for _ in range(3):
            tuning.forward({}).loss.backward()
            tuning.step(optimizer)
            optimizer.zero_grad()
        ends.append(bits(model)["wide"])
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], torch.linspace(-1.0, 1.0, 64).view(8, 8))


@pytest.mark.parametrize("precision", ["master", "stochastic"])
def test_a_precision_that_would_change_nothing_is_refused(precision: str) -> None:
    tuning = Tuning(CHILD, tiny("bert", num_hidden_layers=1), seed=2)
    with pytest.raises(UsageError, match=f'precision="{precision}" is for bfloat16 and float16 weights'):
        tuning.optimizer(torch.optim.AdamW, lr=1e-3, precision=precision)
