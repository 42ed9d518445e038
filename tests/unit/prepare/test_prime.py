"""Prime as a piece of a recipe: a value, and a preparation whose result is the anchor that deltas and resumes know."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pieces import recipe_namespace
from priming_cases import bert, bert_tasks, prime, primed
from subnetune import Delta, NumericError, Prime, Recipe, Scope, Tuning, UsageError, methods
from tiny import batches, bits, differing

RECIPES: dict[str, Recipe] = {
    "bitfit": methods.bitfit(),
    "child-tuning-d": methods.child_tuning_d(keep=0.3),
    "lora": methods.lora(r=2),
}
each_recipe = pytest.mark.parametrize("name", RECIPES)


def piece(name: str, **changes: Any) -> Prime:
    return prime(**{"inner": RECIPES[name], "inner_lr": 0.02, "steps": 2, **changes})


def with_priming(name: str, **changes: Any) -> Recipe:
    recipe = RECIPES[name]
    return Recipe(
        recipe.scope,
        recipe.selector,
        recipe.update,
        recipe.forward,
        (piece(name, **changes), *recipe.prepare),
        recipe.groups,
    )


def bound(name: str, model: nn.Module, **changes: Any) -> Tuning:
    return Tuning(with_priming(name, **changes), model, batches=batches(3), steps=4, tasks=bert_tasks(), seed=2)


def need_peft(name: str) -> None:
    if name == "lora":
        pytest.importorskip("peft")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"algorithm": "imaml", "pull": 2.0, "support": 1},
        {"head": "matched", "classes": ((0, 1), (1,)), "clip": None},
        {"outer": Scope(("@layers",), exclude=("*bias",)), "inner_rates": "learned", "query": 3},
    ],
    ids=["plain", "imaml", "matched", "scopes"],
)
@each_recipe
def test_a_priming_is_what_it_prints(name: str, changes: dict[str, Any]) -> None:
    recipe = with_priming(name, **changes)
    again = eval(repr(recipe), {}, recipe_namespace())
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert again != with_priming(name, **changes, inner_steps=4)
    assert recipe.needs >= {"tasks"}


def test_a_tuning_without_tasks_is_refused() -> None:
    with pytest.raises(UsageError, match="tasks"):
        Tuning(with_priming("bitfit"), bert(), batches=batches(2), steps=3)


@each_recipe
def test_the_anchor_is_the_primed_model_and_the_delta_holds_the_priming(name: str, tmp_path: Path) -> None:
    need_peft(name)
    model, base = bert(), bits(bert())
    tuning = bound(name, model)
    state = torch.get_rng_state()
    optimizer = tuning.optimizer(lr=1e-2)
    assert torch.equal(torch.get_rng_state(), state)
    after = bits(model)
    primed_names = differing(base, after)
    assert "bert.embeddings.word_embeddings.weight" in primed_names
    anchors = tuning.live().anchor
    assert differing(dict(anchors), after) == []
    assert all(p.requires_grad == (n in tuning.scope.trained) for n, p in tuning_parameters(tuning).items())
    for batch in batches(2, seed=4):
        tuning.forward(batch).loss.backward()
        tuning.step(optimizer)
        optimizer.zero_grad()
    Delta.of(tuning).save(tmp_path / "d.safetensors")
    frozen = [n for n in tuning.scope.frozen if n in primed_names]
    assert frozen, "the priming moved what the method keeps"
    assert differing({n: after[n] for n in frozen}, bits(model)) == []
    fresh = bert()
    handle = Delta.load(tmp_path / "d.safetensors").apply(fresh)
    assert differing(bits(model), bits(fresh)) == []
    handle.remove()
    assert differing(base, bits(fresh)) == []


def tuning_parameters(tuning: Tuning) -> dict[str, torch.Tensor]:
    return {n.replace(".base_layer.", "."): p for n, p in tuning.model.named_parameters()}


def test_a_recipe_without_an_adapter_is_primed_for_one_that_it_gets_later() -> None:
    pytest.importorskip("peft")
    model = bert()
    before, keys = bits(model), list(model.state_dict())
    Tuning(Recipe(prepare=(piece("lora"),)), model, batches=batches(2), steps=2, tasks=bert_tasks()).start()
    assert list(model.state_dict()) == keys
    assert differing(before, bits(model))


@each_recipe
def test_a_resumed_tuning_does_not_prime_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    need_peft(name)
    model = bert()
    tuning = bound(name, model)
    optimizer = tuning.optimizer(lr=1e-2)
    parts = []
    for index, batch in enumerate(batches(2, seed=5)):
        if index == 1:
            for value in (model.state_dict(), tuning.state_dict(), optimizer.state_dict(), torch.get_rng_state()):
                file = io.BytesIO()
                torch.save(value, file)
                parts.append(file.getvalue())
        tuning.forward(batch).loss.backward()
        tuning.step(optimizer)
        optimizer.zero_grad()
    weights, state, moments, random = [torch.load(io.BytesIO(part), weights_only=True) for part in parts]
    monkeypatch.setattr(Prime, "__call__", lambda *_: pytest.fail("primed again"))
    again = bert()
    resumed = bound(name, again)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    optimizer = resumed.optimizer(lr=1e-2)
    optimizer.load_state_dict(moments)
    torch.set_rng_state(random)
    resumed.forward(batches(2, seed=5)[1]).loss.backward()
    resumed.step(optimizer)
    assert differing(bits(model), bits(again)) == []
    assert differing(tuning.base_values(), resumed.base_values()) == []


@each_recipe
def test_a_priming_that_fails_leaves_the_base(name: str) -> None:
    need_peft(name)
    model = bert()
    tuning = bound(name, model, lr=1e30, steps=5, clip=None)
    before = bits(model)
    with pytest.raises(NumericError, match="priming"):
        tuning.start()
    assert differing(before, bits(model)) == []


def test_a_priming_alone_and_in_a_tuning_are_one() -> None:
    alone, inside = bert(), bert()
    one = piece("bitfit")
    one(primed(one, alone, bert_tasks(), seed=2))
    bound("bitfit", inside).start()
    assert differing(bits(alone), bits(inside)) == []
