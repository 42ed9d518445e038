"""The packed engine: any element-wise torch optimizer on the selected entries alone. Static masks, exact to the bit.

Each tensor has a leaf that holds its selected entries; an inner optimizer of the class that was asked for steps over
the leaves. Values are read from the model before every step and written back after it, so nothing can drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from subnetune.engine.child import Child
from subnetune.engine.kernels import kernels_for
from subnetune.engine.named import MASTER
from subnetune.engine.norms import packed
from subnetune.engine.place import Place
from subnetune.engine.precision import Precision
from subnetune.engine.served import ServedOptimizer, check_same_shape
from subnetune.engine.tails import Tail

# Every update of these is a function of one entry's own numbers; tests/unit/engine compares each with dense training.
ELEMENT_WISE = (
    torch.optim.AdamW,
    torch.optim.Adam,
    torch.optim.SGD,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.ASGD,
    torch.optim.Rprop,
)
_OWN = ("params", "param_names")


class PackedOptimizer(ServedOptimizer):
    """Steps an inner optimizer over packed entries. `divisor` is what gradients of selected tensors are divided by."""

    engine = "packed"

    def __init__(
        self,
        probe: Optimizer,
        child: Child,
        hyper: Mapping[str, Any],
        divisor: float | None,
        precision: Precision,
    ) -> None:
        for name in child.names:
            precision.check(name, child.local(name))
        super().__init__(probe, child)
        self._hyper = dict(hyper)
        self._divisor, self._precision = divisor, precision
        self._leaves: dict[str, nn.Parameter] = {}
        self._tails: dict[str, Tail | None] = {}  # how the entries lie in each; None where a leaf has a tensor's shape
        self._shapes: dict[str, tuple[int, ...]] = {}  # the local shape that a leaf was made for
        self._inner: Optimizer | None = None

    def update(self) -> None:
        """Gather, step the inner optimizer, scatter."""
        self._make_leaves()
        inner = self._synced()
        packed_now = [name for name in self.child.names if self._fill(name)]
        inner.step()
        for name in packed_now:
            self._leaves[name].grad = None
            self._write(name)

    def _fill(self, name: str) -> bool:
        """Put the tensor's values and gradient into its leaf; return whether it has a gradient."""
        local = self.child.local(name)
        place = self.child.place(name, local)
        gradient = self.gradient(name, local, place)
        leaf = self._leaves[name]
        leaf.grad = None
        if gradient is None:
            return False
        if self._shares(local, place):
            leaf.data = local.detach()
            leaf.grad = self._scaled(gradient, name)
            return True
        if not leaf.numel():
            leaf.data = self._empty_leaf(local, self._tails[name])
        values = _entries(leaf.detach(), place)
        if self._precision.converts(local):
            self._precision.read(values, packed(local.detach(), place).view(values.shape))
        elif place is not None:
            kernels_for(local.device.type).gather(_storage(local), place, values)
        grad = torch.empty_like(leaf)
        dense = place is not None and gradient.numel() == place.size
        _entries(grad, place).copy_(packed(gradient, place) if dense else gradient)
        if (tail := self._tails[name]) is not None:
            tail.spread(leaf.detach())
            tail.spread(grad)
        leaf.grad = self._scaled(grad, name)
        return True

    def _write(self, name: str) -> None:
        """Put what the leaf holds into the tensor."""
        local = self.child.local(name)
        place = self.child.place(name, local)
        if self._shares(local, place):
            return
        leaf = self._leaves[name].detach()
        if (tail := self._tails[name]) is not None:
            tail.collect(leaf)
        values = _entries(leaf, place)
        if self._precision.converts(local):
            values = self._precision.rounded(values, name, local, place, self.child.host.live(self).step.index)
        if place is None:
            local.detach().copy_(values)
        else:
            kernels_for(local.device.type).scatter(values, place, _storage(local))
        if self._precision.kind != "master":  # the model has the values: between steps a leaf needs no memory
            self._leaves[name].data = values.new_empty(0)

    def _shares(self, local: Tensor, place: Place | None) -> bool:
        """Whether the leaf is the parameter's own storage."""
        return place is None and not self._precision.converts(local)

    def _scaled(self, gradient: Tensor, name: str) -> Tensor:
        if self.scale is not None:
            gradient.mul_(self.scale)
        if self._divisor is not None and name in self.child.selected:
            gradient.div_(self._divisor)
        return gradient

    def _make_leaves(self) -> None:
        for name in self.child.names:
            local = self.child.local(name)
            shape = tuple(local.shape)
            if (
                self._shapes.get(name, shape) != shape
                and self._inner is not None
                and self._leaves[name] in (self._inner.state)
            ):
                check_same_shape(name, self._shapes[name], shape)
            if self._shapes.get(name) != shape:
                place = self.child.place(name, local)
                self._tails[name] = None if place is None else Tail.of(place)
                self._leaves[name] = nn.Parameter(self._empty_leaf(local, self._tails[name]))
                self._shapes[name] = shape

    def _empty_leaf(self, local: Tensor, tail: Tail | None) -> Tensor:
        if tail is None and not self._precision.converts(local):
            return local.detach()
        shape = local.shape if tail is None else (tail.length,)
        dtype = torch.float32 if self._precision.converts(local) else local.dtype
        return torch.zeros(shape, dtype=dtype, device=local.device)

    def _synced(self) -> Optimizer:
        """Return the inner optimizer, with the leaves and the hyper-parameters that the groups have now."""
        groups = [
            {**_without(group, *_OWN), "params": [self._leaves[name] for name in group["param_names"]]}
            for group in self.param_groups
        ]
        if self._inner is None:
            self._inner = self.kind(groups, **self._hyper)
        else:
            for group, inner in zip(groups, self._inner.param_groups, strict=True):
                inner.update(group)
        return self._inner

    # -- state -------------------------------------------------------------------------------------------------------

    def about(self, full: bool) -> dict[str, Any]:
        """Return what must agree between a saved state and this optimizer."""
        return {**super().about(full), "precision": self._precision.kind}

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the inner optimizer's states by name, without the padding."""
        if self._inner is None:
            return {}
        found = {}
        for name, leaf in self._leaves.items():
            if leaf in self._inner.state:
                tail = self._tails[name]
                found[name] = {key: _collected(value, tail) for key, value in self._inner.state[leaf].items()}
                if self._precision.kind == "master" and leaf.dtype != self.child.local(name).dtype:
                    found[name][MASTER] = (leaf if tail is None else leaf[: tail.count]).detach().clone()
        return found

    def put_states(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the inner optimizer anew, and give it these states."""
        self._inner = None
        self._leaves, self._tails, self._shapes = {}, {}, {}
        if not states:
            return  # accelerate loads none when it wraps, maybe before the model is sharded
        self._make_leaves()
        inner = self._synced()
        moving = {id(p) for g in inner.param_groups if g.get("fused") or g.get("capturable") for p in g["params"]}
        for name, state in states.items():
            leaf, tail = self._leaves[name], self._tails[name]
            master = state.get(MASTER)
            if master is not None:
                (leaf if tail is None else leaf[: tail.count]).detach().copy_(master)
            moments = {key: value for key, value in state.items() if key != MASTER}
            inner.state[leaf] = {k: _spread(value, leaf, tail, id(leaf) in moving) for k, value in moments.items()}

    def expected(self, name: str) -> tuple[int, ...]:
        """Return (count,) for a tensor with a mask, else its local shape."""
        local = self.child.local(name)
        place = self.child.place(name, local)
        return tuple(local.shape) if place is None else (place.count,)


def _without(group: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in keys}


def _entries(leaf: Tensor, place: Place | None) -> Tensor:
    """Return a leaf without its padding."""
    return leaf if place is None else leaf[: place.count]


def _storage(local: Tensor) -> Tensor:
    return local.detach().view(-1)


def _collected(value: Any, tail: Tail | None) -> Any:
    if not isinstance(value, Tensor):
        return value
    copy = value.detach().clone()
    if tail is None or value.dim() == 0:
        return copy
    tail.collect(copy)
    return copy[: tail.count].clone() if tail.count < copy.numel() else copy  # saving writes whole storages


def _spread(value: Any, leaf: Tensor, tail: Tail | None, moving: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0:  # counters stay on the CPU, unless the kernel wants them beside the weights
        return value.detach().clone().to(leaf.device if moving else "cpu")
    if tail is None:
        return value.detach().to(leaf.device, copy=True)
    whole = torch.empty(leaf.shape, dtype=value.dtype, device=leaf.device)
    whole[: tail.count] = value
    tail.spread(whole)
    return whole
