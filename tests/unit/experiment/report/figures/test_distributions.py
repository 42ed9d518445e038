"""Scores by seed, and what is there when there is little."""

from __future__ import annotations

from pathlib import Path

from figure_cases import compared, grid, texts

from subnetune.experiment.report.figures.distributions import distributions, stacked


def test_no_two_dots_cover_each_other_and_there_is_no_randomness() -> None:
    assert stacked([0.5, 0.5, 0.5, 0.5], 0.1) == [0.0, 1.0, -1.0, 2.0]
    assert stacked([0.9, 0.1, 0.5], 0.1) == [0.0, 0.0, 0.0]
    assert stacked([0.55, 0.5], 0.1) == [1.0, 0.0]
    assert stacked([], 0.1) == []


def test_one_seed_has_no_range(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", 300): {"full": [0.6], "bitfit": [0.7]}})
    (figure,) = distributions(compared(rows), rows)
    assert figure.table[1] == ("full", "1", "0.6000", "–", "–", "0", "0", "42: 0.6000")
    _, rows = grid(tmp_path, {("rte", 300): {"full": [0.6, 0.62], "bitfit": [0.7, 0.72]}})
    (two,) = distributions(compared(rows), rows)
    assert two.table[1] == ("full", "2", "0.6100", "0.6000", "0.6200", "0", "0", "42: 0.6000, 52: 0.6200")
    assert two.svg.count("opacity: 0.7") == 2  # the lines of the ranges
    assert "opacity: 0.7" not in figure.svg


def test_failed_and_missing_runs_are_counted_and_in_no_mean(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", None): {"full": [0.6, "failed", None], "bitfit": ["failed", "failed", "failed"]}})
    (figure,) = distributions(compared(rows), rows)
    assert figure.table[1][:7] == ("full", "1", "0.6000", "–", "–", "1", "1")
    assert figure.table[2][:7] == ("bitfit", "0", "–", "–", "–", "3", "0")
    assert {"n = 1", "1 failed, 1 missing", "n = 0", "3 failed"} <= {text.strip() for text in texts(figure)}
    assert "failed" in figure.caption


def test_the_mean_is_over_seeds_that_every_task_has(tmp_path: Path) -> None:
    given = {("rte", None): {"full": [0.5, 0.7, 0.9]}, ("mrpc", None): {"full": [0.7, "failed", 0.8]}}
    _, rows = grid(tmp_path, given)  # type: ignore[arg-type]
    comparison = compared(rows)
    figures = {figure.title.split(",")[0]: figure for figure in distributions(comparison, rows)}
    assert list(figures) == ["mean of 2 tasks", "rte", "mrpc"]
    assert figures["mean of 2 tasks"].table[1][-1] == "42: 0.6000, 57: 0.8500"
    mean = next(block for block in comparison.blocks if block.kind == "mean").entries[0].summary
    assert mean.n == 2


def test_a_run_that_learned_nothing_is_hollow(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", None): {"full": [0.53, 0.7]}})
    (figure,) = distributions(compared(rows), rows)
    assert "Hollow" in figure.caption
    assert "always the same answer" in texts(figure)


def test_a_majority_level_far_away_is_written_not_drawn(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", None): {"full": [0.9, 0.91]}})
    (figure,) = distributions(compared(rows), rows)
    assert "← always the same answer: 0.5300" in texts(figure)
    assert "0.6" not in texts(figure)


def test_nothing_to_plot(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", None): {"full": ["failed", None], "bitfit": [None, "failed"]}})
    assert distributions(compared(rows), rows) == []
    assert distributions(compared([*rows[:1]]), []) == []
