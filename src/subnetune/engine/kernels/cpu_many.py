"""AdamW of many tensors in one call: blocks of all of them are one list of work, shared out among the threads.

A call for each tensor costs more in Python than small tensors take to update, and models have hundreds of them. Here
the tensors' addresses go in as a table. Neighbouring blocks alternate between the threads in runs, since blocks with
few selected entries take less time than others. Where a run begins amid a tensor with a bitmask, the selected entries
before it are counted first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, prange, types, uint32
from numba.extending import intrinsic
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.engine.kernels import Hashed, Job, Rates, is_packed
from subnetune.engine.kernels import cpu_blocks as block
from subnetune.engine.kernels.cpu_blocks import BLOCK, SLACK, Array
from subnetune.engine.kernels.cpu_loops import compiled_entry
from subnetune.engine.place import Place

_RUN = 64  # neighbouring blocks that one thread takes together
WHOLE, HASHED, MASKED, AT_BITS, AT_INDEX = range(5)
# Columns of the table.
KIND, WEIGHTS, GRADIENT, FIRST, SECOND, SIZE, RATES, PLACE, ZERO, HOLD, PACKED, START, KEY, LIMIT = range(14)
_EVERY = 1 << 31  # a limit above every signed word


@intrinsic
def _pointer(context, address):  # type: ignore[no-untyped-def]
    """Return an address as a pointer."""

    def cast(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), cast


@njit(error_model="numpy")
def _floats(address, low, high):  # type: ignore[no-untyped-def]
    return carray(_pointer(address + 4 * low), high - low, np.float32)


@njit(error_model="numpy")
def _bits(row, low, high):  # type: ignore[no-untyped-def]
    """Return the bits of entries low .. high - 1 of a tensor; `low` is a multiple of 8."""
    return carray(_pointer(row[PLACE] + low // 8), (high - low + 7) // 8, np.uint8)


@njit(error_model="numpy")
def _one(row, numbers, b, rank, chosen, seen):  # type: ignore[no-untyped-def]
    """Update block `b` of the tensor that a row of the table describes.

    With a bitmask `rank` are the selected entries before the block. Returns the selected entries in it; else 0.
    """
    low, high = b * BLOCK, min(row[SIZE], (b + 1) * BLOCK)
    kind = row[KIND]
    if kind == AT_INDEX:
        index = carray(_pointer(row[PLACE] + 4 * low), high - low, np.uint32)
        size = np.int64(1) << 40  # of the dense tensors, which the index does not leave
        weights = carray(_pointer(row[WEIGHTS]), size, np.float32)
        first, second = _floats(row[FIRST], low, high), _floats(row[SECOND], low, high)
        packed = row[PACKED] != 0
        slopes = _floats(row[GRADIENT], low, high) if packed else _floats(row[GRADIENT], 0, size)
        block.at_index(weights, slopes, first, second, numbers, index, packed, chosen, seen)
        return 0
    weights = _floats(row[WEIGHTS], low, high)
    if kind == AT_BITS:
        bits, end = _bits(row, low, high), rank + (high - low)  # at most so many are selected
        first, second = _floats(row[FIRST], rank, end), _floats(row[SECOND], rank, end)
        packed = row[PACKED] != 0
        slopes = _floats(row[GRADIENT], rank, end) if packed else _floats(row[GRADIENT], low, high)
        return block.at_bits(weights, slopes, first, second, numbers, bits, packed, chosen, seen)
    gradient = _floats(row[GRADIENT], low, high)
    first, second = _floats(row[FIRST], low, high), _floats(row[SECOND], low, high)
    if kind == WHOLE:
        block.dense(weights, gradient, first, second, numbers)
    elif kind == HASHED:
        base, key = uint32(row[START] + low), uint32(row[KEY])
        limit = block.int32(row[LIMIT])
        block.hashed(weights, gradient, first, second, numbers, base, key, limit, row[ZERO] != 0, row[HOLD] != 0)
    else:
        bits = _bits(row, low, high)
        block.masked(weights, gradient, first, second, numbers, bits, row[ZERO] != 0, row[HOLD] != 0)
    return 0


@compiled_entry(parallel=False)
def many(table, numbers, owners, starts, low, high, rank):  # type: ignore[no-untyped-def]
    """Do pieces low .. high - 1 of the work; `rank` selected entries of the first one's tensor lie before it."""
    chosen, seen = np.empty(BLOCK + SLACK, np.float32), np.empty(BLOCK + SLACK, np.float32)
    for item in range(low, high):
        owner = owners[item]
        row, b = table[owner], item - starts[owner]
        if b == 0:
            rank = 0
        rank += _one(row, numbers[row[RATES]], b, rank, chosen, seen)


@njit(error_model="numpy")
def _ones_before(table, owners, starts, item):  # type: ignore[no-untyped-def]
    """Return how many entries of the tensor of `item`, the first of a run, are selected in the run before."""
    owner = owners[item]
    row, end = table[owner], item - starts[owner]
    if row[KIND] != AT_BITS or end == 0:
        return 0
    return block.ones_in(_bits(row, max(0, end - _RUN) * BLOCK, end * BLOCK))


@compiled_entry(parallel=True)
def many_parallel(table, numbers, owners, starts, threads, runs):  # type: ignore[no-untyped-def]
    """Do all of it: thread t takes runs t, t + threads, ..."""
    ranks = np.zeros(runs, np.int64)
    for thread in prange(threads):
        for run in range(thread, runs - 1, threads):
            ranks[run + 1] = _ones_before(table, owners, starts, (run + 1) * _RUN)
    for run in range(1, runs):
        begun = run * _RUN - _RUN
        if starts[owners[begun + _RUN]] < begun:
            ranks[run] += ranks[run - 1]
    for thread in prange(threads):
        for run in range(thread, runs, threads):
            low = run * _RUN
            many(table, numbers, owners, starts, low, min(owners.size, low + _RUN), ranks[run])


class Work:
    """The table of some jobs, and the list of their blocks. Keeps what the addresses point to alive."""

    def __init__(self, jobs: Sequence[Job], numbers: Callable[[Rates], Array]) -> None:
        self._alive = list(jobs)
        rates = {id(job.rates): job.rates for job in jobs}  # most jobs share one
        numbered = {key: number for number, key in enumerate(rates)}
        self.numbers = np.stack([numbers(each) for each in rates.values()])
        self.table = np.zeros((len(jobs), LIMIT + 1), np.int64)
        self._fill(jobs)  # column by column: half the time that rows take
        self.table[:, RATES] = [numbered[id(job.rates)] for job in jobs]
        blocks = -(-self.table[:, SIZE] // BLOCK)
        self.starts = np.cumsum(blocks) - blocks
        self.owners = np.repeat(np.arange(len(jobs)), blocks)

    def _fill(self, jobs: Sequence[Job]) -> None:
        table = self.table
        table[:, WEIGHTS] = [_address(job.weights) for job in jobs]
        table[:, GRADIENT] = [_address(job.gradient) for job in jobs]
        table[:, FIRST] = [job.moments.first.data_ptr() for job in jobs]
        table[:, SECOND] = [job.moments.second.data_ptr() for job in jobs]
        table[:, ZERO] = [job.treatment.zero_gradient for job in jobs]
        table[:, HOLD] = [job.treatment.hold for job in jobs]
        table[:, [KIND, SIZE, PACKED, PLACE, START, KEY, LIMIT]] = [_described(job) for job in jobs]

    def run(self, threads: int) -> None:
        """Do it in so many threads."""
        if threads == 1:
            many(self.table, self.numbers, self.owners, self.starts, 0, self.owners.size, 0)
        else:
            runs = -(-self.owners.size // _RUN)
            many_parallel(self.table, self.numbers, self.owners, self.starts, threads, runs)


def _described(job: Job) -> tuple[int, int, bool, int, int, int, int]:
    """Return kind, entries to go through, whether the gradient is packed, and what the mask says."""
    weights, gradient, (first, second), _, mask, _ = job
    size = seen = trains = weights.numel()
    kind, packed, place, start, key, limit = WHOLE, False, 0, 0, 0, 0
    if isinstance(mask, Hashed):
        if mask.limit < _EVERY:
            kind, start, key, limit = HASHED, mask.start + mask.first, mask.second, mask.limit
    elif isinstance(mask, Place):
        trains, packed = mask.count, is_packed(gradient, mask)
        seen = trains if packed else mask.size
        if mask.index is not None:  # its blocks are of the index
            kind, size, place = AT_INDEX, mask.count, mask.index.data_ptr()
        elif mask.bits is not None:
            kind, place = AT_BITS, mask.bits.data_ptr()
    elif mask is not None:
        if mask.dtype is not torch.uint8 or 8 * mask.numel() < size or not mask.is_contiguous():
            raise UsageError(f"the bits of {size} entries cannot be {tuple(mask.shape)} of {mask.dtype}")
        kind, place = MASKED, mask.data_ptr()
    if not (gradient.numel() == seen and first.numel() == second.numel() == trains):
        raise UsageError(
            f"a gradient of {gradient.numel()} and moments of {first.numel()} entries do not fit {trains} that train"
        )
    return kind, size, packed, place, start, key, limit


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor that the loops can work on. Compiled code checks nothing any more."""
    if tensor.dtype is not torch.float32 or not tensor.is_cpu or not tensor.is_contiguous():
        raise UsageError(
            f"the compiled AdamW wants contiguous float32 tensors on the CPU, got {tensor.dtype} on {tensor.device}"
        )
    return tensor.data_ptr()
