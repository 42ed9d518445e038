"""How alike two sets of representations are, and how many directions one of them uses.

Linear CKA: Kornblith, Norouzi, Lee, Hinton, ICML 2019, arXiv 1905.00414, here with the unbiased estimate of HSIC (Song,
Smola, Gretton, Bedo, Borgwardt, JMLR 13, 2012), as the authors' code does with `debiased=True`: the plain estimate is
far above 0 for independent representations that are wider than there are examples. Effective rank: Roy and Vetterli,
EUSIPCO 2007.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_EXAMPLES = 4  # the unbiased estimate divides by n - 3


def linear_cka(left: Tensor, right: Tensor) -> float | None:
    """Return the debiased linear CKA of two representations of the same examples, (n, p) and (n, q), in rows.

    1 for the same up to rotation, shift and scale; near 0 for unrelated ones, and possibly a little below. None where
    all rows of one are alike, or for fewer than four examples.
    """
    if len(left) != len(right) or len(left) < LEAST_EXAMPLES:
        return None
    a, b = _centred_gram(left), _centred_gram(right)
    if a is None or b is None:
        return None
    return float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt())


def effective_rank(rows: Tensor) -> float | None:
    """Return exp(H(s / sum(s))) of the singular values s of the centred rows, (n, p): from 1 to min(n - 1, p).

    It falls where representations collapse into few directions. None where all rows are alike.
    """
    centred = _centred(rows)
    if centred is None:
        return None
    gram = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
    values = torch.linalg.eigvalsh(gram).clamp_min(0.0).sqrt()
    shares = values / values.sum()
    return math.exp(float(torch.special.entr(shares).sum()))


def _centred(rows: Tensor) -> Tensor | None:
    """Return the rows less their mean, float64, (n, p); None where nothing but rounding is left."""
    rows = rows.double()
    centred = rows - rows.mean(0)
    return centred if float(centred.norm()) > 1e-6 * float(rows.norm()) else None


def _centred_gram(rows: Tensor) -> Tensor | None:
    """Return the products of all pairs of rows, (n, n), without the diagonal and centred (Szekely and Rizzo 2014).

    The mean product of the entries of two such matrices is the unbiased estimate of HSIC, up to a factor.
    """
    centred = _centred(rows)
    if centred is None:
        return None
    gram, n = centred @ centred.T, len(centred)
    gram.fill_diagonal_(0.0)
    sums = gram.sum(0) / (n - 2)
    gram = gram - sums - sums[:, None] + gram.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0.0)
