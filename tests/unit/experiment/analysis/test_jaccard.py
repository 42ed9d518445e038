"""How much masks agree: by hand, against sets, and what chance gives against drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from subnetune.core.errors import CheckpointError
from subnetune.core.masks import pack
from subnetune.experiment.analysis import overlaps
from subnetune.experiment.analysis.jaccard import MaskFile, Overlap, ones, pairwise
from subnetune.experiment.grid.cells import Group
from subnetune.experiment.grid.folder import CellResult, GridFolder
from subnetune.experiment.grid.rows import Row
from subnetune.select.maskfile import write_mask


def mask_file(path: Path, **masks: Any) -> MaskFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = {name: torch.tensor(values, dtype=torch.bool) for name, values in masks.items()}
    write_mask(path, mask, {name: torch.zeros(values.shape) for name, values in mask.items()})
    return MaskFile(path)


def test_the_index_of_masks_made_by_hand(tmp_path: Path) -> None:
    first = mask_file(tmp_path / "a", w=[[1, 1, 0], [0, 1, 0]], v=[1, 0])
    second = mask_file(tmp_path / "b", w=[[1, 0, 0], [1, 1, 0]], v=[0, 1])
    square = pairwise([first, second])
    # w: 2 of 4 selected entries in both, v: none of 2. By chance 3 * 3 / 6 + 1 * 1 / 2 = 2 are shared, of 8 - 2.
    assert square[0][1] == Overlap(entries=8, first=4, second=4, both=2, expected=2.0)
    assert square[0][1].jaccard == pytest.approx(2 / 6)
    assert square[0][1].chance == pytest.approx(2 / 6)
    assert square[1][0].jaccard == square[0][1].jaccard
    assert square[0][0].jaccard == square[1][1].jaccard == 1.0


def test_tensors_that_only_one_mask_has_do_not_count(tmp_path: Path) -> None:
    first = mask_file(tmp_path / "a", w=[1, 1, 0, 0], extra=[1, 1, 1], shape=[1, 1])
    second = mask_file(tmp_path / "b", w=[1, 0, 0, 0], shape=[[1], [1], [0]])
    third = mask_file(tmp_path / "c", own=[1])
    square = pairwise([first, second, third])
    assert square[0][1] == Overlap(4, 2, 1, 1, 0.5)
    assert (square[1][0].first, square[1][0].second) == (1, 2)
    assert square[0][2].jaccard is None
    assert square[0][2].chance is None


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 8 * (1 << 20) + 77])
def test_bits_are_counted_at_every_length(size: int) -> None:
    random = torch.Generator().manual_seed(size)
    left, right = (torch.rand(size, generator=random) < share for share in (0.3, 0.6))
    assert ones(pack(left).numpy()) == int(left.sum())
    assert ones(pack(left).numpy(), pack(right).numpy()) == int((left & right).sum())


def test_chance_is_what_random_masks_share() -> None:
    random = np.random.default_rng(0)
    sizes = [(60, 18, 30), (400, 40, 120)]  # entries, selected in the first, in the second mask

    def drawn() -> float:
        found = Overlap()
        for entries, first, second in sizes:
            a, b = (set(random.permutation(entries)[:k].tolist()) for k in (first, second))
            found = found.plus(entries, first, second, len(a & b))
        assert found.jaccard is not None
        return found.jaccard

    values = [drawn() for _ in range(2000)]
    expected = Overlap()
    for entries, first, second in sizes:
        expected = expected.plus(entries, first, second, 0)
    error = np.std(values) / np.sqrt(len(values))
    assert expected.chance == pytest.approx(np.mean(values), abs=4 * error)
    assert Overlap().plus(1000, 300, 300, 0).chance == pytest.approx(0.09 / 0.51)


def test_damaged_mask_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"no mask")
    with pytest.raises(CheckpointError, match="not a mask file"):
        MaskFile(tmp_path / "odd")


@pytest.fixture
def folder(tmp_path: Path) -> GridFolder:
    return GridFolder(tmp_path)


def row(folder: GridFolder, task: str, method: str, seed: int, mask: list[int] | None, state: str = "done") -> Row:
    name = f"{task}-{method}-{seed}"
    folder.cell(name).mkdir(parents=True)
    if mask is not None:
        mask_file(folder.run(name).mask, w=mask)
    return Row(Group(task, method, None), seed, name, CellResult(state), {})  # type: ignore[arg-type]


def test_runs_that_differ_in_one_thing_are_compared(folder: GridFolder) -> None:
    rows = [
        row(folder, "rte", "d", 1, [1, 1, 0, 0]),
        row(folder, "rte", "d", 2, [1, 0, 1, 0]),
        row(folder, "rte", "fish", 1, None),
        row(folder, "rte", "fish", 2, [0, 0, 1, 0]),
        row(folder, "mrpc", "d", 1, [0, 0, 1, 1]),
        row(folder, "mrpc", "d", 2, [1, 1, 1, 1], state="failed"),
        row(folder, "rte", "full", 1, None),
        Row(Group("rte", "d", None), 3, "", None, {}),
    ]
    found = overlaps(folder, rows)
    assert found["without"] == ["full"]
    assert found["why"] is None
    seeds, tasks, methods = found["groups"]
    assert seeds | {"jaccard": 0, "chance": 0} == {
        "between": "seeds",
        "task": "rte",
        "method": "d",
        "train_size": None,
        "seed": None,
        "labels": ["1", "2"],
        "density": [0.5, 0.5],
        "jaccard": 0,
        "chance": 0,
    }
    assert seeds["jaccard"][0] == [1.0, pytest.approx(1 / 3)]
    assert seeds["chance"][0][1] == pytest.approx(1 / 3)
    assert (tasks["between"], tasks["task"], tasks["seed"], tasks["labels"]) == ("tasks", None, 1, ["rte", "mrpc"])
    assert tasks["jaccard"] == [[1.0, 0.0], [0.0, 1.0]]
    assert (methods["between"], methods["method"], methods["seed"]) == ("methods", None, 2)
    assert methods["labels"] == ["d", "fish"]
    assert methods["density"] == [0.5, 0.25]
    assert methods["jaccard"][1][0] == 0.5


def test_nothing_to_compare_says_why(folder: GridFolder) -> None:
    found = overlaps(folder, [row(folder, "rte", "d", 1, [1, 0])])
    assert found["groups"] == []
    assert "fewer than two" in found["why"]
