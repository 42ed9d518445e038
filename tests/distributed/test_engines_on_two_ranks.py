"""The engines on two ranks: packed is the reference engine bit for bit, replicated and sharded; fused holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import engines_job as job
from forks import side_by_side
from tiny import differing

# The job of test_two_processes runs what `engine="auto"` chooses in the default run: packed, on both kinds of wrapper.
pytestmark = [pytest.mark.xdist_group("engines-on-two-ranks"), pytest.mark.slow]


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the two ranks found; one job for all tests."""
    folder: Path = tmp_path_factory.mktemp("engines")
    names = tuple(check.__name__ for check in job.CHECKS)
    side_by_side(job.run, (str(folder), names), 2)
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
    return ranks[0], ranks[1]


@pytest.mark.parametrize("name", job.DDP)
def test_replicas_agree_in_every_engine(name: str, found: Any) -> None:
    first, second = (rank["replicated"][name] for rank in found)
    for engine in job.ENGINES:
        assert differing(first[engine], second[engine]) == [], engine
    assert differing(first["reference"], first["packed"]) == []
    close(first["reference"], first["fused"])


def close(wanted: dict[str, Any], got: dict[str, Any]) -> None:
    for tensor, other in zip(wanted.values(), got.values(), strict=True):
        # Runs drift: Adam's first steps turn the rounding of a tiny gradient into up to a step of the learning rate.
        assert (tensor - other).abs().max() <= 2.1 * 3 * 1e-2
        assert (tensor - other).abs().mean() < 1e-6


@pytest.mark.parametrize("order", job.ORDERS)
@pytest.mark.parametrize("name", [*job.SHARDED, job.RANDOM])
def test_shards_are_those_of_the_reference_engine(name: str, order: str, found: Any) -> None:
    for rank in found:
        runs = {e: rank["sharded"].get(f"{name}, {order}, {e}") for e in job.ENGINES}
        reference = runs["reference"] or rank["sharded"][f"{name}, bound first, reference"]
        for engine in ("packed", "fused"):
            if runs[engine] is None:
                assert (name, engine) == (job.RANDOM, "packed")
                continue
            run = runs[engine]
            assert run["index"] == reference["index"] == 3
            assert run["digest"] == reference["digest"]
            assert differing(run["before"], reference["before"]) == []
            assert differing(run["before"], run["after"]) != []
            if engine == "packed":
                assert run["norms"] == reference["norms"]
                assert differing(run["after"], reference["after"]) == []
            else:
                close(reference["after"], run["after"])
                moved = [(a != b) for a, b in zip(run["before"].values(), run["after"].values(), strict=True)]
                same = [
                    (a != b) for a, b in zip(reference["before"].values(), reference["after"].values(), strict=True)
                ]
                apart = sum(int((a != b).sum()) for a, b in zip(moved, same, strict=True))
                assert apart <= 3, "what the fused engine moves is what the reference engine moves"


def test_shards_of_states_are_never_taken_for_the_whole(found: Any) -> None:
    for rank in found:
        told = rank["saved"]
        for engine in ("packed", "fused"):
            assert told[f"{engine} gathered"].startswith("refused: ")
            assert told[f"{engine} own"].startswith("refused: ")
            assert 'engine="reference"' in told[f"{engine} gathered"]
        assert not told["reference gathered"].startswith("refused")
        assert [told[f"{engine} index"] for engine in job.ENGINES] == ["1", "1", "1"]
    assert "(32, 32)" in found[0]["saved"]["reference gathered"]
