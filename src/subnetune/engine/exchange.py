"""Replicas average packed gradients once before a step: DDP would average dense ones, after they were packed.

Each rank's gradients are kept aside until the step, so that nothing can take a local gradient for the average. Forward
passes run inside DDP's `no_sync`; one that does not come through `tuning.forward` is refused: ranks would silently
drift apart.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from subnetune.core.errors import LifeCycleError, UsageError
from subnetune.core.passes import Removable


def several_ranks() -> bool:
    """Whether this process is one of several that may train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Exchange:
    """The gradients that this rank has not shared yet, by name. `handles` takes the hooks that it hangs on wrappers."""

    def __init__(self, handles: list[Removable]) -> None:
        self._pending: dict[str, Tensor] = {}
        self._handles = handles
        self._wrapper: weakref.ref[DistributedDataParallel] | None = None
        self._inside = False  # whether tuning.forward runs

    @contextmanager
    def around(self, module: nn.Module) -> Iterator[None]:
        """Run a forward pass whose gradients stay on this rank until `average`."""
        found = [inner for inner in module.modules() if isinstance(inner, DistributedDataParallel)]
        if not found or not torch.is_grad_enabled():
            yield
            return
        if self._wrapper is None or self._wrapper() is not found[0]:
            self._watch(found[0])
        self._inside = True
        try:
            with found[0].no_sync():
                yield
        finally:
            self._inside = False

    def _watch(self, wrapper: DistributedDataParallel) -> None:
        if wrapper.static_graph:
            raise UsageError(
                "DistributedDataParallel(static_graph=True) averages dense gradients whatever it is told: leave it "
                'out, or use gradients="dense"'
            )
        this = weakref.ref(self)

        def called(module: nn.Module, args: Any) -> None:
            exchange = this()
            if exchange is not None and module.training and torch.is_grad_enabled() and not exchange._inside:
                raise LifeCycleError(
                    "the DistributedDataParallel wrapper was called beside tuning.forward, and would average dense "
                    "gradients that are packed and gone: call tuning.forward(batch, model=wrapper)"
                )

        self._handles.append(wrapper.register_forward_pre_hook(called))
        self._wrapper = weakref.ref(wrapper)

    def move(self, name: str, holder: Tensor) -> None:
        """Put the gradient of `holder` aside, on top of what is there. LifeCycleError where no wrapper was seen."""
        if self._wrapper is None:
            raise LifeCycleError(
                f"the gradient of {name!r} is that of one of {dist.get_world_size()} ranks, and nothing would average "
                "it: wrap the model in DistributedDataParallel and call tuning.forward(batch, model=wrapper), or "
                'use gradients="dense"'
            )
        gradient, holder.grad = holder.grad, None
        if gradient is not None:
            known = self._pending.get(name)
            self._pending[name] = gradient if known is None else known.add_(gradient)

    def clear(self) -> None:
        """Drop what was put aside."""
        self._pending.clear()

    @torch.no_grad()
    def average(self, holders: Mapping[str, Tensor]) -> None:
        """Give each of `holders` (one for each name, equal on all ranks) the mean over the ranks of what was put aside.

        A tensor that has a gradient on no rank keeps none; where some ranks have one, the others count as zero, as
        under DDP. What was averaged before counts as put aside. Every rank must join.
        """
        wrapper = None if self._wrapper is None else self._wrapper()
        group = None if wrapper is None else wrapper.process_group
        there = torch.tensor([name in self._pending for name in holders], dtype=torch.int32)
        there = there.to(next(iter(holders.values())).device)
        dist.all_reduce(there, op=dist.ReduceOp.MAX, group=group)
        kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for (name, holder), some in zip(holders.items(), there.tolist(), strict=True):
            if some:
                kinds.setdefault((holder.device, holder.dtype), []).append(name)
        for (device, dtype), names in kinds.items():
            whole = torch.zeros(sum(holders[name].numel() for name in names), dtype=dtype, device=device)
            parts = torch.split(whole, [holders[name].numel() for name in names])
            for name, part in zip(names, parts, strict=True):
                own, earlier = self._pending.pop(name, None), holders[name].grad
                if own is not None:
                    part.copy_(own.reshape(-1))
                if earlier is not None:  # a mean that was asked for before; other ranks have it in what they put aside
                    part.add_(earlier.reshape(-1))
            whole.div_(dist.get_world_size(group))  # before the sum, as DDP does
            dist.all_reduce(whole, group=group)
            for name, part in zip(names, parts, strict=True):
                holders[name].grad = part.view(holders[name].shape)
        if wrapper is not None and wrapper.broadcast_buffers and bool(there.any()):  # `no_sync` leaves them alone
            for buffer in wrapper.buffers():
                if buffer.is_floating_point():
                    dist.broadcast(buffer, group=group, group_src=0)
