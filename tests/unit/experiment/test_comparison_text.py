"""Tables as text, Markdown and CSV: what stands in them, and what names cannot do to them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt

from made_rows import made_rows
from subnetune.experiment.comparison import compare_rows, markdown_tables, statistics_csv, table_text
from subnetune.experiment.comparison_text import COLUMNS, HEAD
from subnetune.experiment.grid.rows import Row

FAILED = float("nan")


def example() -> list[Row]:
    scores = {"full": [0.6, 0.7, 0.8], "lora": [0.62, 0.73, None], "bitfit": [0.5271, FAILED, 0.6001]}
    return made_rows("rte", scores, majority=0.5271)


def test_the_table_of_a_terminal() -> None:
    text = table_text(compare_rows(example(), "full"))
    title, head, rule, full, lora, bitfit = text.splitlines()[:6]
    assert title == "rte, 500 training examples: accuracy, majority level 0.5271, 1 of 9 runs missing"
    assert [part.strip() for part in head.split("  ") if part.strip()] == list(HEAD)
    assert len({len(line) for line in (head, rule, full, lora, bitfit)}) == 1, "columns are aligned"
    assert full.split() == "full 3 0.7000 0.1000 0.6000 0.8000 0.7000 0 0 - - - - -".split()
    assert lora.split() == "lora 2 0.6750 0.0778 0.6200 0.7300 0.6750 0 0 2 +2.50 +2.00 to +3.00 1.0000 +3.54".split()
    assert bitfit.split()[:9] == "bitfit 2 0.5636 0.0516 0.5271 0.6001 0.5636 1 1".split()
    assert text.endswith("failed and has no score.\n")
    assert "1 of 9 cells is missing, 1 failed: what follows is incomplete." in text


def test_one_seed_has_no_interval_in_the_table() -> None:
    lora = table_text(compare_rows(made_rows("rte", {"full": [0.5], "lora": [0.6]}), "full")).splitlines()[4]
    assert lora.split() == "lora 1 0.6000 - 0.6000 0.6000 0.6000 0 - 1 +10.00 - - -".split()


def test_the_mean_over_tasks_counts_no_runs_at_a_majority_level() -> None:
    rows = made_rows("rte", {"full": [0.5]}, majority=0.5) + made_rows("mrpc", {"full": [None]}, majority=0.5)
    lines = table_text(compare_rows(rows, "full")).splitlines()
    assert lines[0] == "mean of 2 tasks, 500 training examples: accuracy, 1 of 1 seeds missing"
    assert lines[3].split() == "full 0 - - - - - 0 - - - - - -".split()


def test_scores_alone_decide_the_bytes() -> None:
    rows = example()
    slower = [
        replace(row, result=replace(row.result, seconds=99.0, peak_memory_bytes=10**9)) if row.result else row
        for row in rows
    ]
    first, second = compare_rows(rows, "full"), compare_rows(slower, "full")
    assert table_text(first) == table_text(second)
    assert markdown_tables(first) == markdown_tables(second)
    tables = [list(csv.DictReader(io.StringIO(statistics_csv(found)))) for found in (first, second)]
    differing = {name for one, other in zip(*tables, strict=True) for name in one if one[name] != other[name]}
    assert differing == {"seconds", "peak_memory_bytes"}


def test_csv_has_everything_with_six_decimals() -> None:
    full, lora, bitfit = csv.DictReader(io.StringIO(statistics_csv(compare_rows(example(), "full"))))
    assert list(full) == list(COLUMNS)
    assert (full["kind"], full["task"], full["train_size"], full["metric"]) == ("task", "rte", "500", "accuracy")
    assert (full["majority"], full["mean"], full["std"]) == ("0.527100", "0.700000", "0.100000")
    assert full["pairs"] == full["difference"] == full["wins"] == ""
    assert (lora["pairs"], lora["difference"], lora["p"], lora["p_holm"]) == ("2", "0.025000", "0.500000", "1.000000")
    assert (lora["expected"], lora["missing"], lora["n"]) == ("3", "1", "2")
    assert (lora["ci_low"], lora["ci_high"], lora["wins"]) == ("0.020000", "0.030000", "2")
    assert (bitfit["failed"], bitfit["at_majority"], bitfit["min"]) == ("1", "1", "0.527100")
    assert (full["trained"], full["total"], full["delta_bytes"]) == ("10", "100", "40.000000")
    assert (full["seconds"], full["peak_memory_bytes"]) == ("1.500000", "7.000000")


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a|b", "a\\|b", "`x`", "_x_ *y* [z](w)", "&lt;", "$\\alpha$ ![x](y)"]
)
def test_names_stay_text_in_markdown(name: str) -> None:
    rows = made_rows(name, {"full": [0.5, 0.6], name: [0.6, 0.7]})
    text = markdown_tables(compare_rows(rows, "full"))
    assert not set("<>") & set(text), "no renderer finds a tag"
    html = MarkdownIt("commonmark").enable("table").render(text)
    shown = html.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"')
    assert "<script" not in html
    assert "<em>" not in html
    assert "<a " not in html
    assert "<code>" not in html
    assert html.count("<td") == 2 * len(HEAD), "no name makes a cell more"
    assert f"{name.replace('&', '&amp;')}</td>" in shown
    assert f"<h3>{name.replace('&', '&amp;')}, 500 training examples</h3>" in shown
    assert html.count("<table>") == 1


def test_names_neither_break_lines_nor_command_a_terminal() -> None:
    rows = made_rows("a\nb\x1b[31m", {"full": [0.5], "x\ty": [0.6]})
    text = table_text(compare_rows(rows, "full"))
    assert text.startswith("a?b?[31m, 500 training examples: accuracy\n")
    assert "\x1b" not in text
    assert "x?y" in text


def test_an_empty_grid_has_a_text_too() -> None:
    found = compare_rows([], "full")
    assert table_text(found) == "Nothing can be said: of 0 cells 0 are missing and 0 failed.\n"
    assert markdown_tables(found) == "- Nothing can be said: of 0 cells 0 are missing and 0 failed.\n"
    assert statistics_csv(found).splitlines() == [",".join(COLUMNS)]
