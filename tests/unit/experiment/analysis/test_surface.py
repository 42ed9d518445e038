"""The loss around a solution: right at its ends, and nothing left behind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from subnetune.core.errors import CheckpointError
from subnetune.delta import Delta, load, load_base
from subnetune.experiment.analysis import analyse_run, read_analysis
from subnetune.experiment.analysis.directions import Landscape, filter_normalised
from subnetune.experiment.analysis.solution import Solution, solution
from subnetune.experiment.analysis.surface import ACROSS, ALONG, PLANE_X, PLANE_Y
from subnetune.experiment.config import load_config
from subnetune.experiment.data import Collator, encode
from subnetune.experiment.evaluate import predict_logits
from subnetune.experiment.rundir import RunDir
from subnetune.experiment.session import load_data, load_tokenizer
from tiny import bits, differing
from tiny_run import make_root, options, run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_root(tmp_path_factory.mktemp("surface"))
    run(**options(folder, eval_batch_size=4))
    return folder


def states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


@pytest.fixture(scope="module")
def analysis(root: Path) -> dict[str, Any]:
    folder = RunDir(root / "run")
    before = states()
    analyse_run(folder, load_config(folder.config, {}), deep=True)
    assert states() == before
    return read_analysis(folder.path)


def direct_loss(root: Path, model: torch.nn.Module) -> tuple[float, float]:
    """Return cross-entropy and accuracy on the whole dev file, which is smaller than any draw."""
    config = load_config(root / "run" / "config.yaml", {})
    data = load_data(config)
    tokenizer = load_tokenizer(config, root / "run" / "tokenizer")
    encoded = encode(data.evaluation["dev"], data.task, tokenizer, config.max_length)
    logits = predict_logits(model, encoded, Collator(tokenizer, torch.device("cpu")), 4)
    assert encoded.labels is not None
    right = (logits.argmax(1) == encoded.labels).double().mean()
    return float(torch.nn.functional.cross_entropy(logits, encoded.labels)), float(right)


def test_the_ends_of_the_line_are_base_and_solution(root: Path, analysis: dict[str, Any]) -> None:
    surface = analysis["surface"]
    assert surface["examples"] == 11
    line, across = surface["directions"]
    assert (line["name"], across["name"]) == ("base to tuned", "random, filter-normalised")
    assert (line["alphas"], across["alphas"]) == (list(ALONG), list(ACROSS))
    assert line["metric_name"] == "accuracy"
    tuned = load(str(root / "model"), root / "run")
    delta = Delta.load(root / "run")
    base = load_base(str(root / "model"), delta)
    with torch.no_grad():
        for name, values in delta.new.items():
            base.get_parameter(name).copy_(values)  # the head stays tuned
    for at, model in ((0.0, base), (1.0, tuned)):
        loss, accuracy = direct_loss(root, model)
        assert line["loss"][ALONG.index(at)] == pytest.approx(loss, rel=1e-5)
        assert line["metric"][ALONG.index(at)] == pytest.approx(accuracy)
    assert across["loss"][ACROSS.index(0.0)] == line["loss"][ALONG.index(1.0)]
    assert len(set(line["loss"])) == len(ALONG)
    assert len(set(across["loss"])) == len(ACROSS)


def test_the_plane_holds_both_lines(analysis: dict[str, Any]) -> None:
    plane, (line, across) = analysis["surface"]["plane"], analysis["surface"]["directions"]
    assert (plane["x"], plane["y"], plane["examples"]) == (list(PLANE_X), list(PLANE_Y), 11)
    assert [len(row) for row in plane["loss"]] == [7] * 7
    assert plane["loss"][PLANE_Y.index(0.0)] == [line["loss"][ALONG.index(x)] for x in PLANE_X]
    column = [row[PLANE_X.index(1.0)] for row in plane["loss"]]
    assert column == [across["loss"][ACROSS.index(y)] for y in PLANE_Y]
    assert len({value for row in plane["loss"] for value in row}) == 49


def test_layers_are_compared_with_the_base(analysis: dict[str, Any]) -> None:
    cka = analysis["cka"]
    assert cka["examples"] == 11
    assert [row["name"] for row in cka["layers"]] == ["embeddings", "layer 0", "layer 1"]
    assert cka["layers"][0]["cka"] == pytest.approx(1.0)  # the embeddings are frozen
    for row in cka["layers"][1:]:
        assert 0.5 < row["cka"] < 0.9999
        assert 1.0 < row["effective_rank_base"] <= 10.0
        assert 1.0 < row["effective_rank_tuned"] <= 10.0


def test_it_is_the_same_twice(root: Path, analysis: dict[str, Any]) -> None:
    folder = RunDir(root / "run")
    files = sorted((folder.path / "analysis").iterdir())
    assert [file.name for file in files] == ["cka.json", "geometry.json", "surface.json"]
    before = [file.read_bytes() for file in files]
    analyse_run(folder, load_config(folder.config, {}), deep=True)
    assert [file.read_bytes() for file in files] == before


def test_weights_are_put_back_bit_for_bit(root: Path) -> None:
    delta = Delta.load(root / "run")
    model = load_base(str(root / "model"), delta)
    base = bits(model)
    with solution(delta, model) as at:
        tuned = bits(model)
        assert set(differing(base, tuned)) == {*delta.touched, *delta.new}
        with Landscape(model, at.base, tuple(delta.new), 1) as landscape:
            landscape.go(0.3, 0.4)
            everywhere = set(differing(tuned, bits(model)))
            matrices = {name for name, value in tuned.items() if value.dim() > 1}
            assert everywhere >= matrices - set(delta.new)
            assert not everywhere & set(delta.new)
            landscape.go(0.0)
            assert differing(base, bits(model)) == [name for name in base if name in delta.new]
            landscape.go(1.0, -0.2)
            landscape.go(1.0)
            assert differing(tuned, bits(model)) == []
            landscape.go(1.3, 0.7)
        assert differing(tuned, bits(model)) == []
    assert differing(base, bits(model)) == []


def test_an_error_in_the_middle_puts_the_weights_back(root: Path) -> None:
    delta = Delta.load(root / "run")
    model = load_base(str(root / "model"), delta)
    base = bits(model)

    def fails(at: Solution) -> None:
        tuned = bits(model)
        try:
            with Landscape(model, at.base, tuple(delta.new), 1) as landscape:
                landscape.go(0.3, 0.4)
                raise RuntimeError("in the middle")
        finally:
            assert differing(tuned, bits(model)) == []

    with pytest.raises(RuntimeError, match="in the middle"), solution(delta, model) as at:
        fails(at)
    assert differing(base, bits(model)) == []


def test_random_rows_have_the_norms_of_the_weights() -> None:
    weights = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    state = torch.get_rng_state()
    found = filter_normalised(weights, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert found is not None
    assert found.norm(dim=1) == pytest.approx(weights.norm(dim=1))
    assert torch.equal(found, filter_normalised(weights, 7))  # type: ignore[arg-type]
    assert not torch.equal(found, filter_normalised(weights, 8))  # type: ignore[arg-type]
    columns = filter_normalised(weights, 7, columns=True)
    assert columns is not None
    assert columns.norm(dim=0) == pytest.approx(weights.norm(dim=0))
    assert filter_normalised(weights[0], 7) is None


@pytest.mark.parametrize("case", ["lora", "regression", "head alone"])
def test_other_runs_are_analysed_too(root: Path, case: str) -> None:
    changed: dict[str, Any] = {"max_steps": 2, "keep": None}
    if case == "lora":
        pytest.importorskip("peft")
        changed |= {"method": "lora"}
    elif case == "regression":
        for name in ("train", "dev"):
            lines = (root / f"{name}.csv").read_text().replace(",negated", ",1.5").replace(",plain", ",0.25")
            (root / f"{name}-scores.csv").write_text(lines)
        files = {"train_file": str(root / "train-scores.csv"), "dev_file": str(root / "dev-scores.csv")}
        changed |= {"method": "bitfit", "regression": True, **files}
    else:
        changed |= {"method": "head-only"}
    folder = RunDir(root / case.replace(" ", "-"))
    run(**options(root, output=str(folder.path), **changed))
    analyse_run(folder, load_config(folder.config, {}), deep=True)
    found = read_analysis(folder.path)
    directions = {line["name"]: line for line in found["surface"]["directions"]}
    assert all(loss > 0 for line in directions.values() for loss in line["loss"])
    if case == "head alone":
        assert set(directions) == {"random, filter-normalised"}
        assert found["surface"]["plane"] is None
        assert "head" in found["surface"]["why"]["plane"]
        assert found["geometry"]["total"]["distance"] == 0.0
        assert found["cka"]["layers"][1]["cka"] == pytest.approx(1.0)
    else:
        assert len(set(directions["base to tuned"]["loss"])) > 5
        assert found["surface"]["plane"] is not None
        assert directions["base to tuned"]["metric_name"] == {"lora": "accuracy"}.get(case, "pearson_spearman")


def test_adapters_that_cannot_be_merged_leave_nulls_that_say_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft")

    def refuse(model: torch.nn.Module) -> None:
        raise CheckpointError("this kind cannot be merged")

    monkeypatch.setattr("subnetune.experiment.analysis.solution.merged_adapters", refuse)
    folder = RunDir(root / "unmerged")
    run(**options(root, output=str(folder.path), max_steps=1, keep=None, method="lora"))
    analyse_run(folder, load_config(folder.config, {}), deep=True)
    found = read_analysis(folder.path)
    rows = {row["name"]: row for row in found["geometry"]["layers"]}
    assert found["geometry"]["why"]["distance"] == "this kind cannot be merged"
    assert rows["layer 0"]["distance"] is rows["layer 0"]["largest"] is found["geometry"]["total"]["distance"] is None
    assert rows["embeddings"]["distance"] == 0.0
    assert found["surface"]["directions"] == []
    assert found["surface"]["why"]["all"] == "this kind cannot be merged"
    assert len(found["cka"]["layers"]) == 3
