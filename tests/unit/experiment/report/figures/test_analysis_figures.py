"""Overlaps, layers, roles and loss surfaces, with parts of them missing."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from figure_cases import METHODS, geometry, grid, overlaps, scores, texts

from subnetune.experiment.report.figures import analysis
from subnetune.experiment.report.figures.found import averaged, in_order, thinned
from subnetune.experiment.report.figures.heat import opacity
from subnetune.experiment.report.figures.overlap import overlap_figures

NONE: dict[str, Any] = {"groups": [], "without": [], "why": "no masks"}


def only(path: Path, name: str, values: object) -> dict[str, Any]:
    """Return the plots, by kind, of a run of which this is the only analysis."""
    folder, rows = grid(path, {("rte", 300): {"full": [0.6]}})
    (folder.cell(rows[0].name) / "analysis").mkdir(parents=True)
    (folder.cell(rows[0].name) / "analysis" / f"{name}.json").write_text(json.dumps(values))
    return {figure.key.split("-")[0]: figure for figure in analysis(folder, rows, NONE)}


def test_overlaps_have_values_and_chance() -> None:
    seeds, methods = overlap_figures(overlaps(["child-tuning-f", "child-tuning-d", "c"], ["42", "52", "57"]))
    assert texts(seeds).count("0.20") == 3
    assert texts(seeds).count("0.40") == 3
    assert "child-tuning-f (chance 0.18)" in texts(seeds)
    assert ("child-tuning-d", "42", "57", "0.4000", "0.1765") in seeds.table
    assert methods.table[1] == ("rte", "child-tuning-f", "child-tuning-d", "0.1300", "0.0800")
    assert (
        methods.svg.count("font-style: italic") == 1
    )  # one group: the three levels by chance, that differ from pair to pair
    assert {"0.08", "0.11", "0.14"} < set(texts(methods))
    assert "italic" not in seeds.svg + seeds.caption
    assert "0.20, 0.18 by chance" in seeds.caption


@pytest.mark.slow
def test_many_seeds_and_methods_are_several_plots_of_a_bounded_size() -> None:
    found = overlap_figures(overlaps(METHODS, [str(seed) for seed in range(100, 112)]))
    assert len(found) > 2
    assert all(len(figure.svg) < 60_000 for figure in found)
    assert "The first 10 are shown" in found[0].caption


def test_overlaps_that_are_not_known() -> None:
    assert overlap_figures(NONE) == overlap_figures({}) == []
    groups = overlaps(["a", "b"], ["1", "2"])["groups"]
    groups[0]["jaccard"] = [[1.0, None], [None, 1.0]]
    groups[1]["chance"] = [[None, None], [None, None]]
    (seeds, _) = overlap_figures({"groups": groups})
    assert seeds.table[1:] == (("b", "1", "2", "0.4000", "–"),)


def test_layers_in_order_and_means_over_what_is_known() -> None:
    names = ["head", "layer 10", "layer 2", "embeddings", "other", "layer 2"]
    assert in_order(names) == ["embeddings", "layer 2", "layer 10", "head", "other"]
    assert averaged([{"a": 1.0, "b": None}, {"a": 3.0, "b": None}]) == {"a": 2.0}
    assert thinned(["emb.", "0", "1", "2", "3", "head"], 3) == ["emb.", "0", "", "2", "", "head"]
    assert opacity(0) < opacity(0.5) < opacity(1) == opacity(7)


def test_a_run_without_mask_moves_but_selects_nothing(tmp_path: Path) -> None:
    found = only(tmp_path, "geometry", geometry(0, "full"))
    assert set(found) == {"layers", "roles"}
    assert found["layers"].title.endswith("how far each layer moved")
    assert [row[1] for row in found["layers"].table[1:]] == ["distance / norm"]


def test_damaged_and_empty_analyses_are_no_plots(tmp_path: Path) -> None:
    row = {"name": "layer 0", "entries": 0, "selected": None, "moved": 0, "distance": None, "norm": 0.0}
    assert only(tmp_path / "a", "geometry", {"layers": [row, 3, {}], "roles": None}) == {}
    assert only(tmp_path / "b", "cka", {"examples": 3, "layers": [], "why": "3 examples"}) == {}
    assert (
        only(tmp_path / "c", "surface", {"directions": [{"name": "x", "alphas": [0], "loss": [None]}], "plane": {}})
        == {}
    )
    folder, rows = grid(tmp_path / "d", {("rte", 300): {"full": [0.6, "failed", None]}})
    (folder.cell(rows[0].name) / "analysis").mkdir(parents=True)
    (folder.cell(rows[0].name) / "analysis" / "geometry.json").write_text("{")
    assert analysis(folder, rows, NONE) == []


def test_a_plane_with_a_hole_and_a_layer_without_cka(tmp_path: Path) -> None:
    plane = {"x": [0.0, 1.0], "y": [-1.0, 0.0, 1.0], "loss": [[1.0, None], [0.5, 0.25], [1.0, 2.0]]}
    found = only(tmp_path / "a", "surface", {"examples": 4, "directions": [], "plane": plane})
    assert found["plane"].table[1] == ("full", "0.250", "(1, 0)", "0.250", "2.000")
    layers = [{"name": "embeddings", "cka": None, "effective_rank_base": 5.0, "effective_rank_tuned": 4.0}]
    assert set(only(tmp_path / "b", "cka", {"examples": 9, "layers": layers})) == {"cka"}


def test_why_there_is_no_plane_is_said(tmp_path: Path) -> None:
    line = {"name": "base to tuned", "alphas": [0.0, 1.0], "loss": [1.0, 0.5]}
    values = {"examples": 4, "directions": [line], "plane": None, "why": {"plane": "too few examples"}}
    (figure,) = only(tmp_path, "surface", values).values()
    assert figure.caption.endswith("The base has the tuned head. No plane: too few examples.")


def test_how_many_runs_a_plot_is_over_is_said(tmp_path: Path) -> None:
    (figure, _) = only(tmp_path, "geometry", geometry(0, "full")).values()
    assert figure.caption.endswith("One run per method.")


def test_ranks_that_collapse_are_on_a_logarithmic_axis_with_the_bases(tmp_path: Path) -> None:
    ranks = [(200.0, 90.0), (150.0, 8.0), (120.0, 1.5)]
    layers = [
        {"name": f"layer {i}", "cka": 0.5, "effective_rank_base": before, "effective_rank_tuned": after}
        for i, (before, after) in enumerate(ranks)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a logarithmic axis that shall begin at 0
        plot = only(tmp_path, "cka", {"examples": 256, "layers": layers})["cka"]
    assert "effective rank (logarithmic)" in texts(plot)
    assert "100" in texts(plot)


@pytest.mark.slow
def test_nine_methods_stay_small(tmp_path: Path) -> None:
    folder, rows = grid(tmp_path, {("rte", 300): {m: scores(i, 0, 1) for i, m in enumerate(METHODS)}}, steps=2)
    found = analysis(folder, rows, NONE)
    assert len(found) == 5
    assert all(len(figure.svg) < 60_000 for figure in found)
    assert set(METHODS) <= set(texts(found[0]))
