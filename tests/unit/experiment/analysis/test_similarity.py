"""Similarity and effective rank of representations whose values are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from subnetune.experiment.analysis.representations import compare_states
from subnetune.experiment.analysis.similarity import effective_rank, linear_cka


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(drawn(size, size, seed=9)).Q


@pytest.mark.parametrize("shape", [(40, 12), (30, 100)], ids=["long", "wide"])
def test_rotation_shift_and_scale_change_nothing(shape: tuple[int, int]) -> None:
    x = drawn(*shape)
    assert linear_cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(x, 3.0 * x @ rotation(shape[1]) + 5.0) == pytest.approx(1.0, abs=1e-9)


def test_unrelated_representations_are_near_zero_though_they_are_wide() -> None:
    values = [linear_cka(drawn(64, 256, seed=i), drawn(64, 256, seed=100 + i)) for i in range(20)]
    known = torch.tensor([value for value in values if value is not None])
    assert len(known) == 20
    assert abs(float(known.mean())) < 0.03  # the plain estimate gives about 256 / (64 + 256) = 0.8
    assert float(known.abs().max()) < 0.15


def test_it_is_the_unbiased_estimate_by_its_definition() -> None:
    x, y = drawn(9, 5), drawn(9, 4, seed=1) + drawn(9, 5)[:, :4]

    def hsic(a: Tensor, b: Tensor) -> float:  # Song et al. 2012, equation 5
        n = len(a)
        k, m = (g - torch.diag(torch.diag(g)) for g in (a @ a.T, b @ b.T))
        one = torch.ones(n, dtype=torch.float64)
        both = torch.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return float((both - 2 / (n - 2) * one @ k @ m @ one) / (n * (n - 3)))

    assert linear_cka(x, y) == pytest.approx(hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5, abs=1e-12)


def test_the_effective_rank_counts_equal_directions() -> None:
    centred = drawn(8, 3) - drawn(8, 3).mean(0)
    assert effective_rank(torch.linalg.qr(centred).Q) == pytest.approx(3.0, abs=1e-9)
    assert effective_rank(torch.outer(drawn(20, 1)[:, 0], drawn(1, 6)[0])) == pytest.approx(1.0, abs=1e-4)


def test_collapse_shows_and_what_cannot_be_computed_is_null() -> None:
    x = drawn(20, 6)
    flat = x.mean(0, keepdim=True).expand(20, 6)
    one_line = torch.outer(x[:, 0], drawn(1, 6)[0])
    found = compare_states({"layer 0": x, "layer 1": x}, {"layer 0": one_line, "layer 1": flat})
    first, second = found["layers"]
    assert found["examples"] == 20
    assert first["effective_rank_tuned"] < 1.01 < 4 < first["effective_rank_base"]
    assert 0.0 < first["cka"] < 0.9
    assert second["cka"] is None
    assert second["effective_rank_tuned"] is None
    assert compare_states({"layer 0": x[:3]}, {"layer 0": x[:3]})["why"].startswith("3 examples")
    assert compare_states({}, {})["layers"] == []
