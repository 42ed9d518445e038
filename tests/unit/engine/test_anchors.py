"""Anchors of which the selected entries alone are kept: the same values, states and checks as whole copies."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from subnetune import PullToPretrained, Tuning
from subnetune.core.errors import CheckpointError
from subnetune.delta import Delta
from subnetune.engine.anchors import Anchors
from subnetune.experiment.saving import changing_tensors
from subnetune.prepare import NoisyStart
from tiny import bits, differing
from tower import TOWER, data, tower, tuned


def trained(gradients: str, **options: Any) -> tuple[Tuning, dict[str, Tensor]]:
    """A tuning after three steps, and the weights before."""
    before = bits(tower())
    tuning, optimizer = tuned(gradients, **options)
    for index in range(3):
        tuning.forward(data(index)).loss.backward()
        tuning.step(optimizer)
        optimizer.zero_grad()
    return tuning, before


def kept_bytes(tuning: Tuning) -> int:
    return sum(t.nbytes for t in (*tuning._anchor.kept.values(), *tuning._anchor.entries.values()))


@pytest.mark.parametrize("started", [False, True])
def test_base_values_are_those_of_copies_and_take_the_selected_entries_alone(started: bool) -> None:
    tuning = Tuning(TOWER, tower(), forward=lambda model, batch: model(**batch))
    base = bits(tuning.model)
    if started:
        tuning.start()
        assert kept_bytes(tuning) == sum(base[name].nbytes for name in tuning.scope.trained)
    optimizer = tuning.optimizer(lr=0.1, engine="packed", gradients="lean")
    chosen = sum(int(mask.sum()) for mask in tuning.mask.values())
    assert kept_bytes(tuning) == 4 * (chosen + sum(base[name].numel() for name in tuning.scope.whole))
    for index in range(2):
        tuning.forward(data(index)).loss.backward()
        tuning.step(optimizer)
        optimizer.zero_grad()
        moved = differing(bits(tuning.model), base)
        assert len(moved) > 5
        found = tuning.base_values()
        assert list(found) == [name for name in base if name in tuning.scope.trained] == tuning.base_names()
        assert differing(found, {name: base[name] for name in found}) == []
        live = tuning.live()
        assert differing(dict(live.anchor), {name: base[name] for name in tuning.scope.selected}) == []


def test_what_a_checkpoint_holds_is_known_without_putting_anchors_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tuning, _ = trained("lean")
    monkeypatch.setattr(Anchors, "__getitem__", lambda *_: pytest.fail("an anchor was put together"))
    assert set(changing_tensors(tuning)) == set(tuning.scope.trained)


def test_the_delta_is_that_of_a_run_with_copies(tmp_path: Path) -> None:
    files = []
    for gradients in ("dense", "lean"):
        tuning, before = trained(gradients)
        path = tmp_path / f"{gradients}.safetensors"
        delta = Delta.of(tuning)
        delta.save(path)
        fresh = tower()
        delta.apply(fresh)
        assert differing(bits(fresh), bits(tuning.model)) == []
        assert differing(bits(fresh), before) != []
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_an_entry_outside_the_mask_that_moved_is_found() -> None:
    tuning, _ = trained("lean")
    name = "layers.1.down.weight"
    with torch.no_grad():
        tuning.model.layers[1].down.weight[~tuning.mask[name]] *= 2.0
    with pytest.raises(CheckpointError, match=r"'layers.1.down.weight' is not what it was outside the mask, nor 0"):
        Delta.of(tuning)


def test_prepared_weights_have_their_own_anchor() -> None:
    recipe = replace(TOWER, prepare=(NoisyStart(0.1),))
    tuning, before = trained("lean", recipe=recipe)
    assert differing(tuning.base_values(), {name: before[name] for name in tuning.base_values()}) == []
    assert differing(dict(tuning.live().anchor), before) != []
    Delta.of(tuning)


def test_a_forward_rule_reads_the_anchor() -> None:
    recipe = replace(TOWER, forward=(PullToPretrained(0.1),))
    ends = [bits(trained(gradients, recipe=recipe)[0].model) for gradients in ("dense", "lean")]
    assert differing(ends[0], ends[1]) == []


def test_a_saved_state_is_small_and_goes_on_with_either() -> None:
    whole, _ = trained("dense")
    tuning, before = trained("lean")
    state = copy.deepcopy(tuning.state_dict())
    assert (state["format"], whole.state_dict()["format"]) == (2, 1)
    assert set(state["anchor"]) == {"head.weight", "head.bias"}
    for gradients, saved in (("dense", state), ("lean", state), ("lean", whole.state_dict())):
        again = Tuning(TOWER, tower(), steps=9, forward=lambda model, batch: model(**batch))
        again.load_state_dict(saved)
        again.model.load_state_dict(tuning.model.state_dict())
        again.optimizer(engine="packed", gradients=gradients)
        assert again.index == 3
        assert differing(again.base_values(), {name: before[name] for name in again.base_values()}) == []
        assert Delta.of(again).stored == Delta.of(tuning).stored
        assert again.state_dict()["format"] == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("entries"), "lacks 'entries'"),
        (lambda s: s.pop("prints"), "lacks 'prints'"),
        (lambda s: s["prints"].pop("layers.0.up.weight"), "anchors other tensors"),
        (lambda s: s["entries"].pop("layers.0.up.weight"), "anchors other tensors .* 'layers.0.up.weight'"),
        (lambda s: s["anchor"].update({"layers.0.up.weight": torch.zeros(48, 24)}), "anchors other tensors"),
        (lambda s: s["entries"].update({"layers.0.up.weight": torch.zeros(3)}), "has 3 entries"),
        (lambda s: s["entries"].update({"layers.0.up.weight": torch.zeros(3).double()}), "float64"),
        (lambda s: s.update(format=3), "format 3; this version reads 1 and 2"),
    ],
    ids=["entries", "prints", "print", "tensor", "twice", "count", "dtype", "format"],
)
def test_a_state_that_does_not_fit_is_refused(change: Any, words: str) -> None:
    tuning, _ = trained("lean")
    state = copy.deepcopy(tuning.state_dict())
    change(state)
    again = Tuning(TOWER, tower(), steps=9, forward=lambda model, batch: model(**batch))
    with pytest.raises(CheckpointError, match=words):
        again.load_state_dict(state)
