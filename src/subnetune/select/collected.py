"""Sums of squared gradients, entry by entry, and how often each entry was visited: what staged selection ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from subnetune.core.errors import NumericError
from subnetune.core.types import Mask, Params, State, Step, all_reduce_sum, placement

_LONG = 50  # steps: the release penalises frequent visits in stages of at least this length


def add_squares(state: State, params: Params, mask: Mask | None, step: Step) -> None:
    """Add the squared gradients of `params` to `state["scores"]` (at least single precision, like the parameters).

    With a mask only what it selects is added, and `state["visits"]` counts it (int32, in the mask's own shape). A
    tensor without a gradient is passed over. Raises NumericError for a gradient that is NaN or infinite.
    """
    gradients = {name: p.grad for name, p in params.items() if p.grad is not None}
    _check_finite(gradients, params, step)
    scores, visits = state["scores"], state["visits"]
    for name, gradient in gradients.items():
        wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if mask is not None:
            chosen = mask[name]
            wide = torch.where(chosen, wide, 0.0)
            visits[name] = visits[name] + chosen if name in visits else chosen.to(torch.int32)
        scores[name] = scores[name].addcmul_(wide, wide) if name in scores else wide.square()


def importance(state: State, params: Params, length: int, penalty: bool | str) -> dict[str, Tensor]:
    """Return the mean square over each entry's visits, and use up `state["scores"]`, which it is computed in.

    `penalty` multiplies by exp(-visits / length), where `length` is the steps of the stage; "auto" does for stages of
    50 steps and more. Without visits (no mask) the result is the sum. Shards come back marked.
    """
    penalised = length >= _LONG if penalty == "auto" else penalty is True
    found = {name: state["scores"][name] for name in params if name in state["scores"]}
    for name, score in found.items():
        if name in state["visits"]:
            visits = state["visits"][name].to(score.dtype)
            score.div_(visits.clamp(min=1.0))
            if penalised:
                score.mul_(torch.exp(-visits / length))
        if placement(params[name]).sharded:
            score.subnetune_placement = placement(params[name])
    return found


def _check_finite(gradients: Params, params: Params, step: Step) -> None:
    if not gradients:
        return
    # One pass each: the extremes are not finite where any entry is not. What is wrong is counted afterwards.
    ends = [torch.stack(torch.aminmax(g)) if g.numel() else g.new_zeros(2) for g in gradients.values()]
    bad = (~torch.stack(ends).isfinite()).sum(1)
    sharded = any(placement(p).sharded for p in params.values())
    if sharded:
        bad = all_reduce_sum(bad)  # every rank raises, or none
    if not bool(bad.any()):  # one question to the device for all tensors
        return
    first = int(bad.nonzero()[0])
    name, gradient = list(gradients.items())[first]
    count = gradient.isfinite().logical_not().sum()
    count = all_reduce_sum(count) if sharded else count
    raise NumericError(
        f"step {step.index}: the gradient of {name!r} has {int(count)} entries that are NaN or "
        "infinite, and squares of it would decide what trains; lower the learning rate, clip, or look for the batch "
        "that does it (under fp16 let a GradScaler skip such steps)"
    )
