"""Files keep their bytes, and every value that is not finite is found, however large the finite ones are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from delta_cases import case
from subnetune.core.errors import NumericError
from subnetune.delta import Delta
from subnetune.delta import format as form

GOLDEN = Path(__file__).parent / "golden" / "format_1.safetensors"


def test_the_golden_file_is_written_again_with_the_same_bytes(tmp_path: Path) -> None:
    Delta.load(GOLDEN).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == GOLDEN.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_finite_values_may_be_as_large_as_the_dtype_allows(tmp_path: Path, dtype: torch.dtype) -> None:
    _, _, delta = case()
    most = torch.finfo(dtype).max
    largest = torch.full((9,), most, dtype=torch.float64).to(dtype)  # their sum is infinite
    large = replace(
        delta, new={"head.weight": largest, "head.bias": torch.tensor([most, -most], dtype=torch.float64).to(dtype)}
    )
    large.save(tmp_path / "large")
    assert Delta.load(tmp_path / "large").new["head.weight"].dtype == dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_values_that_are_not_finite_are_counted(monkeypatch, tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    _, _, delta = case()
    monkeypatch.setattr(form, "_PIECE", 8)
    head = torch.ones(30)
    head[[0, 7, 8, 29]] = value  # at the ends of pieces too
    with pytest.raises(NumericError, match=r"values in 'head.weight' \(4\)\. "):
        replace(delta, new={**delta.new, "head.weight": head.to(dtype)}).save(tmp_path / "bad")
    assert not list(tmp_path.iterdir())
