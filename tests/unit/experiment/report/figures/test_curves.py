"""Losses from logs: whole, cut short, or absent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from figure_cases import METHODS, SEEDS, grid

from subnetune.experiment.report.figures.curves import curves
from subnetune.experiment.report.figures.logs import binned, median, read_log, smooth


def test_a_log_that_was_cut_short_or_holds_no_numbers(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    assert read_log(file) == ({}, {})
    lines = [
        '{"step": 2, "loss": 0.5}',
        '{"step": 1, "loss": 0.7}',
        '{"step": 3, "loss": null}',
        "[]",
        '{"loss": 1}',
        '{"step": 4, "loss": NaN}',
        '{"step": 2, "evaluation": {"dev": {"f1": 0.6, "x": null}}}',
        '{"step": 5, "lo',
    ]
    file.write_text("\n".join(lines))  # fmt: skip
    assert read_log(file) == ({1: 0.7, 2: 0.5}, {"dev f1": {2: 0.6}})


def test_parts_have_the_mean_of_their_steps() -> None:
    assert binned({1: 1.0, 2: 3.0, 3: 5.0, 4: 7.0}, 4, 2).tolist() == [2.0, 6.0]
    found = binned({1: 1.0, 4: 7.0}, 8, 4)
    assert found[:2].tolist() == [1.0, 7.0]
    assert np.isnan(found[2:]).all()


def test_smoothing_keeps_the_ends_and_the_gaps() -> None:
    line = np.array([0.0, 3.0, 6.0, np.nan, 12.0])
    assert smooth(line, 1).tolist()[:3] == [0.0, 3.0, 4.5]
    assert np.isnan(smooth(line, 1)[3])
    assert smooth(line, 1)[4] == 12.0
    assert median([np.array([1.0, np.nan]), np.array([3.0, np.nan]), np.array([9.0, np.nan])]).tolist()[0] == 3.0


def test_a_panel_a_method_a_line_a_seed(tmp_path: Path) -> None:
    folder, rows = grid(tmp_path, {("rte", 300): {"full": [0.6, 0.7, "failed"], "bitfit": [0.6, None]}}, steps=30)
    loss, evaluation = curves(folder, rows)
    assert [row[:3] for row in loss.table[1:]] == [
        ("full", "42", "30"), ("full", "52", "30"), ("full", "57 (failed)", "30"), ("bitfit", "42", "30"),
    ]  # fmt: skip
    assert "Dashed" in loss.caption
    assert "penalties and second passes included" in loss.caption  # R-Drop's loss is no cross-entropy
    assert evaluation.table[0][2] == "dev accuracy by step"
    assert len(evaluation.table) == 5


@pytest.mark.slow
def test_a_large_grid_stays_small(tmp_path: Path) -> None:
    folder, rows = grid(tmp_path, {("rte", None): {method: [0.6] for method in METHODS}}, steps=12)
    texts = {row.name: (folder.run(row.name).log).read_text() for row in rows}
    many = [(seed, row) for row in rows for seed in SEEDS]
    rows = [type(row)(row.group, seed, f"{row.name}-{seed}", row.result, {}) for seed, row in many]
    for row in rows:
        folder.cell(row.name).mkdir()
        folder.run(row.name).log.write_text(texts[row.name.rpartition("-")[0]])
    assert all(len(figure.svg) < 60_000 for figure in curves(folder, rows))


@pytest.mark.parametrize("text", [None, "", json.dumps({"step": 1, "loss": None})])
def test_nothing_to_plot(tmp_path: Path, text: str | None) -> None:
    folder, rows = grid(tmp_path, {("rte", None): {"full": [0.6, "failed", None]}})
    if text is not None:
        for row in rows:
            folder.cell(row.name).mkdir(parents=True)
            folder.run(row.name).log.write_text(text)
    assert curves(folder, rows) == []
    assert curves(folder, []) == []


def test_one_step_is_a_plot_too(tmp_path: Path) -> None:
    folder, rows = grid(tmp_path, {("rte", None): {"full": [0.6]}})
    folder.cell(rows[0].name).mkdir(parents=True)
    folder.run(rows[0].name).log.write_text('{"step": 1, "loss": 0.7}\n')
    (figure,) = curves(folder, rows)
    assert figure.table[1] == ("full", "42", "1", "0.7000", "0.7000", "0.7000")
