"""The cells of a grid: which there are, what each says, and that a name means what decides the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grid_case import own_files
from subnetune.core.errors import UsageError
from subnetune.experiment.grid.cells import (
    Cell,
    Group,
    describe_cell,
    groups,
    model_digest,
    read_cell,
    run_cells,
    search_cells,
    settings_of,
    values_of,
)
from subnetune.experiment.grid.checks import check
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.rundir import write_json


def grid(**changed: Any) -> GridConfig:
    values: dict[str, Any] = {"tasks": "rte", "methods": "full,child-tuning-d", "model": "some/model"}
    return GridConfig.from_values(values | changed)


def one(found: GridConfig, method: str = "full", size: int | None = None) -> Cell:
    return next(iter(run_cells(found, Group("rte", method, size), {})))


def test_every_task_method_and_size_is_a_group_and_every_seed_a_cell() -> None:
    found = grid(tasks="rte,mrpc", train_size=[300, "all"], seeds=3)
    assert groups(found)[:3] == [
        Group("rte", "full", 300),
        Group("rte", "full", None),
        Group("rte", "child-tuning-d", 300),
    ]
    assert len(groups(found)) == 8
    assert [cell.seed for cell in run_cells(found, groups(found)[0], {})] == [42, 52, 57]


def test_names_are_readable_and_what_they_were() -> None:
    """A finished cell is found by its name: a new option's default must not change it."""
    assert (
        one(grid(train_size=300), size=300).name
        == "rte-full-n300-seed42-" + one(grid(train_size=300), size=300).digest[:10]
    )
    assert one(grid()).digest[:10] == "a750e65973"


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"common": {"threads": 2}}, True),
        ({"common": {"save_steps": 5}}, True),
        ({"common": {"max_length": 128}}, True),  # the default
        ({"data_dir": "elsewhere"}, True),
        ({"seeds": [42, 1]}, True),
        ({"analyse": "all", "artefacts": "none"}, True),
        ({"common": {"max_length": 64}}, False),
        ({"common": {"lr": 1e-4}}, False),
        ({"methods": {"full": {"lr": 1e-4}}}, False),
        ({"tasks": {"rte": {"lr": 1e-4}}}, False),
        ({"model": "other/model"}, False),
        ({"seeds": [43]}, False),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_name_changes_with_the_result_alone(changed: dict[str, Any], same: bool) -> None:
    assert (one(grid(**changed)).digest == one(grid()).digest) is same


def test_files_and_folders_count_by_content_not_by_place(tmp_path: Path) -> None:
    def cell(root: Path, text: str, weights: bytes) -> Cell:
        model = root / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(weights)
        (root / "train.csv").write_text(text)
        (root / "dev.csv").write_text("sentence,label\n")
        found = grid(tasks={"rte": own_files(root)}, model=str(model))
        return one(found)

    (tmp_path / "empty" / "model").mkdir(parents=True)
    first = cell(tmp_path / "a", "sentence,label\n", b"0" * 200_000)
    assert cell(tmp_path / "b", "sentence,label\n", b"0" * 200_000).name == first.name
    assert cell(tmp_path / "c", "sentence,label\nx,y\n", b"0" * 200_000).name != first.name
    assert cell(tmp_path / "d", "sentence,label\n", b"0" * 199_999 + b"1").name != first.name
    for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / name).write_text("{}")
        assert model_digest(str(tmp_path / name / "model")) != model_digest(str(tmp_path / "empty" / "model"))
    absent = one(grid(model=str(tmp_path / "gone" / "model")))
    assert (absent.identity()["model"], absent.here, first.here) == ("model", False, True)


def test_the_order_in_which_options_win() -> None:
    found = grid(
        common={"lr": 1e-5, "epochs": 9, "batch_size": 8},
        tasks={"rte": {"lr": 2e-5, "epochs": 7}},
        methods={"full": {"lr": 3e-5}, "mine": {"method": "child-tuning-d", "options": {"unit": "row"}}},
        train_size=300,
        data_dir="data",
    )
    values = values_of(found, Group("rte", "full", 300), 1, {})
    assert (values["lr"], values["epochs"], values["batch_size"], values["warmup"]) == (3e-5, 7, 8, 0.1)
    assert (values["task"], values["data_dir"], values["max_train"]) == ("rte", "data", 300)
    assert values_of(found, Group("rte", "full", 300), 1, {"lr": 4e-5})["lr"] == 4e-5
    assert values_of(found, Group("rte", "mine", None), 1, {})["method"] == "child-tuning-d"
    assert values_of(found, Group("rte", "mine", None), 1, {"options": {"keep": 1}})["options"] == {
        "unit": "row",
        "keep": 1,
    }


def test_what_all_share_is_given_to_the_methods_that_have_it() -> None:
    found = grid(methods="full,child-tuning-d,ulmfit", common={"keep": 0.2, "warmup": 0.0, "options": {"unit": "row"}})
    by_method = {name: values_of(found, Group("rte", name, None), 1, {}) for name in found.methods}
    assert "keep" not in by_method["full"]
    assert "options" not in by_method["full"]
    assert by_method["child-tuning-d"]["keep"] == 0.2
    assert by_method["child-tuning-d"]["options"] == {"unit": "row"}
    assert by_method["full"]["warmup"] == 0.0
    assert "warmup" not in by_method["ulmfit"]  # its card's own
    with pytest.raises(UsageError, match="none of the methods full, ulmfit has an option 'keep'"):
        check(grid(methods="full,ulmfit", common={"keep": 0.2}), inputs=False)


def test_a_search_tries_what_the_method_has_and_is_not_given() -> None:
    found = grid(
        methods={
            "full": {},
            "child-tuning-d": {},
            "d-fixed": {"method": "child-tuning-d", "lr": 1e-4},
            "bitfit": {"lr": 1e-3},
        },
        search={"lr": [1e-4, 1e-3], "keep": [0.1, 0.3], "max_eval": 50},
    )
    assert settings_of(found, "full") == [{"lr": 1e-4}, {"lr": 1e-3}]
    assert settings_of(found, "child-tuning-d") == [{"lr": lr, "keep": k} for lr in (1e-4, 1e-3) for k in (0.1, 0.3)]
    assert settings_of(found, "d-fixed") == [{"keep": 0.1}, {"keep": 0.3}]
    assert settings_of(found, "bitfit") == [{}]
    assert search_cells(found, Group("rte", "bitfit", None)) == []
    cells = search_cells(found, Group("rte", "full", 300))
    assert [cell.values["lr"] for cell in cells] == [1e-4, 1e-3]
    assert {(cell.stage, cell.seed, cell.values["holdout"], cell.values["max_eval"]) for cell in cells} == {
        ("search", 42, 0.3, 50)
    }
    assert cells[0].name.startswith("search-rte-full-n300-seed42-")


def test_a_search_trains_on_no_more_than_it_says_and_than_its_runs() -> None:
    found = grid(train_size=[300, "all"], search={"lr": [1e-4, 1e-3], "train_size": 1000})
    for size, least in ((300, 300), (5000, 1000), (None, 1000)):
        cells = search_cells(found, Group("rte", "full", size))
        assert [cell.values["max_train"] for cell in cells] == [least, least]
    assert "max_train" not in next(run_cells(found, Group("rte", "full", None), {})).values


def test_a_search_on_own_files_does_not_name_the_dev_file(tmp_path: Path) -> None:
    found = grid(tasks={"rte": own_files(tmp_path)}, search={"lr": [1e-4, 1e-3]})
    assert all("dev_file" not in cell.values for cell in search_cells(found, Group("rte", "full", None)))


def test_a_cell_is_read_back_as_it_was(tmp_path: Path) -> None:
    for cell in (
        *run_cells(grid(train_size=300), Group("rte", "child-tuning-d", 300), {"lr": 1e-4}),
        *search_cells(grid(search={"lr": [1e-4, 1e-3]}), Group("rte", "full", None)),
    ):
        write_json(tmp_path / "cell.json", describe_cell(cell))
        assert read_cell(tmp_path / "cell.json") == cell
        assert read_cell(tmp_path / "cell.json").name == cell.name


def test_only_the_first_seed_is_kept_or_analysed_where_the_grid_says_so() -> None:
    cells = list(run_cells(grid(artefacts="first", analyse="first"), Group("rte", "full", None), {}))
    assert [cell.keep for cell in cells] == [cell.analyse for cell in cells] == [True, False, False]
    cells = list(run_cells(grid(artefacts="none", analyse="all"), Group("rte", "full", None), {}))
    assert [(cell.keep, cell.analyse) for cell in cells] == [(False, True)] * 3


def test_a_label_with_odd_characters_makes_a_safe_name() -> None:
    cell = one(grid())
    odd = replace(cell, group=Group("../<b>", "a/b c", None))
    assert odd.name.startswith("__b_-a_b_c-seed42-")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methods": {"full": {"options": {"unit": "row"}}}}, "rte, full: method 'full' has no option 'unit'"),
        ({"methods": {"child-tuning-d": {"keep": 2}}}, "rte, child-tuning-d: keep: got 2"),
        ({"common": {"lr": -1}}, "rte, full: lr: got -1"),
        ({"common": {"options": {"unitt": "row"}}}, "has an option 'unitt'; did you mean 'unit'"),
        ({"search": {"lr": [1e-4, 20.0]}}, "rte, full: lr: got 20.0"),
        ({"methods": {"full": {"search": {"lr": 1e-4}}}}, "methods.full: search.lr: got 0.0001, allowed is a list of"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_every_run_is_checked_before_the_first(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(grid(**changed), inputs=False)
