"""Masks, held entries and clipping on two ranks against one process: property 7, and law 1 under DDP and FSDP2."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.table import Case, chosen, mask_now, train
from distributed import job
from forks import side_by_side
from tiny import bits, differing

pytestmark = pytest.mark.xdist_group("two-processes")


Found = tuple[dict[str, Any], dict[str, Any]]


def ranks(folder: Path, checks: tuple[Callable[[int], Any], ...] = job.CHECKS) -> Found:
    """What each of two ranks finds out, by check."""
    side_by_side(job.run, (str(folder), checks), 2)
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2))
    return first, second


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the two ranks found; one job for all tests."""
    return ranks(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def other_masks(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The masks of the cases that the default run leaves out."""
    return ranks(tmp_path_factory.mktemp("other-ranks"), (job.other_masks,))


@pytest.mark.parametrize("case", chosen(job.MASK_CASES, job.by_default))
def test_masks_are_those_of_one_process_on_every_rank(case: Case, request: pytest.FixtureRequest) -> None:
    fixture, check = ("found", "masks") if case in job.DEFAULT_CASES else ("other_masks", "other_masks")
    wanted = job.digests(case)
    for rank in request.getfixturevalue(fixture):
        assert rank[check][case.id] == wanted


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("batches", "selected different entries"),
        ("seed", "differ in seed"),
        ("steps", "differ in steps"),
        ("base", "differ in base"),
        ("base without a selector", "differ in base"),
        ("base of a resumed run", r"differ in base.*\(index 0\)"),
        ("index", r"differ in index.*\(index 0\)"),
        ("resumed", "^nothing$"),
        ("agreed", "^nothing$"),
    ],
)
def test_ranks_that_disagree_are_told_on_both_sides(what: str, words: str, found) -> None:
    for rank in found:
        assert re.search(words, rank["disagreement"][what])


@pytest.mark.parametrize("name", job.REPLICATED)
def test_replicas_agree_and_follow_the_one_process_run(name: str, found) -> None:
    case = job.case_of(name)
    model = case.build(dropout=False)
    tuning = case.tuning(model)
    before = bits(model)  # with what a structural preparation adds
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    ever = {n: m.clone() for n, m in mask_now(tuning).items()}
    for batch in job.halves(case)[0]:
        for n, mask in mask_now(tuning).items():
            ever[n] |= mask
        train(tuning, optimizer, [batch])
    ends = [rank["replicated"][name] for rank in found]
    assert differing(ends[0], ends[1]) == []
    moved = 0
    for n, alone in bits(model).items():
        kept = ~ever[n] if n in ever else torch.full_like(alone, n in tuning.scope.frozen, dtype=torch.bool)
        assert torch.equal(ends[0][n][kept], before[n][kept]), n
        # Means over ranks round differently; Adam's first steps turn the sign of a gradient into a full step of lr.
        assert (ends[0][n] - alone).abs().max() <= 2.1 * job.STEPS * 1e-3
        assert (ends[0][n] - alone).abs().mean() < 1e-5
        moved += int((ends[0][n] != before[n]).sum())
    assert moved > 0


@pytest.mark.parametrize("name", job.DRAWING)
def test_rules_that_run_the_model_twice_or_draw_noise_leave_replicas_equal(name: str, found) -> None:
    before = bits(job.case_of(name).build())
    ends = [rank["drawing"][name] for rank in found]
    assert differing(ends[0], ends[1]) == []
    assert differing(ends[0], before) != []


def test_lean_gradients_have_the_bits_of_dense_ones_on_every_rank(found) -> None:
    for rank in found:
        assert differing(rank["lean"]["dense"]["weights"], rank["lean"]["lean"]["weights"]) == []
        assert rank["lean"]["dense"]["norms"] == rank["lean"]["lean"]["norms"]
    assert differing(found[0]["lean"]["lean"]["weights"], found[1]["lean"]["lean"]["weights"]) == []


def test_primed_replicas_are_equal(found) -> None:
    for name, one in found[0]["primed"].items():
        assert differing(one["weights"], found[1]["primed"][name]["weights"]) == []
        assert one["losses"] == found[1]["primed"][name]["losses"]


def test_wrapping_before_the_scope_froze_anything_is_refused(found) -> None:
    assert all("before wrapping" in rank["wrapped_too_early"] for rank in found)


def assembled(parts: list[dict[str, Any]], name: str) -> Tensor:
    """The whole mask of a tensor from the two ranks' parts."""
    (shape, _, _), _ = parts[0][name]
    mask = torch.zeros(shape, dtype=torch.bool)
    seen = torch.zeros(shape, dtype=torch.int64)
    for part in parts:
        (_, start, _), local = part[name]
        where = tuple(slice(s, s + n) for s, n in zip(start, local.shape, strict=True))
        mask[where] = local
        seen[where] += 1
    assert bool((seen == 1).all()), f"{name}: the shards do not tile the tensor"
    return mask


@pytest.mark.parametrize(
    ("check", "name"),
    [("sharded", n) for n in job.SHARDED] + [("sharded_later", n) for n in job.STARTED_BEFORE],
)
def test_shards_have_the_masks_of_one_process_and_hold_what_they_leave_out(check: str, name: str, found) -> None:
    case = job.case_of(name)
    runs = [rank[check][name] for rank in found]
    model = case.build(dropout=False)
    tuning = case.tuning(model)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
    assert differing(bits(model), runs[0]["weights"][0]) == []
    leaked, moved = 0, 0
    for step, batch in enumerate(job.halves(case)[0]):
        mask = mask_now(tuning)
        assert list(mask) == list(runs[0]["parts"][step])
        before, after = runs[0]["weights"][step], runs[0]["weights"][step + 1]
        for n, there in mask.items():
            assert torch.equal(assembled([run["parts"][step] for run in runs], n), there), (n, step)
            leaked += int((before[n] != after[n])[~there].sum())
            moved += int((before[n] != after[n])[there].sum())
        for n in tuning.scope.frozen:
            assert torch.equal(before[n], after[n])
        tuning.forward(batch).loss.backward()
        norm = tuning.clip(1.0)
        for run in runs:
            assert type(run["norms"][step]) is Tensor
            torch.testing.assert_close(run["norms"][step], norm, rtol=1e-3, atol=0.0)
        tuning.step(optimizer)
        optimizer.zero_grad()
    assert moved > 0
    assert (leaked > 0) == case.row.leaks
    for run in runs:
        assert differing(run["delta"], run["weights"][-1]) == [], "the delta of the shards is not what they trained"
        assert run["digest"] == tuning.mask_digest()
        assert run["trained"] == tuning.describe().trained
