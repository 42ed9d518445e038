"""Protocols: what each asks for, that all methods get one budget, and what a card keeps for its method."""

from __future__ import annotations

from typing import Any

import pytest

from subnetune.core.errors import UsageError
from subnetune.experiment.config import build_recipe
from subnetune.experiment.grid.cells import Cell, Group, groups, run_cells, settings_of, values_of
from subnetune.experiment.grid.config import BUDGET, GridConfig
from subnetune.experiment.grid.protocols import KEEPS, PROTOCOLS, protocol
from subnetune.methods import METHODS

SMALL = ["cola", "rte", "mrpc", "stsb"]
TEN = (42, 52, 57, 63, 78, 96, 127, 140, 298, 375)


def grid(preset: str, **values: object) -> GridConfig:
    return GridConfig.from_values({"preset": preset, **values})


def run_of(found: GridConfig, task: str, method: str) -> Any:
    group = Group(task, method, found.train_size[0])
    return Cell(group, 42, "run", values_of(found, group, 42, {}), {}).config()


# preset -> tasks, seeds, train sizes, transfer, probes: what the issue and the papers say.
WANTED: dict[str, tuple[list[str], int, tuple[int | None, ...], list[str], list[str]]] = {
    "glue-small": (SMALL, 10, (None,), [], []),
    "glue": (["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"], 10, (None,), [], []),
    "low-resource": (SMALL, 10, (300, 500, 1000), [], []),
    "domain-transfer": (["mnli"], 10, (5000,), ["mnli", "snli", "sick", "scitail", "rte", "qqp", "hans"], []),
    "task-transfer": (["sst2"], 10, (5000,), [], ["cola", "mrpc", "rte", "stsb"]),
    "sweep": (SMALL, 3, (None,), [], []),
}


@pytest.mark.parametrize("name", WANTED)
def test_what_a_preset_asks_for(name: str) -> None:
    found = grid(name)
    tasks, seeds, sizes, transfer, probes = WANTED[name]
    assert (list(found.tasks), found.train_size) == (tasks, sizes)
    assert (list(found.transfer), list(found.probes)) == (transfer, probes)
    assert all(found.seeds_of(task) == TEN[:seeds] for task in tasks)
    assert (found.search is not None) == (name == "sweep")
    assert found.reference == "full"


def test_there_are_no_others() -> None:
    assert set(PROTOCOLS) == set(WANTED)
    with pytest.raises(UsageError, match="unknown preset 'glue-smal'; did you mean 'glue-small'"):
        grid("glue-smal")


def test_a_protocol_can_be_changed_without_changing_it() -> None:
    protocol("low-resource")["tasks"].append("wnli")
    assert list(grid("low-resource").tasks) == SMALL
    assert list(grid("low-resource", tasks="rte,mrpc", seeds=3, train_size=300).tasks) == ["rte", "mrpc"]


# What stays a method's own in a comparison. Whoever adds to this list gives the card a reason.
OWN = {"ulmfit": {"schedule", "warmup"}, "recadam": {"warmup"}, "hype": {"dropout"}}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_the_budget_but_for_what_its_card_says(method: str) -> None:
    card = METHODS[method].card
    assert set(card.own) == OWN.get(method, set())
    assert set(card.own) <= {*BUDGET, "dropout"}
    assert bool(card.own) <= bool(card.compared)
    run = run_of(grid("glue-small", methods=[method]), "rte", method)
    wanted = {"epochs": 3, "batch_size": 16, "schedule": "linear", "warmup": 0.1, "weight_decay": 0.01, "clip": 1.0}
    wanted |= {name: getattr(card.defaults, name) for name in card.own if name != "dropout"}
    assert {name: getattr(run, name) for name in wanted} == wanted
    assert (run.eval_at, run.policy) == ("end", "last")  # the last checkpoint
    assert run.lr == card.defaults.lr


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_the_models_dropout_but_for_what_its_card_says(method: str) -> None:
    recipe = build_recipe(run_of(grid("glue-small", methods=[method]), "rte", method))
    rates = [piece.dropout_rate for piece in recipe.prepare if hasattr(piece, "dropout_rate")]
    assert rates == ([0.0] if method == "hype" else [])


def test_a_grid_may_ask_for_the_dropout_of_a_release() -> None:
    found = grid("glue-small", methods={"dps-dense": {"options": {"dropout": 0.0}}})
    assert [piece.dropout_rate for piece in build_recipe(run_of(found, "rte", "dps-dense")).prepare] == [0.0]


def test_a_card_says_what_it_keeps() -> None:
    assert dict(METHODS["recadam"].card.facts())["compared"].startswith("keeps its own warmup: lambda(t)")
    assert "keeps its own schedule and warmup: " in METHODS["ulmfit"].card.text(1000)
    assert "compared" not in dict(METHODS["full"].card.facts())


def test_a_sub_sample_is_the_same_for_all_seeds_and_methods_and_lies_inside_the_larger_one() -> None:
    found = grid("low-resource", methods="full,bitfit", seeds=2)
    runs = [cell.config() for group in groups(found) for cell in run_cells(found, group, {})]
    assert {run.seed for run in runs} == {42, 52}
    assert {run.train_seed for run in runs} == {0}
    assert {run.max_train for run in runs} == {300, 500, 1000}


RATES = [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3]


@pytest.mark.parametrize(
    ("methods", "method", "keeps"),
    [
        (None, "child-tuning-f", [0.2, 0.3, 0.4]),
        (None, "child-tuning-d", [0.1, 0.2, 0.3]),
        (None, "full", None),
        ("dps-dense,mixout", "dps-dense", [0.3, 0.7]),  # whichever methods are compared
        ("dps-dense,mixout", "mixout", [0.2, 0.5, 0.9]),
        (["fish"], "fish", None),
        ({"mine": {"method": "child-tuning-d"}}, "mine", [0.1, 0.2, 0.3]),
        ({"child-tuning-d": {"keep": 0.5}}, "child-tuning-d", None),
        ({"child-tuning-d": {"search": {"keep": [0.5, 0.6]}}}, "child-tuning-d", [0.5, 0.6]),
        ({"child-tuning-d": {"search": {"holdout": 0.2}}}, "child-tuning-d", [0.1, 0.2, 0.3]),
        ({"child-tuning-d": None}, "child-tuning-d", [0.1, 0.2, 0.3]),
    ],
)
def test_a_sweep_searches_rates_and_the_methods_own_fractions(methods: Any, method: str, keeps: Any) -> None:
    found = grid("sweep", **({} if methods is None else {"methods": methods}))
    settings = settings_of(found, method)
    assert sorted({setting["lr"] for setting in settings}) == RATES
    assert sorted({setting.get("keep") for setting in settings} - {None}) == (keeps or [])
    assert len(settings) == len(RATES) * len(keeps or [None])


def test_a_sweep_without_a_search_searches_for_no_method() -> None:
    found = grid("sweep", search=None)
    assert [settings_of(found, method) for method in found.methods] == [[{}]] * len(found.methods)
    own = grid("sweep", search=None, methods={"full": {}, "child-tuning-d": {"search": {"keep": [0.1, 0.2]}}})
    assert [len(settings_of(own, method)) for method in own.methods] == [1, 2], "what a method asks for stays"


def test_fractions_are_those_of_methods_that_have_one() -> None:
    assert all("keep" in METHODS[name].options for name in KEEPS)


@pytest.mark.parametrize("methods", ["full,full", ["full", "full"], 3, "full,nothing"])
def test_what_is_wrong_with_methods_is_said_as_without_a_preset(methods: Any) -> None:
    with pytest.raises(UsageError) as plain:
        GridConfig.from_values({"tasks": "rte", "methods": methods})
    with pytest.raises(UsageError) as swept:
        grid("sweep", tasks="rte", methods=methods)
    assert str(swept.value) == str(plain.value)
