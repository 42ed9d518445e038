"""Statistics of runs over seeds: descriptions, and paired differences with intervals. Plain numbers in, plain numbers out.

scipy does the work. Nothing here invents certainty: one seed has no spread and no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """Values of one method on one task over seeds. Fields are None where they are not defined (std of one value)."""

    n: int  # runs with a value
    mean: float | None
    std: float | None  # of the sample (n - 1)
    minimum: float | None
    maximum: float | None
    iqm: float | None  # interquartile mean: the mean of the middle half (trimmed by 25 % at each end)
    failed: int  # runs that ended with an error: they have no value
    at_majority: int  # runs that learned nothing: at or below the majority level; they are among the n


class Difference(NamedTuple):
    """A method less the baseline, over the seeds that both have.

    `low` and `high` are the ends of a 95 % bootstrap interval of the mean difference, None below two pairs; `p` is the
    two-sided sign-flip permutation test's, None below two pairs; `p_holm` is corrected over the family it was given
    with; `effect` is the mean difference over its standard deviation (None where that is 0 or undefined).
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    effect: float | None
    wins: int
    ties: int
    losses: int


def summarise(values: Sequence[float], *, failed: int = 0, at_majority: int = 0) -> Summary:
    """Return the description of `values`, one a seed. ValueError for values that are not finite."""
    raise NotImplementedError


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Difference:
    """Return `ours` less `baseline`, paired by seed; seeds that only one of them has are left out."""
    raise NotImplementedError


def holm(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences with `p_holm` over all that have a `p` (Holm 1979, step-down, monotone, at most 1)."""
    raise NotImplementedError
