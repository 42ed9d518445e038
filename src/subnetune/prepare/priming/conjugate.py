"""Conjugate gradients over tensors by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Named = dict[str, Tensor]


@torch.no_grad()
def solve(apply: Callable[[Named], Named], right: Named, iterations: int) -> Named:
    """Return v with apply(v) = right after at most `iterations` steps from zero; `apply` is symmetric.

    Where the curvature along a direction is not positive (the loss is not convex there) the last v is returned, and
    `right` itself where that is so from the first direction on: the first-order answer.
    """
    v = {name: torch.zeros_like(b) for name, b in right.items()}
    left = {name: b.clone() for name, b in right.items()}  # right - apply(v)
    way = dict(left)
    size = _dot(left, left)
    enough = 1e-20 * size
    for step in range(iterations):
        if size <= enough:
            break
        with torch.enable_grad():
            bent = apply(way)
        curvature = _dot(way, bent)
        if curvature <= 0.0:
            return v if step else dict(right)
        length = size / curvature
        v = {name: v[name] + length * way[name] for name in v}
        left = {name: left[name] - length * bent[name] for name in left}
        before, size = size, _dot(left, left)
        way = {name: left[name] + (size / before) * way[name] for name in way}
    return v


def _dot(a: Named, b: Named) -> float:
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)
