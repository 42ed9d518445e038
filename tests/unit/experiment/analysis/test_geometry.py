"""What moved, layer by layer, against a dense recomputation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subnetune.core.structure import Structure
from subnetune.delta import Delta, load, load_base
from subnetune.delta.adapters import merged_adapters
from subnetune.experiment.analysis import analyse_run, read_analysis
from subnetune.experiment.analysis.parts import layers_of, roles_of
from subnetune.experiment.config import load_config
from subnetune.experiment.rundir import RunDir
from subnetune.select.maskfile import read_mask
from tiny_run import make_root, options, run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("geometry"))


def analysed(root: Path, method: str, **changed: Any) -> tuple[RunDir, dict[str, Any]]:
    path = root / method
    keep = {"keep": 0.3} if method in ("child-tuning-d", "dps-dense") else {"keep": None}
    run(**options(root, method=method, output=str(path), max_steps=4, **{**keep, **changed}))
    folder = RunDir(path)
    analyse_run(folder, load_config(folder.config, {}), deep=False)
    found = read_analysis(path)
    assert set(found) == {"geometry"}
    return folder, found["geometry"]


def dense(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("method", ["child-tuning-d", "full", "bitfit"])
def test_rows_are_those_of_a_dense_recomputation(root: Path, method: str) -> None:
    folder, found = analysed(root, method)
    delta = Delta.load(folder.delta)
    base_model = load_base(str(root / "model"), delta)
    base, tuned = dense(base_model), dense(load(str(root / "model"), folder.path))
    new = tuple(delta.new)
    assert set(new) == {"classifier.weight", "classifier.bias"}
    structure = Structure(base_model)
    mask = read_mask(folder.mask) if folder.mask.is_file() else None
    assert (mask is not None) == (method == "child-tuning-d")
    for rows, places in (("layers", layers_of(structure, new)), ("roles", roles_of(structure, new))):
        assert {row["name"] for row in found[rows]} == set(places.values())
        for row in found[rows]:
            names = [name for name, place in places.items() if place == row["name"]]
            entries = sum(base[name].numel() for name in names)
            assert row["entries"] == entries
            if row["name"] == "head":
                assert (row["moved"], row["distance"], row["norm"], row["largest"]) == (entries, None, None, None)
                assert row["selected"] == entries
                continue
            change = torch.cat([(tuned[name] - base[name]).flatten() for name in names])
            assert row["moved"] == int(change.count_nonzero())
            assert row["distance"] == pytest.approx(float(change.norm()), rel=1e-12)
            assert row["norm"] == pytest.approx(float(torch.cat([base[n].flatten() for n in names]).norm()), rel=1e-12)
            assert row["largest"] == float(change.abs().max())
            if mask is not None:
                whole = sum(tuned[n].numel() for n in names if n not in mask and (tuned[n] != base[n]).any())
                assert row["selected"] == sum(int(mask[n].sum()) for n in names if n in mask) + whole
            else:
                assert (
                    row["selected"]
                    == {"full": entries, "bitfit": sum(base[n].numel() for n in names if "bias" in n)}[method]
                )
    total = found["total"]
    assert total["entries"] == sum(value.numel() for value in base.values())
    assert total["moved"] == sum(row["moved"] for row in found["layers"])
    assert total["distance"] == pytest.approx(math.hypot(*(row["distance"] or 0.0 for row in found["roles"])))
    assert total["selected"] == delta.info.trained
    assert found["why"] == {}


def test_a_mask_that_changes_is_no_static_mask(root: Path) -> None:
    _, found = analysed(root, "dps-dense", cycle=0.5)
    assert found["total"]["selected"] is None
    assert "changes" in found["why"]["selected"]
    assert found["total"]["distance"] > 0


def test_adapters_move_the_weights_that_they_are_merged_into(root: Path) -> None:
    pytest.importorskip("peft")
    folder, found = analysed(root, "lora")
    layers = {row["name"]: row for row in found["layers"]}
    roles = {row["name"]: row for row in found["roles"]}
    assert layers["adapter"]["moved"] == layers["adapter"]["entries"] == roles["adapter"]["entries"] > 0
    assert layers["adapter"]["distance"] is None
    delta = Delta.load(folder.delta)
    base = dense(load_base(str(root / "model"), delta))
    model = load(str(root / "model"), delta)
    with merged_adapters(model):
        tuned = dense(model)
    change = [(tuned[n] - base[n]).flatten() for n in base if n.startswith("bert.encoder.layer.1.")]
    assert layers["layer 1"]["distance"] == pytest.approx(float(torch.cat(change).norm()), rel=1e-9)
    assert layers["layer 1"]["distance"] > 0
    assert layers["layer 1"]["moved"] == 0  # nothing of it is in the delta
    assert found["total"]["distance"] == pytest.approx(roles["linear"]["distance"])
