"""Put values into a model's tensors, all or none of them, and keep what was there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from subnetune.core.bits import bits_of, equal_bits
from subnetune.core.errors import CheckpointError
from subnetune.core.parallel import each, on_cpu
from subnetune.delta.codec import Index

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Write(NamedTuple):
    """One tensor to write: new `values`, (moved,), at the positions `where` (None: all of it, in its shape)."""

    name: str
    target: Tensor
    where: Index | None
    values: Tensor


def misses(writes: Sequence[Write]) -> list[str]:
    """Return the names of the writes whose target holds other bits than the values."""
    holds = _side_by_side(_holds, writes, writes)
    return [write.name for write, there in zip(writes, holds, strict=True) if not there]


def write_all(writes: Sequence[Write]) -> list[Tensor]:
    """Write all or, where one fails, none; return the values that were there before, (moved,) or the tensor's shape."""
    with torch.no_grad():
        exchanges = [_Exchange(write) for write in writes]
        try:
            _side_by_side(_Exchange.make, exchanges, writes)
        except BaseException:
            for exchange in exchanges:
                exchange.take_back()
            raise
    return [exchange.old for exchange in exchanges]


def _side_by_side(
    function: Callable[[_Item], _Result], items: Sequence[_Item], writes: Sequence[Write]
) -> list[_Result]:
    return each(function, items) if on_cpu(w.target for w in writes) else [function(item) for item in items]


def _places(write: Write) -> Iterator[tuple[Tensor, slice]]:
    """Yield flat positions in the target, on its device, and which of the values belong there."""
    assert write.where is not None
    if write.where.moved != write.values.numel():
        raise CheckpointError(f"{write.name!r} has {write.values.numel()} values for {write.where.moved} positions")
    if write.where.entries != write.target.numel():
        raise CheckpointError(f"{write.name!r} has {write.target.numel()} entries, its index {write.where.entries}")
    start = 0
    for positions in write.where.pieces():
        yield positions.to(write.target.device), slice(start, start + positions.numel())
        start += positions.numel()


def _gather(flat: Tensor, positions: Tensor, out: Tensor) -> None:
    """out = flat[positions], for integers on one device."""
    if flat.device.type == "cpu":  # "clip": numpy would copy the output to check before; the index was checked
        np.take(flat.numpy(), positions.numpy(), out=out.numpy(), mode="clip")
    else:
        torch.index_select(flat, 0, positions, out=out)


def _scatter(flat: Tensor, positions: Tensor, values: Tensor) -> None:
    """flat[positions] = values, for integers; the values may be on another device."""
    if flat.device.type == "cpu":
        flat.numpy()[positions.numpy()] = values.cpu().numpy()
    else:
        flat.scatter_(0, positions, values.to(flat.device))


def _holds(write: Write) -> bool:
    if write.where is None:
        return equal_bits(write.target, write.values)
    there, values = bits_of(write.target), bits_of(write.values)
    read = torch.empty_like(values, device=there.device)
    for positions, part in _places(write):
        _gather(there, positions, read[part])
        if not equal_bits(read[part], values[part]):
            return False
    return True


@final
class _Exchange:
    """One write, made or taken back: every value that was there is in `old` before a new one takes its place."""

    def __init__(self, write: Write) -> None:
        shape = write.target.shape if write.where is None else write.values.shape
        self.old = torch.empty(shape, dtype=write.target.dtype, device=write.target.device)
        self._write = write
        self._saved = 0  # how many values of `old` are there

    def make(self) -> None:
        """Write the values. What this writes before it fails, `take_back` restores."""
        self._set(self._write.values, save=True)

    def take_back(self) -> None:
        """Write the old values where there may be new ones."""
        if self._saved:
            self._set(self.old, save=False)

    def _set(self, values: Tensor, save: bool) -> None:
        target = self._write.target
        if self._write.where is None:
            if save:
                self.old.copy_(target)
                self._saved = self.old.numel()
            target.copy_(values)
            return
        whole = target if target.is_contiguous() else target.contiguous()
        flat, new, old = bits_of(whole), bits_of(values), bits_of(self.old)
        for positions, part in _places(self._write):
            if save:
                _gather(flat, positions, old[part])
                self._saved = part.stop
            elif part.start >= self._saved:
                break
            _scatter(flat, positions, new[part])
        if whole is not target:
            target.copy_(whole)
