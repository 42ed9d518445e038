"""Lean gradients on two ranks: the bits of dense ones under DDP and FSDP2; what would let ranks drift is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from distributed import lean_job as job
from forks import side_by_side
from tiny import bits, differing
from tower import tower

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("lean-ranks")]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two ranks found."""
    folder: Path = tmp_path_factory.mktemp("lean")
    side_by_side(job.run, (str(folder),), 2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("check", ["replicated", "checkpointed", "sharded"])
def test_ranks_have_the_bits_of_dense_gradients(check: str, found) -> None:
    for rank in found:
        assert differing(rank[check]["dense"]["weights"], rank[check]["lean"]["weights"]) == []
        assert rank[check]["dense"]["norms"] == rank[check]["lean"]["norms"]
    assert differing(found[0][check]["lean"]["weights"], found[1][check]["lean"]["weights"]) == []


def test_shards_know_the_base(found) -> None:
    base = bits(tower())
    for rank in found:
        for gradients in ("dense", "lean"):
            values = rank["sharded"][gradients]["base"]
            assert len(values) > 5
            assert differing(values, {name: base[name] for name in values}) == []


@pytest.mark.parametrize("check", ["replicated", "checkpointed"])
def test_selected_weight_gradients_are_averaged(check: str, found) -> None:
    ends = [rank[check]["selected"] for rank in found]
    assert differing(ends[0]["weights"], ends[1]["weights"]) == []
    torch.testing.assert_close(ends[0]["norms"], found[0][check]["dense"]["norms"], rtol=1e-4, atol=0.0)


def test_an_overflow_of_one_rank_skips_the_step_of_both(found) -> None:
    for rank in found:
        assert rank["scaled"]["lean"]["happened"] == [True, False, True]
        assert rank["scaled"]["lean"]["scale"] == rank["scaled"]["dense"]["scale"]
        assert differing(rank["scaled"]["dense"]["weights"], rank["scaled"]["lean"]["weights"]) == []
    assert differing(found[0]["scaled"]["lean"]["weights"], found[1]["scaled"]["lean"]["weights"]) == []


def test_what_takes_part_on_some_ranks_alone(found) -> None:
    for rank in found:
        assert differing(rank["absent"]["dense"], rank["absent"]["lean"]) == []
    assert differing(found[0]["absent"]["lean"], found[1]["absent"]["lean"]) == []


def test_what_was_averaged_before_is_not_added_twice_on_some_ranks(found) -> None:
    assert differing(found[0]["measured"], found[1]["measured"]) == []


def test_buffers_are_those_of_rank_0(found) -> None:
    assert found[0]["buffered"]
    assert differing(found[0]["buffered"], found[1]["buffered"]) == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no wrapper", "one of 2 ranks.*wrap the model"),
        ("beside, never seen", "one of 2 ranks"),
        ("beside", "called beside tuning.forward"),
        ("beside, no gradients", "^nothing$"),
        ("static graph", "static_graph=True"),
        ("clip before a scaled step", "averaged in tuning.step"),
        ("unscale before a scaled step", "averaged in tuning.step"),
    ],
)
def test_what_would_let_ranks_drift_apart_is_refused_by_name(what: str, words: str, found) -> None:
    for rank in found:
        assert re.search(words, rank["refusals"][what]), rank["refusals"][what]


def test_a_model_that_is_sharded_too_late_is_refused(found) -> None:
    for rank in found:
        assert "sharded or exchanged after" in rank["sharded"]["late"]
        assert "sharded" in rank["sharded"]["selected"]
