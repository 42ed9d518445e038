"""What the packed and the fused optimizer save: as little as trains, by name; what they take back, and what not."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.recipe import Recipe, Scope
from subnetune.score import Magnitude, Random
from subnetune.select import Bernoulli, Top
from subnetune.tuning import Tuning
from subnetune.update import HoldUnselected, MaskGradient
from tiny import batches, bits, differing, tiny

RULES = (MaskGradient(), HoldUnselected())
STATIC = Recipe(Scope(("@layers",), whole=("@head",)), Top(Random(), 0.3), RULES)
RANDOM = Recipe(Scope(("@layers",), whole=("@head",)), Bernoulli(0.3), RULES)
ADAMW = {"lr": 1e-2, "weight_decay": 0.1}
STEPS = 4
KINDS: dict[str, tuple[Recipe, Any, dict[str, Any], str]] = {
    "packed": (STATIC, torch.optim.AdamW, ADAMW, "packed"),
    "packed-fused-kernel": (STATIC, torch.optim.AdamW, {**ADAMW, "fused": True}, "packed"),
    "packed-sgd": (STATIC, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, "packed"),
    "packed-nadam": (STATIC, torch.optim.NAdam, {"lr": 1e-2}, "packed"),
    "packed-adagrad": (STATIC, torch.optim.Adagrad, {"lr": 1e-2, "initial_accumulator_value": 0.1}, "packed"),
    "fused": (STATIC, torch.optim.AdamW, ADAMW, "fused"),
    "fused-random": (RANDOM, torch.optim.AdamW, ADAMW, "fused"),
}
QUICK = ("packed", "packed-sgd", "fused", "fused-random")
each_kind = pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
each_engine = pytest.mark.parametrize("engine", ["packed", "fused"])


def build(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[nn.Module, Tuning, Any]:
    recipe, cls, hyper, engine = KINDS[kind]
    model = tiny("bert", num_hidden_layers=1).to(dtype)
    tuning = Tuning(changes.pop("recipe", recipe), model, steps=STEPS, seed=changes.pop("seed", 0))
    optimizer = tuning.optimizer(changes.pop("cls", cls), engine=engine, **{**hyper, **changes})
    return model, tuning, optimizer


def train(tuning: Tuning, optimizer: torch.optim.Optimizer, data: list[dict[str, Tensor]]) -> None:
    for batch in data:
        tuning.forward(batch).loss.backward()
        tuning.clip(0.5)
        tuning.step(optimizer)
        optimizer.zero_grad()


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Whether two state dicts are equal in every bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


# -- size and names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.3, 0.1, 0.01])
@each_engine
def test_what_is_kept_is_as_large_as_what_trains(engine: str, keep: float) -> None:
    """Two values for each selected entry, the cheaper of bitmask and index, and whole tensors' states."""
    recipe = Recipe(Scope(("@layers",), whole=("@head",)), Top(Random(), keep), RULES)
    _, tuning, optimizer = build(engine, recipe=recipe)
    train(tuning, optimizer, batches(2))
    state = optimizer.state_dict()["state"]
    values = sum(t.nbytes for each in state.values() for t in each.values() if isinstance(t, Tensor) and t.dim())
    stored = sum(t.untyped_storage().nbytes() for each in state.values() for t in each.values() if _entries(t))
    live = tuning.live()
    selected = sum(int(live.mask[name].expand(p.shape).sum()) for name, p in live.params.items())
    whole = sum(tuning.model.get_parameter(name).numel() for name in tuning.scope.whole)
    assert values == 2 * 4 * (selected + whole)
    assert stored == values, "a slice of something larger was saved"
    for name in live.params:
        place = optimizer.child.place(name, optimizer.child.local(name))
        kept = [each for each in vars(place).values() if isinstance(each, Tensor)]
        assert place.nbytes == sum(each.nbytes for each in kept) == min(4 * place.count, -(-place.size // 8))


def _entries(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


@each_kind
def test_states_have_names_and_load_without_running_code(kind: str) -> None:
    _, tuning, optimizer = build(kind)
    train(tuning, optimizer, batches(1))
    saved = through_a_file(optimizer.state_dict())
    assert same(saved, optimizer.state_dict())
    assert set(saved["state"]) == set(tuning.scope.trained)
    assert [name for group in saved["param_groups"] for name in group["params"]] == [
        name for group in optimizer.param_groups for name in group["param_names"]
    ]


@each_kind
def test_states_are_copies(kind: str) -> None:
    _, tuning, optimizer = build(kind)
    data = batches(3)
    train(tuning, optimizer, data[:1])
    saved = optimizer.state_dict()
    kept = through_a_file(saved)
    train(tuning, optimizer, data[1:])
    assert same(saved, kept)
    optimizer.load_state_dict(saved)
    train(tuning, optimizer, data[1:])
    assert same(saved, kept)


# -- resuming ---------------------------------------------------------------------------------------------------------


def resumed_at_every_step(kind: str, dtype: torch.dtype, **changes: Any) -> None:
    data = batches(STEPS, seed=1)
    torch.manual_seed(3)
    model, tuning, optimizer = build(kind, dtype, **changes)
    stops = []
    for batch in data:
        parts = model.state_dict(), tuning.state_dict(), optimizer.state_dict(), torch.get_rng_state()
        stops.append([through_a_file(part) for part in parts])
        train(tuning, optimizer, [batch])
    wanted, last = bits(model), optimizer.state_dict()
    for index, (weights, of_tuning, of_optimizer, random) in enumerate(stops):
        tuning.close()
        model, tuning, optimizer = build(kind, dtype, **changes)
        model.load_state_dict(weights)
        tuning.load_state_dict(of_tuning)
        optimizer.load_state_dict(of_optimizer)
        torch.set_rng_state(random)
        train(tuning, optimizer, data[index:])
        assert differing(wanted, bits(model)) == [], f"resumed after {index} steps"
        assert same(last, optimizer.state_dict())


@each_kind
def test_a_resumed_run_is_the_one_that_never_stopped_at_every_step(kind: str) -> None:
    resumed_at_every_step(kind, torch.float32)


@pytest.mark.parametrize("kind", ["packed-sgd", pytest.param("packed", marks=pytest.mark.slow)])
def test_so_it_is_in_half_precision(kind: str) -> None:
    resumed_at_every_step(kind, torch.bfloat16)


@each_kind
def test_nothing_is_cast(kind: str) -> None:
    _, tuning, optimizer = build(kind)
    train(tuning, optimizer, batches(1))
    saved = optimizer.state_dict()
    _, _, fresh = build(kind)
    fresh.load_state_dict(saved)
    assert same(fresh.state_dict(), saved)


@each_kind
def test_an_empty_state_loads_as_accelerate_does_it(kind: str) -> None:
    ends = []
    for loads in (False, True):
        torch.manual_seed(4)
        model, tuning, optimizer = build(kind)
        if loads:
            optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        train(tuning, optimizer, batches(2))
        ends.append(bits(model))
    assert differing(*ends) == []


@each_kind
def test_loading_an_empty_state_forgets_what_was_there(kind: str) -> None:
    _, tuning, optimizer = build(kind)
    empty = optimizer.state_dict()
    train(tuning, optimizer, batches(1))
    optimizer.load_state_dict(empty)
    assert optimizer.state_dict()["state"] == {}


def test_a_tensor_learning_rate_and_a_schedule_go_on() -> None:
    ends = []
    for stops in (False, True):
        torch.manual_seed(6)
        model, tuning, optimizer = build("packed", lr=torch.tensor(1e-2))
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        data = batches(4)
        for index, batch in enumerate(data):
            train(tuning, optimizer, [batch])
            schedule.step()
            if stops and index == 1:
                parts = [through_a_file(x.state_dict()) for x in (model, tuning, optimizer, schedule)]
                random = torch.get_rng_state()
                tuning.close()
                model, tuning, optimizer = build("packed", lr=torch.tensor(1e-2))
                schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
                for part, saved in zip((model, tuning, optimizer, schedule), parts, strict=True):
                    part.load_state_dict(saved)
                torch.set_rng_state(random)
        ends.append(bits(model))
    assert differing(*ends) == []


# -- what does not fit ------------------------------------------------------------------------------------------------


def without(saved: dict[str, Any], *path: str) -> dict[str, Any]:
    """A copy that lacks one key."""
    changed = copy.deepcopy(saved)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"cls": torch.optim.Adam, "engine": "packed"}, "class 'Adam'"),
    "mask": ({"seed": 1}, "mask"),
    "keep": ({"recipe": Recipe(STATIC.scope, Top(Random(), 0.31), RULES)}, "recipe"),
    "score": ({"recipe": Recipe(STATIC.scope, Top(Magnitude(), 0.3), RULES)}, "recipe"),
    "scope": ({"recipe": Recipe(Scope(("@layers",)), Top(Random(), 0.3), RULES)}, "recipe"),
}


@pytest.mark.parametrize("what", OTHERS)
@each_engine
def test_the_state_of_another_run_is_refused_and_changes_nothing(engine: str, what: str) -> None:
    changes, words = OTHERS[what]
    if what == "class" and engine == "fused":
        words = "engine 'packed'"
    other = build("packed" if what == "class" else engine, **{k: v for k, v in changes.items() if k != "engine"})
    train(other[1], other[2], batches(1))
    refused_unchanged(engine, through_a_file(other[2].state_dict()), words)


@each_engine
def test_the_state_of_another_engine_is_refused_and_changes_nothing(engine: str) -> None:
    _, tuning, optimizer = build("fused" if engine == "packed" else "packed")
    train(tuning, optimizer, batches(1))
    refused_unchanged(engine, optimizer.state_dict(), "saved with engine")
    model = tiny("bert", num_hidden_layers=1)
    plain = torch.optim.AdamW(model.parameters(), lr=1e-2)
    refused_unchanged(engine, plain.state_dict(), 'continues with .*engine="reference"')


@each_engine
def test_a_damaged_state_is_refused_and_changes_nothing(engine: str) -> None:
    _, tuning, optimizer = build(engine)
    train(tuning, optimizer, batches(1))
    saved = optimizer.state_dict()
    name = next(iter(saved["state"]))
    for key in ("about", "state", "param_groups"):
        refused_unchanged(engine, without(saved, key), "not the state")
    refused_unchanged(engine, without(saved, "about", "format"), "saved with format")
    for key in ("step", "exp_avg", "exp_avg_sq"):
        refused_unchanged(engine, without(saved, "state", name, key), "damaged")
    short = copy.deepcopy(saved)
    short["state"][name]["exp_avg"] = short["state"][name]["exp_avg"][:-1]
    refused_unchanged(engine, short, "has shape")
    foreign = copy.deepcopy(saved)
    foreign["state"]["elsewhere"] = foreign["state"][name]
    refused_unchanged(engine, foreign, "'elsewhere', which this recipe does not train")
    regrouped = copy.deepcopy(saved)
    regrouped["param_groups"][0]["params"] = regrouped["param_groups"][0]["params"][::-1]
    refused_unchanged(engine, regrouped, "groups other parameters")


def refused_unchanged(engine: str, saved: dict[str, Any], words: str) -> None:
    _, tuning, optimizer = build(engine, lr=5e-3)
    train(tuning, optimizer, batches(1, seed=9))
    before = through_a_file(optimizer.state_dict())
    with pytest.raises(CheckpointError, match=words):
        optimizer.load_state_dict(saved)
    assert same(before, optimizer.state_dict())
    tuning.close()


# -- copies, and torch's distributed checkpoints ----------------------------------------------------------------------


@each_engine
def test_copies_are_refused_by_name(engine: str) -> None:
    _, tuning, optimizer = build(engine)
    for make in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(UsageError, match=r"cannot be copied or pickled: keep its state_dict\(\)"):
            make(optimizer)
    train(tuning, optimizer, batches(1))
    assert tuning.index == 1


@each_engine
def test_torchs_distributed_checkpoints_are_refused_before_they_take_a_step(engine: str) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model, tuning, optimizer = build(engine)
    for steps in (0, 1):
        train(tuning, optimizer, batches(steps))
        before, state = bits(model), optimizer.state_dict()
        with pytest.raises(CheckpointError, match='engine="reference"'):
            get_optimizer_state_dict(model, optimizer)
        with pytest.raises(CheckpointError, match='engine="reference"'):
            set_optimizer_state_dict(model, optimizer, {"state": {}, "param_groups": []})
        assert tuning.index == steps
        assert same(state, optimizer.state_dict())
        assert differing(before, bits(model)) == []


def test_the_step_that_torch_makes_up_to_fill_a_state_is_none_of_the_run() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    ends = []
    for asks in (False, True):
        torch.manual_seed(5)
        model = tiny("bert", num_hidden_layers=1)
        tuning = Tuning(RANDOM, model, steps=STEPS)
        optimizer = tuning.optimizer(torch.optim.AdamW, engine="reference", **ADAMW)
        if asks:
            before = bits(model)
            saved = get_optimizer_state_dict(model, optimizer)
            assert set(saved["state"]) == set(tuning.scope.trained)
            set_optimizer_state_dict(model, optimizer, saved)
            assert tuning.index == 0
            assert differing(before, bits(model)) == []
            for state in optimizer.state.values():
                state["step"].zero_()
        train(tuning, optimizer, batches(2))
        assert tuning.index == 2
        ends.append(bits(model))
    assert differing(*ends) == []
