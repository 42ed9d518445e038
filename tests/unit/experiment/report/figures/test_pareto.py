"""The front of cost and quality, labels, and ticks in units that people read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from figure_cases import METHODS, compared, grid, scores

from subnetune.experiment.report.figures.costs import byte_ticks, limits, seconds, time_ticks
from subnetune.experiment.report.figures.pareto import front, mixed_machines, pareto


def test_the_front_has_what_no_other_beats() -> None:
    points = {"slow": (9.0, 0.9), "mid": (5.0, 0.8), "worse": (6.0, 0.7), "cheap": (1.0, 0.5), "dear": (9.0, 0.85)}
    assert front(points) == ["cheap", "mid", "slow"]
    assert front({"a": (1.0, 0.5), "b": (1.0, 0.5)}) == ["a", "b"]
    assert front({"a": (1.0, 0.5), "b": (2.0, 0.5)}) == ["a"]
    assert front({}) == []


def test_three_costs_and_their_fronts(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", 300): {m: scores(i, 0, 2) for i, m in enumerate(METHODS)}})
    (figure,) = pareto(compared(rows), rows)
    assert [row[0] for row in figure.table[1:]] == list(METHODS)
    assert figure.table[1][2:5] == ("60.0 s", "900 MB", "88 MB")
    assert "Times" not in figure.caption


def test_unknown_costs_are_left_out(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", 300): {"full": [0.6], "bitfit": [0.7]}})
    rows = [replace(row, result=replace(row.result, peak_memory_bytes=None)) for row in rows if row.result]
    (figure,) = pareto(compared(rows), rows)
    assert "memory" not in figure.svg
    assert figure.table[1][3] == "–"


def test_who_is_not_in_a_panel_is_said(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", 300): {"full": [0.6], "bitfit": [0.7], "lora": [0.8]}})
    assert rows[2].result is not None
    rows[2] = replace(rows[2], result=replace(rows[2].result, peak_memory_bytes=None))
    (figure,) = pareto(compared(rows), rows)
    assert "Not in the panel of memory, because unknown or 0: lora." in figure.caption
    assert figure.caption.count("Not in the panel") == 1


def test_one_method_or_none_is_no_comparison(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", 300): {"full": [0.6], "bitfit": ["failed"], "lora": [None]}})
    assert pareto(compared(rows), rows) == []


def test_seconds_of_different_machines_are_pointed_out(tmp_path: Path) -> None:
    _, rows = grid(tmp_path, {("rte", 300): {"full": [0.6], "bitfit": [0.7]}})
    assert mixed_machines(rows) == ""
    assert rows[1].result is not None
    rows[1] = replace(rows[1], result=replace(rows[1].result, environment={"device": "cuda", "threads": 1}))
    assert (
        mixed_machines(rows)
        == "runs had different devices (cpu, cuda) and runs had different numbers of threads (1, 2)"
    )
    assert "Times are not of one kind" in pareto(compared(rows), rows)[0].caption


@pytest.mark.parametrize("values", [(1.0, 1.0), (1.0, 3.0), (0.2, 5000.0), (5e-4, 9e5)])
def test_ticks_lie_within_the_axis_and_are_few(values: tuple[float, float]) -> None:
    low, high = limits(values)
    assert low < min(values)
    assert max(values) < high
    assert high / low >= 1.99
    for ticks, words in (time_ticks(low, high), byte_ticks(low * 1e4, high * 1e4)):
        assert 2 <= len(ticks) <= 6
        assert len(words) == len(set(words)) == len(ticks)
        assert ticks == sorted(ticks)


def test_seconds_in_the_unit_that_is_short() -> None:
    assert [seconds(value) for value in (0.5, 30.0, 120.0, 5400.0, 172800.0)] == [
        "0.5 s",
        "30 s",
        "2 min",
        "1.5 h",
        "2 d",
    ]
