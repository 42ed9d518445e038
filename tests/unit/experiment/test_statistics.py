"""Statistics against computations of a few lines that share nothing with them, and against cases made by hand."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetune.experiment.statistics import Difference, holm, paired, smallest_p, summarise


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def pairs_of(differences: list[float]) -> Difference:
    return paired(by_seed(differences), by_seed([0.0] * len(differences)))


# -- summaries --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
def test_summary_equals_numpy(n: int) -> None:
    values = [random.Random(n).random() for _ in range(n)]
    found = summarise(values)
    assert found.n == n
    assert found.mean == pytest.approx(np.mean(values), abs=1e-15)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert (found.minimum, found.maximum) == (min(values), max(values))
    cut = n // 4
    assert found.iqm == pytest.approx(np.mean(sorted(values)[cut : n - cut]), abs=1e-15)


def test_the_interquartile_mean_leaves_out_the_run_that_collapsed() -> None:
    assert summarise([0.7, 0.5, 0.6, 0.0, 0.7]).iqm == pytest.approx(0.6)  # of 0.5, 0.6, 0.7
    assert summarise([0.7, 0.5, 0.0]).iqm == pytest.approx(0.4)  # of three none is cut


def test_identical_runs_have_their_value_exactly_and_no_spread() -> None:
    found = summarise([0.7] * 3)
    assert (found.mean, found.std, found.minimum, found.maximum) == (0.7, 0.0, 0.7, 0.7)


def test_one_run_has_no_spread_and_none_has_nothing() -> None:
    assert summarise([0.7], failed=2, at_majority=1) == (1, 0.7, None, 0.7, 0.7, 0.7, 2, 1)
    assert summarise([], failed=3) == (0, None, None, None, None, None, 3, 0)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        summarise([0.5, wrong])
    with pytest.raises(ValueError, match="finite"):
        paired({1: wrong, 2: 0.1}, {1: 0.5, 2: 0.1})


# -- pairs ------------------------------------------------------------------------------------------------------------


def exact_p(differences: list[Fraction]) -> float:
    """The share of all sign flips whose sum is at least as far from 0, in whole numbers."""
    seen = abs(sum(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    return sum(abs(sum(s * d for s, d in zip(flip, differences, strict=True))) >= seen for flip in flips) / len(flips)


@pytest.mark.parametrize("n", range(2, 11))
@pytest.mark.parametrize("spread", [2, 40], ids=["ties", "few-ties"])
def test_p_counts_all_sign_flips(n: int, spread: int) -> None:
    draw = random.Random(100 * n + spread)
    ours, theirs = ([Fraction(150 + draw.randint(-spread, spread), 277) for _ in range(n)] for _ in range(2))
    found = paired(by_seed([float(x) for x in ours]), by_seed([float(x) for x in theirs]))
    assert found.p == pytest.approx(exact_p([a - b for a, b in zip(ours, theirs, strict=True)]), abs=1e-15)


def test_p_of_many_pairs_is_drawn_and_near_the_exact_one() -> None:
    draw = np.random.default_rng(3)
    differences = draw.normal(0.8, 1.0, 15)
    signs = np.array(list(itertools.product((1, -1), repeat=15)))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    found = pairs_of(list(differences))
    assert found.p is not None
    assert 0.05 < exact < 0.6, "an example that says something"
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact / 9999))


def test_mean_effect_and_counts() -> None:
    found = paired({1: 0.75, 2: 0.5, 3: 0.625, 4: 0.25}, {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5})
    assert found.mean == 0.03125  # of 0.25, 0, 0.125, -0.25
    assert found.effect == pytest.approx(0.03125 / np.std([0.25, 0, 0.125, -0.25], ddof=1))
    assert (found.n, found.wins, found.ties, found.losses) == (4, 2, 1, 1)
    assert found.p_holm is None


def test_scores_that_differ_in_their_last_bit_are_tied() -> None:
    assert 0.1 + 0.2 != 0.3
    found = paired({1: 0.1 + 0.2, 2: 0.5}, {1: 0.3, 2: 0.5})
    assert (found.wins, found.ties, found.losses, found.p, found.effect) == (0, 2, 0, 1.0, None)


def test_only_seeds_that_both_have_are_paired() -> None:
    assert paired({1: 0.75, 2: 1.0, 5: 0.5}, {5: 0.25, 1: 0.25, 9: 0.0})[:2] == (2, 0.375)


def test_no_pair_and_one_pair_have_neither_interval_nor_p() -> None:
    assert paired({1: 0.5}, {2: 0.5}) == (0, None, None, None, None, None, None, 0, 0, 0)
    assert paired({1: 0.75}, {1: 0.5}) == (1, 0.25, None, None, None, None, None, 1, 0, 0)


def test_identical_runs_differ_by_nothing() -> None:
    scores = by_seed([0.6, 0.7, 0.8])
    assert paired(scores, scores) == (3, 0.0, None, None, 1.0, None, None, 0, 3, 0)


def test_equal_differences_have_neither_interval_nor_effect() -> None:
    """What did not vary says nothing about how much it would: a point as interval would be certainty from nothing."""
    found = paired(by_seed([0.6, 0.7, 0.8, 0.65]), by_seed([0.5, 0.6, 0.7, 0.55]))
    assert found.mean == pytest.approx(0.1)
    assert (found.low, found.high) == (None, None)
    assert (found.effect, found.wins) == (None, 4)
    assert found.p == 2 / 2**4


@pytest.mark.parametrize("collapsed", [0, 1], ids=["no-run-collapsed", "a-run-collapsed"])
def test_the_interval_is_that_of_a_plain_bootstrap(collapsed: int) -> None:
    differences = np.random.default_rng(1).normal(0.01, 0.02, 10) - 0.2 * (np.arange(10) < collapsed)
    found = pairs_of(list(differences))
    means = differences[np.random.default_rng(2).integers(0, 10, (100_000, 10))].mean(axis=1)
    error = differences.std(ddof=1) / math.sqrt(10)
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.1 * error)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "share"), [(3, 0.75), (5, 0.83), (10, 0.90)])
def test_how_often_the_interval_holds_the_mean_of_normal_differences(seeds: int, share: float) -> None:
    draws = np.random.default_rng(seeds).normal(0.0, 0.02, (1000, seeds))
    found = [pairs_of(list(differences)) for differences in draws]
    held = sum(one.low <= 0.0 <= one.high for one in found if one.low is not None and one.high is not None)
    assert held / 1000 == pytest.approx(share, abs=0.03)


def test_the_same_numbers_give_the_same_bits_in_any_order() -> None:
    ours, theirs = {s: math.sin(s) / 9 for s in range(9)}, {s: math.cos(s) / 9 for s in range(9)}
    first = paired(ours, theirs)
    np.random.seed(5)
    shuffled = {seed: ours[seed] for seed in (4, 2, 8, 0, 6, 1, 7, 3, 5)}
    assert paired(shuffled, dict(reversed(theirs.items()))) == first
    assert summarise(list(shuffled.values())) == summarise(list(ours.values()))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-277, 277), min_size=2, max_size=6))
def test_no_number_is_ever_nan_and_the_interval_lies_within_what_was_seen(counts: list[int]) -> None:
    differences = [count / 277 for count in counts]
    found = pairs_of(differences)
    assert all(math.isfinite(value) for value in found if value is not None)
    assert (found.low is None) == (found.high is None) == (len(set(counts)) == 1)
    if found.low is not None and found.high is not None:
        assert min(differences) - 1e-12 <= found.low <= found.high <= max(differences) + 1e-12
    assert found.p is not None
    assert smallest_p(len(differences)) <= found.p <= 1


@pytest.mark.parametrize("n", [2, 5, 6, 10])
def test_the_least_p_is_that_of_differences_of_one_sign(n: int) -> None:
    assert pairs_of([0.01 * (1 + i) for i in range(n)]).p == smallest_p(n) == 2 / 2**n


def test_the_least_p_of_draws_is_never_zero() -> None:
    assert pairs_of([0.01 * (1 + i) for i in range(30)]).p == pytest.approx(smallest_p(30), rel=1e-12)


# -- Holm -------------------------------------------------------------------------------------------------------------


def with_p(*values: float | None) -> list[Difference]:
    return [Difference(2, 0.0, 0.0, 0.0, p, None, None, 0, 0, 0) for p in values]


@pytest.mark.parametrize(
    ("values", "corrected"),
    [
        # 0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 is raised to the one before it
        ((0.01, 0.04, 0.03, 0.005), (0.03, 0.06, 0.06, 0.02)),
        ((0.01, None, 0.04), (0.02, None, 0.04)),  # what has no p is no member of the family
        ((0.6, 0.7), (1.0, 1.0)),
        ((0.02, 0.02), (0.04, 0.04)),
        ((0.3,), (0.3,)),
        ((None,), (None,)),
        ((), ()),
    ],
)
def test_holm_by_hand(values: tuple[float | None, ...], corrected: tuple[float | None, ...]) -> None:
    found = holm(with_p(*values))
    assert [d.p for d in found] == list(values)
    assert [d.p_holm for d in found] == [None if p is None else pytest.approx(p) for p in corrected]
