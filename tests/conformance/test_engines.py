"""Property 10: every engine that serves a method equals the reference engine, and every other one is refused by name.

Packed: every bit, over a run. Fused: each step from the same state within 4 units in the last place, and over a run
every held entry to the bit. The unit is that of the larger of old and new weight against torch's fused AdamW under the
reference engine. Torch's loop takes square roots (MKL's) that are not rounded like those of torch's fused kernel and
of ours, so that torch's own two AdamWs differ by as much: against the loop the unit is that of the largest term of the
sum, |old|, |new| or |new - old|. So it is for the last entries of a tensor, which fill no vector register.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

from conformance.table import BERT_CASES, CASES, ROWS, Case, Row, ids, mask_now
from subnetune.core.errors import UsageError
from subnetune.core.recipe import Recipe, Selector
from subnetune.engine import kernels
from subnetune.engine.choice import choose
from subnetune.tuning import Tuning
from subnetune.update import HoldUnselected, MaskGradient
from tiny import bits, differing

STEPS = 6
ADAMW = {"lr": 1e-2, "weight_decay": 0.1}
ULPS = 4
REGISTER = 16  # entries: torch's fused AdamW rounds the last numel % 16 of a tensor by other code, as its loop does
Under: TypeAlias = Callable[[str], None]
# Rows on BERT in the default run, by the kernels under the engine. All others are slow.
QUICK = {
    "packed": {"numba": ("d", "random-rows-columns"), "plain": ("fish",)},
    "fused": {
        "numba": ("d", "d-release", "f", "f-rows", "dps-mix-exact"),
        "numba-loop": ("f",),
        "plain": ("f-exact",),
    },
}


def settings(engine: str, cases: list[Case]) -> list[Any]:
    """Each case with each kind of kernels (models beside BERT with one), marked as slow where it is."""
    return [
        pytest.param(
            case,
            kind,
            id=f"{case.id}-{kind}",
            marks=[] if case.model == "bert" and case.row.id in QUICK[engine][kind] else [pytest.mark.slow],
        )
        for case in cases
        for kind in QUICK[engine]
        if kind == "numba" or case.model == "bert"
    ]


def why_not_packed(recipe: Recipe) -> str | None:
    """In words of this test alone: what in a recipe the packed engine cannot have under AdamW; None where it can."""
    if recipe.selector is None:
        return "nothing is masked"
    if not recipe.selector.static:
        return "changes during the run"
    if HoldUnselected() not in recipe.update:
        return "no rule holds the unselected entries"
    return around_the_step(recipe)


def why_not_fused(recipe: Recipe) -> str | None:
    """The same for the fused engine."""
    watches = recipe.selector is not None and type(recipe.selector).observe is not Selector.observe
    if watches and any(isinstance(rule, MaskGradient) and rule.rescale for rule in recipe.update):
        return "observes gradients"
    return around_the_step(recipe)


def around_the_step(recipe: Recipe) -> str | None:
    others = [rule for rule in recipe.update if not isinstance(rule, HoldUnselected | MaskGradient)]
    return f"{type(others[0]).__name__} works around the optimizer's own step" if others else None


PACKED = [case for case in CASES if why_not_packed(case.row.recipe()) is None]
FUSED = [case for case in CASES if why_not_fused(case.row.recipe()) is None]


@pytest.fixture
def under(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Choose the kernels, as on a machine with and without the compiler."""
    found = importlib.util.find_spec

    def choose_kernels(kind: str) -> None:
        if kind == "plain":
            hidden = lambda name, *rest: None if name == "numba" else found(name, *rest)  # noqa: E731
            monkeypatch.setattr(importlib.util, "find_spec", hidden)
        elif found("numba") is None:
            pytest.skip("numba is not installed: there are no compiled kernels for the CPU")
        kernels.kernels_for.cache_clear()
        assert kernels.kernels_for("cpu").name == ("torch" if kind == "plain" else "numba")

    yield choose_kernels
    kernels.kernels_for.cache_clear()


def started(case: Case, engine: str, **hyper: Any) -> tuple[nn.Module, Tuning, torch.optim.Optimizer]:
    torch.manual_seed(7)
    model = case.build()
    tuning = case.tuning(model)
    optimizer = tuning.optimizer(torch.optim.AdamW, engine=engine, **{**ADAMW, **hyper})
    assert tuning.engine.startswith(f"{engine}: asked for")
    torch.manual_seed(8)
    return model, tuning, optimizer


def accumulated(tuning: Tuning, parts: list[dict[str, Tensor]]) -> None:
    for part in parts:
        (tuning.forward(part).loss / len(parts)).backward()


# -- packed -----------------------------------------------------------------------------------------------------------


def run(case: Case, engine: str, per_step: int) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Weights and norms after each of some steps with weight decay, momentum, clipping and dropout."""
    model, tuning, optimizer = started(case, engine)
    data = case.batches(STEPS * per_step, seed=4)
    after, norms = [], []
    for index in range(STEPS):
        accumulated(tuning, data[index * per_step : (index + 1) * per_step])
        norms.append(tuning.clip(0.5 if index else 1e6))  # both sides of the limit
        assert tuning.step(optimizer)
        optimizer.zero_grad()
        after.append(bits(model))
    return after, norms


@pytest.mark.parametrize("per_step", [2, pytest.param(1, marks=pytest.mark.slow)], ids=["accumulated", "at-once"])
@pytest.mark.parametrize(("case", "kind"), settings("packed", PACKED))
def test_packed_is_the_reference_engine_bit_for_bit(case: Case, kind: str, per_step: int, under: Under) -> None:
    under(kind)
    wanted, norms = run(case, "reference", per_step)
    got, same_norms = run(case, "packed", per_step)
    assert [float(norm) for norm in same_norms] == [float(norm) for norm in norms]
    for step, (reference, packed) in enumerate(zip(wanted, got, strict=True)):
        assert differing(reference, packed) == [], f"after step {step + 1}"
    assert differing(wanted[0], wanted[-1]), "nothing moved"


# -- fused ------------------------------------------------------------------------------------------------------------


def ulps(got: Tensor, wanted: Tensor, *terms: Tensor) -> Tensor:
    """The distance in units in the last place of the largest term, entry by entry."""
    size = wanted.abs()
    for term in terms:
        size = torch.maximum(size, term.abs())
    unit = torch.nextafter(size, torch.full_like(size, torch.inf)) - size
    return (got.double() - wanted.double()).abs() / unit.double()


def reference_state(optimizer: torch.optim.Optimizer, tuning: Tuning) -> dict[str, dict[str, Tensor]]:
    """AdamW's dense states by name."""
    named = {id(p): name for name, p in tuning.model.named_parameters()}
    return {named[id(p)]: state for p, state in optimizer.state.items()}


def same_state(fused: Any, reference: torch.optim.Optimizer, tuning: Tuning, other: Tuning) -> None:
    """Put the reference's weights and states into the fused run: packed by its own mask, where it packs."""
    with torch.no_grad():
        for mine, theirs in zip(tuning.model.parameters(), other.model.parameters(), strict=True):
            mine.copy_(theirs)
    saved = fused.state_dict()
    masks = mask_now(tuning)
    for name, state in reference_state(reference, other).items():
        key = name if name in saved["state"] else name.replace(".base_layer.", ".")
        mine = saved["state"][key]
        assert mine["step"] == int(state["step"])
        for moment in ("exp_avg", "exp_avg_sq"):
            packs = mine[moment].shape != state[moment].shape
            mine[moment] = state[moment][masks[key]] if packs else state[moment].clone()
    fused.load_state_dict(saved)


@pytest.mark.parametrize("per_step", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["at-once", "accumulated"])
@pytest.mark.parametrize(("case", "kind"), settings("fused", FUSED))
def test_fused_is_within_rounding_of_the_reference_engine(case: Case, kind: str, per_step: int, under: Under) -> None:
    """Both runs see the same weights, states, dropout and data in each step."""
    under(kind)
    loop = kind != "numba"
    model, tuning, optimizer = started(case, "reference", fused=not loop)
    other, same, fused = started(case, "fused")
    data = case.batches(STEPS * per_step, seed=4)
    leaks = case.row.leaks or tuning.recipe.selector is None
    moved = 0
    for index in range(STEPS):
        before, chosen = bits(model), mask_now(tuning)
        assert all(torch.equal(mask, chosen[name]) for name, mask in mask_now(same).items())
        for one, by in ((tuning, optimizer), (same, fused)):
            torch.manual_seed(20 + index)
            accumulated(one, data[index * per_step : (index + 1) * per_step])
            one.clip(0.5)
            assert one.step(by)
            by.zero_grad()
        wanted, got = bits(model), bits(other)
        for name, old in before.items():
            step = wanted[name] - old
            if not loop:
                step.view(-1)[: step.numel() - step.numel() % REGISTER] = 0.0
            assert ulps(got[name], wanted[name], old, step).max() <= ULPS, f"{name} in step {index + 1}"
            if not leaks and name in chosen:
                held = ~chosen[name]
                assert torch.equal(got[name][held].view(torch.int32), old[held].view(torch.int32)), name
            moved += int((got[name] != old).sum())
        same_state(fused, optimizer, same, tuning)
    assert moved > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", FUSED, ids=ids(FUSED))
def test_what_the_fused_engine_leaves_out_keeps_its_bits_over_a_run(case: Case) -> None:
    model, tuning, optimizer = started(case, "fused")
    for batch in case.batches(STEPS, seed=4):
        before, chosen = bits(model), mask_now(tuning)
        accumulated(tuning, [batch])
        tuning.clip(0.5)
        tuning.step(optimizer)
        optimizer.zero_grad()
        after = bits(model)
        kept = [torch.equal(before[n][~m].view(torch.int32), after[n][~m].view(torch.int32)) for n, m in chosen.items()]
        if not case.row.leaks:
            assert all(kept)
        frozen = tuning.scope.frozen
        assert [name for name in differing(before, after) if name in frozen] == []
        assert differing(before, after)


# -- the others -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_what_cannot_serve_says_why_and_is_not_chosen(row: Row) -> None:
    recipe, trained = row.recipe(), {"weight": torch.zeros(64, 64)}
    reasons = {"packed": why_not_packed(recipe), "fused": why_not_fused(recipe)}
    for engine, why in reasons.items():
        if why is None:
            assert choose(recipe, torch.optim.AdamW, ADAMW, trained, engine) == (engine, "asked for")
        else:
            with pytest.raises(UsageError, match=f'engine="{engine}" cannot serve this run: .*{why}'):
                choose(recipe, torch.optim.AdamW, ADAMW, trained, engine)
    small = choose(recipe, torch.optim.AdamW, ADAMW, trained)
    assert small.name == ("packed" if reasons["packed"] is None else "reference")
    large = choose(recipe, torch.optim.AdamW, ADAMW, {"weight": torch.empty(1 << 21, device="meta")})
    assert large.name == small.name, "there are no compiled kernels for such a device"


@pytest.mark.slow
@pytest.mark.parametrize("case", BERT_CASES, ids=ids(BERT_CASES))
def test_an_engine_that_cannot_serve_is_refused_by_the_tuning(case: Case) -> None:
    recipe = case.row.recipe()
    for engine, why in (("packed", why_not_packed(recipe)), ("fused", why_not_fused(recipe))):
        if why is not None:
            tuning = case.tuning(case.build())
            with pytest.raises(UsageError, match=f'engine="{engine}" cannot serve this run: .*{why}'):
                tuning.optimizer(torch.optim.AdamW, engine=engine, **ADAMW)
            tuning.close()
