"""Priming on two ranks: equal bits on both, by the mean of their gradients; an error of one is an error of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import priming_job as job
from forks import side_by_side
from priming_cases import Two, error, outer, primed, weights
from subnetune.prepare.priming.primer import Primer
from tiny import bits, differing

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("priming-ranks")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks found; one job for all tests."""
    folder: Path = tmp_path_factory.mktemp("priming")
    side_by_side(job.run, (str(folder),), 2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", job.PIECES)
def test_ranks_end_with_the_same_bits_and_say_the_same(name: str, found: list[dict[str, Any]]) -> None:
    one, two = (rank["primings"][name] for rank in found)
    assert differing(one["weights"], two["weights"]) == []
    assert one["losses"] == two["losses"]
    assert one["norms"] == two["norms"]
    assert torch.equal(one["rates"], two["rates"])
    assert bool(one["rates"].any()) == (name == "learned-rates")
    assert differing(one["weights"], bits(Two()))


@pytest.mark.parametrize("name", job.PIECES)
def test_the_step_is_that_of_the_mean_gradient(name: str, found: list[dict[str, Any]]) -> None:
    piece = job.PIECES[name]
    per_rank = [outer(piece, Two(), job.tasks_of(rank)) for rank in range(2)]
    mean = {n: (per_rank[0][n] + per_rank[1][n]) / 2 for n in per_rank[0] if n != "log_rates"}
    norm = torch.cat([g.flatten() for g in mean.values()]).norm()
    assert found[0]["primings"][name]["norms"][0] == pytest.approx(float(norm), rel=1e-12)
    alone, losses = [], []
    for rank in range(2):
        model = Two()
        with Primer(piece, primed(piece, model, job.tasks_of(rank))) as primer:
            losses.append([float(loss) for loss in primer.step()])
        alone.append(weights(model))
    assert found[0]["primings"][name]["losses"][0] == pytest.approx(
        [sum(pair) / 2 for pair in zip(*losses, strict=True)]
    )
    assert error(alone[0], alone[1]) > 1e-6, "the ranks have batches of their own"


def test_what_is_not_finite_on_one_rank_stops_both(found: list[dict[str, Any]]) -> None:
    told = [rank["trouble"] for rank in found]
    assert told[0] == told[1]
    assert "nothing was updated" in told[0]


def test_scores_on_batches_of_one_rank_alone_are_refused_on_both(found: list[dict[str, Any]]) -> None:
    told = [rank["apart"] for rank in found]
    assert told[0] == told[1]
    assert "the ranks selected different entries" in told[0]
