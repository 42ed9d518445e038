"""What makes a comparison uneven is said before any verdict, and runs measured otherwise are not paired."""

from __future__ import annotations

import csv
import io

import pytest

from made_rows import made_row, made_rows
from subnetune.experiment.comparison import compare_rows, statistics_csv
from subnetune.experiment.grid.rows import csv_text
from subnetune.experiment.sheets import as_text
from subnetune.experiment.uneven import uneven

LAST = {"lr": 1e-4, "policy": "last", "steps": 10, "threads": 1, "engine": "packed"}


def test_equal_runs_are_even() -> None:
    rows = [
        made_row("rte", method, seed, 0.5, settings={**LAST, "lr": lr}, environment={"data": "a"})
        for method, lr in (("full", 1e-4), ("bitfit", 1e-3))
        for seed in (1, 2)
    ]
    assert uneven(rows) == ()
    assert uneven([*rows, made_row("mrpc", "full", 1, 0.5, environment={"data": "b"})]) == ()
    assert uneven(made_rows("rte", {"full": [0.5, None, float("nan")]})) == ()


def test_runs_on_other_examples_are_told() -> None:
    rows = [made_row("rte", "full", seed, 0.5, environment={"data": "a"}) for seed in (1, 2)]
    rows += [made_row("rte", "bitfit", seed, 0.6, environment={"data": "b"}) for seed in (1, 2)]
    first = compare_rows(rows, "full").verdicts[0]
    assert first.startswith("Not all runs on rte read the same examples, ")
    assert "2 of full; 2 of bitfit" in first


def test_runs_of_a_method_that_differ_in_more_than_the_seed_are_told() -> None:
    rows = [made_row("rte", "full", 1, 0.5, settings=LAST)]
    rows += [
        made_row("rte", "full", 2, 0.5, settings={**LAST, "lr": 2e-4, "steps": 11, "threads": 2, "engine": "fused"})
    ]
    assert uneven(rows) == ("The runs of full on rte differ in lr (0.0001, 0.0002), not in the seed alone.",)


def test_a_setting_that_some_runs_do_not_say_is_told() -> None:
    said, silent = {**LAST, "gradients": "full", "keep": None}, {name: LAST[name] for name in LAST if name != "steps"}
    rows = [made_row("rte", "full", seed, 0.5, settings=one) for seed, one in ((1, said), (2, silent))]
    assert uneven(rows) == (
        "Not all runs of full on rte say their keep, gradients: they may differ in more than the seed.",
    )
    assert uneven([*rows[:1], made_row("rte", "bitfit", 2, 0.5, settings=silent)]) == ()


def test_the_best_of_several_beside_the_last_is_told() -> None:
    rows = [made_row("rte", "full", 1, 0.5, settings=LAST, size=size) for size in (300, None)]
    rows += [made_row("rte", "bitfit", 1, 0.6, settings={**LAST, "policy": "best"}, size=None)]
    (said,) = uneven(rows)
    assert said.startswith("On rte at all examples bitfit report the best of their evaluations, ")
    assert "and full the score after the last step" in said


@pytest.mark.parametrize("kind", ["transfer", "probes"])
def test_what_was_measured_on_another_part_of_a_set_is_not_paired(kind: str) -> None:
    def row(method: str, seed: int, value: float, cap: int | None) -> object:
        return made_row("mnli", method, seed, value, max_transfer=cap, **{kind: {"hans": {"accuracy": value}}})

    rows = [row("full", seed, 0.5, None) for seed in (1, 2)]
    rows += [row("lora", 1, 0.7, None), row("lora", 2, 0.9, 1000), row("bitfit", 1, 0.6, 1000)]
    found = compare_rows(rows, "full")  # type: ignore[arg-type]
    assert "(examples of each: all: 2 of full, 1 of lora; at most 1000: 1 of lora, 1 of bitfit)" in found.verdicts[0]
    (hans,) = [block for block in found.blocks if block.task.startswith("hans")]
    full, lora, bitfit = hans.entries
    assert (full.summary.n, lora.summary.n, bitfit.summary.n) == (2, 1, 0)
    assert lora.difference is not None
    assert (lora.difference.n, lora.difference.mean) == (1, pytest.approx(0.2))
    assert (lora.missing, bitfit.missing) == (1, 1)
    (own,) = [block for block in found.blocks if block.kind == "task"]
    assert [entry.summary.n for entry in own.entries] == [2, 2, 1], "its own split is whole"


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t"])
def test_a_name_is_no_formula_in_a_sheet(sign: str) -> None:
    name = f"{sign}1+1"
    rows = made_rows(name, {"full": [0.5], name: [0.4]})
    for text in (csv_text(rows), statistics_csv(compare_rows(rows, "full"))):
        found = list(csv.DictReader(io.StringIO(text)))
        assert {row["task"] for row in found} == {f"'{name}"}
        assert [row["method"] for row in found] == ["full", f"'{name}"]
    assert as_text("child-tuning-d") == "child-tuning-d"
    assert found[1]["difference"] == "-0.100000", "numbers stay numbers"
