"""The kernels for CPU tensors, compiled by numba: one pass over memory, in as many threads as torch uses.

The first call of an operation compiles it (seconds), unless a process before has left the machine code in
numba's cache (see `cpu_loops`). Small tensors, and processes forked after numba's threads were started, use one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numba
import numpy as np
import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.engine.kernels import Hashed, Job, Moments, Rates, Treatment, cpu_loops, cpu_many
from subnetune.engine.kernels.cpu_blocks import Array
from subnetune.engine.kernels.plain import PlainKernels
from subnetune.engine.place import BLOCK, Place

_FEW = 16  # blocks below which a second thread does not pay
_PIECES = 4  # for each thread: some have more selected entries than others
_NO_MASK = Treatment(False, False)
# Entries are moved as numbers of their width. float32 has vector loops, and a move keeps every bit of it.
_CARRIER = {1: torch.uint8, 2: torch.int16, 4: torch.float32, 8: torch.int64}
_ADDED = (torch.float32, torch.float64)


class CpuKernels:
    """See `Kernels`. CPU tensors only."""

    name = "numba"

    def gather(self, source: Tensor, place: Place, out: Tensor, *, add: bool = False) -> None:
        """Write or add the selected entries of `source` into `out`."""
        if source.dtype != out.dtype or (add and source.dtype not in _ADDED) or source.itemsize not in _CARRIER:
            PlainKernels().gather(source, place, out, add=add)
        else:
            moved = (_array(source), _array(out)) if add else (_bits_of(source), _bits_of(out))
            if place.index is not None:
                _run(cpu_loops.GATHER_INDEX, place.count, moved[0], _index(place.index), moved[1], add)
            else:
                _run(cpu_loops.GATHER_BITS, place.size, moved[0], _bits(place), moved[1], add)

    def scatter(self, values: Tensor, place: Place, target: Tensor) -> None:
        """Write `values` into the selected entries of `target`."""
        if values.dtype != target.dtype or values.itemsize not in _CARRIER:
            PlainKernels().scatter(values, place, target)
        elif place.index is not None:
            _run(cpu_loops.SCATTER_INDEX, place.count, _bits_of(values), _index(place.index), _bits_of(target))
        else:
            _run(cpu_loops.SCATTER_BITS, place.size, _bits_of(values), _bits(place), _bits_of(target))

    def adamw(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates) -> None:
        """Update every entry in place."""
        self.adamw_all([Job(weights, gradient, moments, rates, None, _NO_MASK)])

    def adamw_hashed(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, mask: Hashed, treatment: Treatment
    ) -> None:
        """Update in place under a random mask."""
        self.adamw_all([Job(weights, gradient, moments, rates, mask, treatment)])

    def adamw_masked(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, bits: Tensor, treatment: Treatment
    ) -> None:
        """Update in place under a bitmask."""
        self.adamw_all([Job(weights, gradient, moments, rates, bits, treatment)])

    def adamw_packed(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, place: Place) -> None:
        """Update the selected entries in place."""
        self.adamw_all([Job(weights, gradient, moments, rates, place, _NO_MASK)])

    def adamw_all(self, jobs: Sequence[Job]) -> None:
        """Do every job, in one launch."""
        work = cpu_many.Work(jobs, rates_of)
        threads = THREADS.count(work.owners.size)
        with THREADS.set(threads):
            work.run(threads)


def rates_of(rates: Rates) -> Array:
    """Return what the loops calculate with, float32, (11,)."""
    pull = 1 - rates.beta1
    far = pull >= 0.5
    # What the root is multiplied by, in two parts: see `cpu_blocks.step`. Neither may be zero or less.
    correction = 1 / float(np.float32((1 - rates.beta2**rates.step) ** 0.5))
    high = np.nextafter(np.float32(correction), np.float32(0))
    numbers = (
        1 - rates.lr * rates.weight_decay,
        np.float32(pull) - 1 if far else pull,  # in float32, as torch's lerp
        rates.beta2,
        1 - rates.beta2,
        high,
        correction - float(high),
        rates.eps,
        rates.lr / (1 - rates.beta1**rates.step),
        1.0 if rates.scale is None else float(rates.scale),
        rates.divisor,
        far,
    )
    return np.array(numbers, np.float32)


def _array(tensor: Tensor) -> Array:
    """Return the tensor's memory. A strided one would compile loops of its own, or none: it is refused."""
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise UsageError(f"the kernels want flat, contiguous tensors, got {tuple(tensor.shape)}, {tensor.stride()}")
    return tensor.detach().numpy()


def _bits_of(tensor: Tensor) -> Array:
    return _array(tensor.view(_CARRIER[tensor.itemsize]))


def _index(index: Tensor) -> Array:
    return index.numpy().view(np.uint32)  # unsigned: compiled code then does not look for negative ones


def _bits(place: Place) -> Array:
    assert place.bits is not None
    return place.bits.numpy()


class Threads:
    """Numba's threads: one parallel call at a time (one of its thread pools cannot take more), by one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: int | None = None  # which process started them; they do not survive a fork

    def count(self, blocks: int) -> int:
        if blocks < _FEW or self.process not in (None, os.getpid()):
            return 1
        most = int(numba.config.NUMBA_NUM_THREADS)
        return min(torch.get_num_threads(), most)

    @contextmanager
    def set(self, threads: int) -> Iterator[None]:
        """Have numba use so many threads inside."""
        if threads == 1:
            yield
            return
        with self.lock:
            self.process = os.getpid()
            before = numba.get_num_threads()
            numba.set_num_threads(threads)
            try:
                yield
            finally:
                numba.set_num_threads(before)


THREADS = Threads()


def _run(loop: cpu_loops.Loop, entries: int, *args: object) -> None:
    blocks = -(-entries // BLOCK)
    threads = THREADS.count(blocks)
    if threads == 1:
        loop.serial(*args, 0, blocks)
        return
    with THREADS.set(threads):
        loop.parallel(*args, blocks, min(blocks, _PIECES * threads))
