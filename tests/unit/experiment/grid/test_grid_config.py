"""A grid's definition: what its values may be, what a preset and flags give, and that its file says it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from subnetune.core.errors import UsageError
from subnetune.experiment.grid.cells import settings_of
from subnetune.experiment.grid.config import PUBLISHED_SEEDS, GridConfig, load_grid, over
from subnetune.experiment.grid.protocols import PROTOCOLS
from subnetune.experiment.strict_yaml import parse_mapping

SMALL: dict[str, Any] = {"tasks": "rte,mrpc", "methods": "full,bitfit"}


def grid(**changed: Any) -> GridConfig:
    return GridConfig.from_values(SMALL | changed)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_grid_file_says_all_that_the_grid_is(name: str) -> None:
    whole = GridConfig.from_values({"preset": name, "model": "m", "common": {"lr": 1e-4, "with": ["r-drop"]}})
    assert GridConfig.from_values(parse_mapping(whole.to_yaml(), "grid.yaml").values) == whole


def test_a_search_that_is_said_for_all_methods_wins_over_the_presets_for_each() -> None:
    given = {"preset": "sweep", "tasks": "rte", "methods": "child-tuning-d,mixout"}
    plain = GridConfig.from_values(given)
    assert settings_of(plain, "mixout")[0]["keep"] == plain.methods["mixout"]["search"]["keep"][0]
    said = GridConfig.from_values(given | {"search": {"keep": [0.4, 0.6], "lr": [1e-4]}})
    for method in said.methods:
        assert settings_of(said, method) == [{"lr": 1e-4, "keep": 0.4}, {"lr": 1e-4, "keep": 0.6}]


def test_what_was_taken_from_a_preset_back_to_the_default_stays_so() -> None:
    plain = GridConfig.from_values({"preset": "sweep", "search": None})
    assert plain.search is None
    assert GridConfig.from_values(parse_mapping(plain.to_yaml(), "").values).search is None


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        (3, (42, 52, 57)),
        ("3", (42, 52, 57)),
        (10, PUBLISHED_SEEDS),
        ([7, 8], (7, 8)),
        ("7,8", (7, 8)),
        ("42,", (42,)),
        ({"rte": 2, "mrpc": [0]}, {"rte": (42, 52), "mrpc": (0,)}),
        ({"rte": 2, "mrpc": [0], "cola": 1}, {"rte": (42, 52), "mrpc": (0,), "cola": (42,)}),
    ],
)
def test_seeds(given: object, seeds: object) -> None:
    found = grid(seeds=given)
    assert found.seeds == seeds
    assert found.seeds_of("mrpc") == (seeds["mrpc"] if isinstance(seeds, dict) else seeds)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": 11}, "seeds: a number of seeds is 1 to 10; for other seeds write a list"),
        ({"seeds": 0}, "seeds: a number of seeds is 1 to 10"),
        ({"seeds": [1, 2, 1]}, "seeds: a seed stands there twice"),
        ({"seeds": []}, "seeds: an empty list"),
        ({"seeds": [-1]}, r"seeds: a seed is an integer from 0 to 2\*\*32 - 1"),
        ({"seeds": "some"}, "seeds: got 'some', allowed is a number from 1 to 10, or a list of integers"),
        ({"seeds": {"rte": 2}}, "seeds per task name every task; there are none for mrpc"),
        ({"train_size": 0}, "train_size: train sizes are different integers of at least 1, or all"),
        ({"train_size": [300, 300]}, "train_size: train sizes are different"),
        ({"train_size": "some"}, "train_size: got 'some', allowed is integers of at least 1, or all"),
        ({"preset": "gleu"}, "unknown preset 'gleu'.*did you mean 'glue'"),
        ({"tasks": "rte,mprc"}, "unknown task 'mprc'.*did you mean 'mrpc'"),
        ({"tasks": "rte,rte"}, "tasks: 'rte' stands there twice"),
        ({"tasks": ""}, "a grid needs tasks"),
        ({"methods": "full,bitfitt"}, "unknown method 'bitfitt'.*did you mean 'bitfit'"),
        ({"methods": {"full": {"learning_rate": 1}}}, "methods.full: unknown option 'learning_rate'"),
        ({"methods": {"full": {"seed": 1}}}, "methods.full: 'seed' is said by the grid itself"),
        ({"methods": {"full": 3}}, "methods.full: got 3"),
        ({"methods": [{"full": {"lr": 1e-4}}]}, "methods: a list holds names alone; options stand in a mapping"),
        ({"preset": "sweep", "methods": [{"full": {}}]}, "methods: a list holds names alone"),
        ({"methods": {"full": {"options": 3}}}, "methods.full.options: got 3, allowed is a mapping"),
        ({"methods": {"full": {"search": [1e-4]}}}, r"methods.full.search: got \[0.0001\], allowed is a mapping"),
        ({"common": {"options": None}}, "common.options: got None, allowed is a mapping"),
        ({"methods": {"a\nb": {"method": "full"}}}, r"a name has 1 to 200 printable characters, not 'a\\nb'"),
        ({"methods": {"x" * 201: {"method": "full"}}}, "a name has 1 to 200 printable characters"),
        ({"tasks": "rte,RTE"}, "tasks: 'RTE' is the task 'rte' again"),
        ({"tasks": {"rte": {"method": "full"}}}, "tasks.rte: 'method' is said by the grid itself"),
        ({"tasks": {"mine": {"train_file": "a.csv"}}}, "tasks.mine: own files need dev_file, text, label"),
        ({"common": {"max_train": 3}}, "common: 'max_train' is said by the grid itself"),
        ({"common": {"search": {}}}, "common: unknown option 'search'"),
        ({"baseline": "lora"}, "baseline 'lora' is none of the methods full, bitfit"),
        ({"lr": 1e-4}, "unknown option 'lr'; options of runs stand under `common`"),
        ({"basline": "full"}, "unknown option 'basline'.*did you mean 'baseline'"),
        ({"search": {"lr": [1e-4, 1e-4]}}, "search.lr: a value stands there twice"),
        ({"search": {"lr": 1e-4}}, "search.lr: got 0.0001, allowed is a list of numbers"),
        ({"search": {"lrs": [1e-4]}}, "unknown option 'search.lrs'; did you mean 'lr'"),
        ({"search": {"holdout": 1.5}}, "search.holdout"),
        ({"transfer": "hanns"}, "unknown task 'hanns'.*did you mean 'hans'"),
        ({"analyse": "some"}, "analyse: got 'some', allowed is none, first or all"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_meant(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grid(**changed)


def test_the_baseline_is_the_named_method_or_full_or_the_first() -> None:
    assert grid(baseline="bitfit").reference == "bitfit"
    assert grid(methods="bitfit,full").reference == "full"
    assert grid(methods="bitfit,lora").reference == "bitfit"


def test_flags_win_over_a_file_and_names_keep_their_entries(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "tasks: {rte: {max_length: 64}, mrpc: {}}\nmethods: {full: {lr: 1e-5}, bitfit: {lr: 1e-3}}\nseeds: 5\n"
        "common: {epochs: 3, batch_size: 8}\nsearch: {lr: [1e-4, 1e-3], holdout: 0.2}\n"
    )
    flags = {"tasks": "rte", "methods": "bitfit,lora", "common": {"epochs": 1}, "search": {"lr": [1e-2]}}
    found = load_grid(file, flags)
    assert found.tasks == {"rte": {"max_length": 64}}
    assert found.methods == {"bitfit": {"lr": 1e-3}, "lora": {}}
    assert found.common == {"epochs": 1, "batch_size": 8}
    assert found.search is not None
    assert (found.search.lr, found.search.holdout) == ((1e-2,), 0.2)
    assert found.seeds == PUBLISHED_SEEDS[:5]


def test_options_of_a_method_are_merged_by_name() -> None:
    merged = over({"common": {"options": {"a": 1, "b": 2}}}, {"common": {"options": {"b": 3}, "lr": 1.0}})
    assert merged == {"common": {"options": {"a": 1, "b": 3}, "lr": 1.0}}


def test_a_file_with_an_error_is_named(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("tasks: [rte]\nmethods: [full]\nseeds: 12\n")
    with pytest.raises(UsageError, match=r"grid\.yaml: seeds: a number of seeds is 1 to 10"):
        load_grid(file, {})
