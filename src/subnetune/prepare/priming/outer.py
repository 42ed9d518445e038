"""The outer loop's optimizer: Adam over the parent's gradients and the learned rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from subnetune.core.errors import CheckpointError
from subnetune.prepare.priming.checked import average
from subnetune.prepare.priming.descent import check_reached
from subnetune.prepare.priming.learner import Learner
from subnetune.prepare.priming.rates import Rates


class Outer:
    """AdamW over what the outer loop moves; gradients lie in `.grad`, as the algorithms leave them."""

    def __init__(self, learner: Learner, rates: Rates) -> None:
        self._learner, self._rates, prime = learner, rates, learner.prime
        tensors = list(learner.tensors(learner.parent).values())
        groups: list[dict[str, Any]] = [{"params": tensors, "lr": prime.lr, "weight_decay": prime.weight_decay}]
        if rates.learned:
            groups.append({"params": [rates.log], "lr": prime.rates_lr, "weight_decay": 0.0})
        self._full = [group["lr"] for group in groups]
        # One kernel over all tensors, where there is one: a loop over operations is several times slower.
        self._optimizer = torch.optim.AdamW(groups, fused=tensors[0].device.type in ("cpu", "cuda") or None)

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def norm(self) -> float:
        """Average the gradients over the ranks and return the norm of the parent's; NaN where a rate's is none.

        Raises UsageError where the parent has none at all: no loss depends on it.
        """
        average(self._params())
        found = [p.grad for p in self._optimizer.param_groups[0]["params"] if p.grad is not None]
        check_reached(bool(found), "outer")
        finite = self._rates.log.grad is None or bool(self._rates.log.grad.isfinite().all())
        return float(torch.nn.utils.get_total_norm(found)) if finite else math.nan

    def step(self, index: int, norm: float) -> None:
        """Clip, then move the parent and the rates; `index` outer steps came before."""
        prime = self._learner.prime
        if prime.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(
                self._optimizer.param_groups[0]["params"], prime.clip, torch.tensor(norm)
            )
        left = (prime.steps - index) / prime.steps if prime.schedule == "linear" else 1.0
        for group, full in zip(self._optimizer.param_groups, self._full, strict=True):
            group["lr"] = full * left
            if not group["lr"]:  # AdamW's step of size 0 turns -0.0 into 0.0
                for p in group["params"]:
                    p.grad = None
        self._optimizer.step()

    def clear(self) -> None:
        """Drop all gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's state and the rates."""
        return {"optimizer": self._optimizer.state_dict(), "log_rates": self._rates.log.detach().clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state. Raises CheckpointError where it has other tensors."""
        try:
            self._optimizer.load_state_dict(state["optimizer"])
            with torch.no_grad():
                self._rates.log.copy_(state["log_rates"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"not the state of this priming's optimizer ({error})") from error
