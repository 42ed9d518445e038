"""What is looked at between an outer step's gradients and the step: means over ranks, and that all is finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from subnetune.core.errors import LifeCycleError, NumericError
from subnetune.core.masks import mask_digest
from subnetune.core.types import Mask, Params, all_reduce_sum

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


def over_ranks(value: Tensor) -> Tensor:
    """Return the mean of `value` over the ranks, where there are several; every rank must join."""
    if dist.is_available() and dist.is_initialized() and (ranks := dist.get_world_size()) > 1:
        return all_reduce_sum(value).div_(ranks)
    return value


def average(tensors: Sequence[Tensor]) -> None:
    """Replace gradients by their means over the ranks; one that no rank has stays None."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        there = torch.tensor([p.grad is not None for p in tensors], dtype=torch.float32, device=tensors[0].device)
        for p, share in zip(tensors, over_ranks(there).tolist(), strict=True):
            if share:
                p.grad = over_ranks(torch.zeros_like(p) if p.grad is None else p.grad)


def check_same_entries(mask: Mask | None, params: Params) -> None:
    """Raise LifeCycleError on every rank where the ranks' inner recipes selected different entries; all must join."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        digest = int(mask_digest(mask, params)[:15], 16)
        ends = torch.tensor([digest, -digest], device=next(iter(params.values())).device)
        dist.all_reduce(ends, op=dist.ReduceOp.MAX)
        if int(ends[0]) != -int(ends[1]):
            raise LifeCycleError(
                "Prime: the ranks selected different entries for the inner loop: scores must come from equal batches "
                "on every rank (pass `tasks` as callables that do not shard), or prime in one process"
            )


def check_finite(prime: Prime, index: int, loss: float, norm: float) -> None:
    """Raise NumericError where the query loss or the gradients' norm of outer step `index` (0-based) is not finite."""
    if not (math.isfinite(norm) and math.isfinite(loss)):
        raise NumericError(
            f"priming: the query loss is {loss} and the gradient norm {norm} in outer step {index + 1}; nothing was "
            f"updated by it. Try a lower inner_lr (now {prime.inner_lr}) or lr (now {prime.lr})"
        )
