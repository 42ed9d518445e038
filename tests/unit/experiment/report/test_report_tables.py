"""The tables of a report: every cell is there, says its n, and one seed is given no spread and no interval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from made_rows import made_row, made_rows
from report_case import EVIL_ERROR, EVIL_METHOD, EVIL_TASK, FAILED, MISSING, write_grid
from subnetune.experiment.comparison import compare_rows
from subnetune.experiment.grid.cells import Group
from subnetune.experiment.grid.config import GridConfig
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.rows import Row
from subnetune.experiment.report.cells import failed_table, missing_lines, runs_table, search_table, skipped_lines
from subnetune.experiment.report.figures import distributions
from subnetune.experiment.report.glance import coverage_table, glance_table
from subnetune.experiment.report.page import make_page, title_of
from subnetune.experiment.report.reproduce import reproduction, without_folders
from subnetune.experiment.report.source import Runs, read_runs
from subnetune.experiment.report.table import Column, Line, Table, Value, words
from subnetune.experiment.report.tables import budget_table, cost_table, differences_table, scores_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return read_runs(write_grid(tmp_path_factory.mktemp("tables") / "grid").path)


def column(table: Table, name: str) -> list[Value]:
    index = [found.name for found in table.columns].index(name)
    return [line.values[index] for line in table.lines]


def line(table: Table, task: str, method: str) -> dict[str, Value]:
    (found,) = [one for one in table.lines if (one.task, one.method) == (task, method)]
    return cells(table, found)


def cells(table: Table, found: Line) -> dict[str, Value]:
    return dict(zip((column.name for column in table.columns), found.values, strict=True))


def test_every_run_is_a_row_whatever_became_of_it(runs: Runs) -> None:
    table = runs_table(runs.rows)
    states = [value.text for value in column(table, "state")]
    assert len(table.lines) == 4 * 4 * 5
    assert states.count("failed") == len(FAILED)
    assert states.count("missing") == len(MISSING) + 4
    assert [value.text for value in column(table, "score")].count("–") == len(FAILED) + len(MISSING) + 4
    assert "n = 71 of 80 runs" in table.note


def test_a_single_seed_has_no_spread_and_no_interval(runs: Runs) -> None:
    scores = line(scores_table(runs.comparison), EVIL_TASK, EVIL_METHOD)
    assert scores["n"].text == "1"
    assert scores["mean"].text != "–"
    assert scores["std"].text == "–"
    differences = line(differences_table(runs.comparison), EVIL_TASK, EVIL_METHOD)
    assert differences["n"].text == "1"
    assert [differences[name].text for name in ("95 % interval", "p", "p (Holm)", "effect")] == ["–"] * 4
    assert differences["drawn"].forest is not None
    assert differences["drawn"].forest.low is None


def test_differences_are_those_of_the_statistics(runs: Runs) -> None:
    table = differences_table(runs.comparison)
    block = next(one for one in runs.comparison.blocks if one.task == "rte")
    entry = next(one for one in block.entries if one.method == "child-tuning-d")
    assert entry.difference is not None
    found = line(table, "rte", "child-tuning-d")
    assert found["difference"].sort == entry.difference.mean
    assert found["95 % interval"].sort == entry.difference.low
    assert all(one.method != "full" for one in table.lines)
    forest = found["drawn"].forest
    assert forest is not None
    assert forest.low is not None
    assert forest.high is not None
    assert 0 <= forest.low <= forest.mean <= forest.high <= 100


def test_intervals_are_drawn_to_the_scale_of_their_own_task() -> None:
    rows = [
        *made_rows("rte", {"full": [0.5, 0.6, 0.7], "lora": [0.51, 0.62, 0.7]}),
        *made_rows("stsb", {"full": [0.5, 0.6, 0.7], "lora": [0.1, 0.2, 0.4]}),
    ]
    drawn = {one.task: cells(table, one)["drawn"].forest for table in [_differences(rows)] for one in table.lines}
    rte, stsb = drawn["rte"], drawn["stsb"]
    assert rte is not None
    assert stsb is not None
    assert (rte.high, stsb.low) == (98.0, 2.0)


def _differences(rows: list[Row]) -> Table:
    return differences_table(compare_rows(rows, "full"))


def test_failed_and_missing_cells_are_counted_where_scores_are(runs: Runs) -> None:
    table = scores_table(runs.comparison)
    assert line(table, "rte", "bitfit")["failed"].text == "1"
    assert line(table, "stsb", "bitfit")["missing"].text == "2"
    assert line(table, "rte", "full")["no better"].text == "1"


def test_failed_cells_are_listed_with_their_errors(runs: Runs) -> None:
    table = failed_table(runs.rows)
    assert {(one.task, one.method) for one in table.lines} == {key[:2] for key in FAILED}
    assert [value.text for value in column(table, "message")] == [EVIL_ERROR] * 2


def test_missing_cells_are_named_by_their_seeds(runs: Runs) -> None:
    lines = missing_lines(runs.rows)
    assert "stsb, 300 examples, bitfit: seeds 63, 78" in lines
    assert "stsb, 300 examples, full: seed 78" in lines


def test_what_a_search_tried_is_shown_with_what_it_took(runs: Runs) -> None:
    table = search_table(runs)
    taken = [one for one in table.lines if one.values[-1].text == "taken"]
    assert len(table.lines) == 4 * 2 * 3
    assert len(taken) == 4 * 2
    assert runs.grid is not None
    settings = {row.group[:2]: runs.folder.chosen(runs.grid, row.group) for row in runs.searches}
    for one in taken:
        chosen = settings[one.task, one.method]
        assert chosen is not None
        assert cells(table, one)["setting"].text == f"lr {chosen['lr']:g}"


def test_a_failed_search_does_not_hide_what_the_others_trained_on(runs: Runs) -> None:
    first = runs.searches[0]
    assert first.result is not None
    known = replace(first.result, settings={**first.result.settings, "train_examples": 300})
    searches = (
        replace(first, result=CellResult("failed", error={"type": "NumericError", "message": "nan"})),
        replace(first, seed=first.seed + 1, result=known),
    )
    assert "Trained on: 300." in search_table(replace(runs, searches=searches)).note


def test_a_measured_0_is_no_unknown_cost(runs: Runs) -> None:
    rows = made_rows("rte", {"full": [0.5, 0.6], "lora": [0.5, 0.6]}, peak_memory_bytes=0)
    assert [value.text for value in column(cost_table(compare_rows(rows, "full")), "memory")] == ["0 B", "0 B"]


def test_the_best_mean_of_a_column_is_marked(runs: Runs) -> None:
    table = glance_table(runs.comparison)
    for index, block in enumerate([b for b in runs.comparison.blocks if b.kind in ("mean", "task")], start=1):
        means = {entry.method: entry.summary.mean for entry in block.entries if entry.summary.mean is not None}
        best = [one.values[0].text for one in table.lines if one.values[index].tone == "best"]
        assert best == [max(means, key=lambda method: means[method])]
        assert all("n = " in one.values[index].notes[0] for one in table.lines[:-1])


def test_the_state_of_every_cell_has_a_mark(runs: Runs) -> None:
    table = coverage_table(runs.rows)
    marks = "".join(value.text for one in table.lines for value in one.values[1:]).replace(" ", "")
    assert (marks.count("■"), marks.count("×"), marks.count("□")) == (71, 2, 7)


def test_cost_and_budget_have_a_row_for_each_method_on_each_task(runs: Runs) -> None:
    assert len(cost_table(runs.comparison).lines) == len(budget_table(runs.comparison).lines) == 16
    assert line(cost_table(runs.comparison), "rte", "bitfit")["of all"].text == "0.14 %"
    assert "epochs 4" in budget_table(runs.comparison).note
    assert line(budget_table(runs.comparison), "rte", "bitfit")["lr"].text == "0.001"


def test_what_it_takes_to_make_it_again(runs: Runs) -> None:
    found = reproduction(runs, {"results.csv": "a,seconds\n1,2\n"})
    tables = {table.key: table for table in found.tables}
    assert "train_size: [300]" in found.definition
    assert any("subnetune compare --config grid.yaml" in command for _, command in found.commands)
    assert ("model", "minilm") in found.shared
    # One line a task: all its runs stand on the same data and base.
    assert [value.text for value in column(tables["fingerprints"], "task")] == runs.tasks
    assert [value.sort for value in column(tables["fingerprints"], "runs (n)")] == [19, 19, 17, 16]
    assert len(tables["configurations"].lines) == 73
    assert len(tables["hashes"].lines) == 2


def test_no_folder_of_the_machine_is_shown(runs: Runs) -> None:
    assert runs.grid is not None
    files = {"train_file": "/home/me/train.csv", "dev_file": "/home/me/dev.csv"}
    tasks = {"own": {**files, "text": ["a"], "label": "b"}}
    values = {"tasks": tasks, "methods": "full", "data_dir": "/home/me/data", "model": "/home/me/model"}
    values["common"] = {"peft_config": "/home/me/adapter.json"}
    shown = without_folders(GridConfig.from_values(values))
    assert "/home" not in shown.to_yaml()
    assert (shown.model, str(shown.data_dir)) == ("model", "DATA")
    assert shown.tasks["own"]["train_file"] == "train.csv"
    assert without_folders(runs.grid) == runs.grid


def test_messages_name_files_without_their_folders() -> None:
    error = {"type": "DataError", "message": "/home/me/train.csv, line 3: 1 fields"}
    row = Row(Group("rte", "full", None), 1, "a", CellResult("failed", error=error), {})
    assert [value.text for value in column(failed_table([row]), "message")] == ["train.csv, line 3: 1 fields"]
    left = Row(Group("rte", "full", None), 1, "a", CellResult("done", skipped={"analysis": "/home/me/x: damaged"}), {})
    assert skipped_lines([left]) == ["analysis: x: damaged"]


def test_the_title_says_how_many_seeds_each_task_has(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path / "grid")
    for seeds, words_ in ((2, "2 seeds"), ({"rte": 1, "mrpc": 3}, "1 to 3 seeds"), (1, "1 seed")):
        folder.write_grid(GridConfig.from_values({"tasks": "rte,mrpc", "methods": "full,bitfit", "seeds": seeds}))
        assert title_of(read_runs(folder.path)) == f"2 methods on 2 tasks, {words_}"


def test_a_table_whose_rows_do_not_fit_its_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="1 values in 2 columns"):
        Table("x", "x", (Column("a"), Column("b")), (Line((words("1"),)),))


def test_a_grid_that_has_not_begun_has_its_rows(tmp_path: Path) -> None:
    folder = GridFolder(tmp_path / "grid")
    values = {"tasks": "rte", "methods": "full,bitfit", "seeds": 2, "model": "/home/me/model"}
    folder.write_grid(GridConfig.from_values(values))
    found = read_runs(folder.path)
    assert make_page(found, {}).facts[0] == ("Model", "model")
    assert [value.text for value in column(runs_table(found.rows), "state")] == ["missing"] * 4
    assert reproduction(found, {}).commands[0][1].startswith("subnetune compare")


def test_transfer_sets_and_probes_have_rows_and_what_was_left_out_is_said() -> None:
    rows = [
        Row(
            Group("mnli", method, 500),
            seed,
            f"{method}-{seed}",
            CellResult(
                "done",
                metric="accuracy",
                value=value,
                evaluation={"dev": {"accuracy": value}},
                transfer={"hans": {"accuracy": value - 0.2}},
                probes={"cola": {"matthews_correlation": value - 0.4}},
                skipped={"snli": "no such folder"},
            ),
            {},
        )
        for method, value in (("full", 0.7), ("bitfit", 0.65))
        for seed in (42, 52)
    ]
    table = scores_table(compare_rows(rows, "full"))
    assert [value.text for value in column(table, "on")] == [
        *("own split", "own split", "transfer", "transfer", "linear probe", "linear probe")
    ]
    assert [value.text for value in column(table, "mean")] == [
        "0.7000",
        "0.6500",
        "0.5000",
        "0.4500",
        "0.3000",
        "0.2500",
    ]
    elsewhere = glance_table(compare_rows(rows, "full"), elsewhere=True)
    assert [one.name for one in elsewhere.columns[1:]] == [
        "hans (trained on mnli) (accuracy)",
        "cola (probe, trained on mnli) (matthews_correlation)",
    ]
    assert [value.text for value in elsewhere.lines[1].values] == ["bitfit", "0.4500 ± 0.0000", "0.2500 ± 0.0000"]
    plots = [figure.title.partition(", 500")[0] for figure in distributions(compare_rows(rows, "full"), rows)]
    assert plots == ["mnli", "hans (trained on mnli)", "cola (probe, trained on mnli)"]
    assert skipped_lines(rows) == ["snli: no such folder"]
    assert "Train size: 500." in table.note


def test_settings_are_sorted_as_what_they_are() -> None:
    rows = [
        made_row("rte", method, 1, 0.5, settings={"lr": lr, "schedule": schedule})
        for method, lr, schedule in (("full", 1e-4, "linear"), ("ulmfit", 1e-3, "slanted"))
    ]
    kinds = {column.name: column.kind for column in budget_table(compare_rows(rows, "full")).columns}
    assert (kinds["lr"], kinds["schedule"]) == ("number", "text")
