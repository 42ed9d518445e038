"""The compiled entries, and those that move selected entries: over a range of blocks, or in numba's threads.

A block is 4096 entries (of a tensor, or of an index), whatever the number of threads: so are the results. The machine
code is kept in numba's cache: beside this file, in the user's cache folder where that is read-only, in NUMBA_CACHE_DIR
where that is set, nowhere where nothing can be written (each process then compiles what it uses).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import CellType, FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from subnetune.engine.kernels import cpu_blocks as block
from subnetune.engine.kernels.cpu_blocks import BLOCK, SLACK


def _sources() -> str:
    """Return what tells one version of the loops inside the blocks from another."""
    files = (Path(__file__).with_name(name) for name in ("cpu_blocks.py", "cpu_moves.py", "cpu_vectors.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_SOURCES = _sources()
Compiled = Callable[..., None]


class Loop(NamedTuple):
    """One operation: `serial(*arrays, low, high)` for blocks low .. high - 1, `parallel(*arrays, blocks, pieces)` for
    all, shared out as so many pieces of neighbours.
    """

    serial: Compiled
    parallel: Compiled


def compiled_entry(*, parallel: bool) -> Callable[[Callable[..., Any]], Compiled]:
    """Compile an entry when it is first called, and keep the machine code where that is possible."""

    def compiled(function: Callable[..., Any]) -> Compiled:
        # numba trusts cached code while the entry's own file is as it was, although code of `cpu_blocks` is in it. Its
        # key covers what a function closes over as well: close over their sources.
        code = function.__code__.replace(co_freevars=(*function.__code__.co_freevars, "sources"))
        closure = (*(function.__closure__ or ()), CellType(_SOURCES))
        keyed = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        keyed.__module__, keyed.__qualname__, keyed.__doc__ = (
            function.__module__,
            function.__qualname__,
            function.__doc__,
        )
        options: dict[str, Any] = {"error_model": "numpy", "nogil": True, "parallel": parallel}
        try:
            return njit(cache=True, **options)(keyed)  # type: ignore[no-any-return]
        except RuntimeError:  # no folder can be written
            return njit(**options)(keyed)  # type: ignore[no-any-return]

    return compiled


@compiled_entry(parallel=True)
def _split(bits, blocks, starts, ranks):  # type: ignore[no-untyped-def]
    """Split the blocks into as many pieces as there are ranks: the first block of each, and how many lie before it."""
    pieces = ranks.size
    for p in range(pieces + 1):
        starts[p] = blocks * p // pieces
    for p in prange(pieces - 1):
        ranks[p + 1] = block.ones_in(bits[starts[p] * BLOCK // 8 : starts[p + 1] * BLOCK // 8])
    for p in range(1, pieces):
        ranks[p] += ranks[p - 1]


@compiled_entry(parallel=False)
def _gather_bits(source, bits, out, add, low, high, rank=0):  # type: ignore[no-untyped-def]
    buffer = np.empty(BLOCK + SLACK, source.dtype)
    for b in range(low, high):
        here = source[b * BLOCK : min(source.size, (b + 1) * BLOCK)]
        count = block.take(here, bits[b * BLOCK // 8 : (b + 1) * BLOCK // 8], buffer)
        block.write(buffer[:count], out[rank : rank + count], add)
        rank += count


@compiled_entry(parallel=True)
def _gather_bits_parallel(source, bits, out, add, blocks, pieces):  # type: ignore[no-untyped-def]
    starts, ranks = np.zeros(pieces + 1, np.int64), np.zeros(pieces, np.int64)
    _split(bits, blocks, starts, ranks)
    for p in prange(pieces):
        _gather_bits(source, bits, out, add, starts[p], starts[p + 1], ranks[p])


@compiled_entry(parallel=False)
def _gather_index(source, index, out, add, low, high):  # type: ignore[no-untyped-def]
    buffer = np.empty(BLOCK, source.dtype)
    for b in range(low, high):
        j = slice(b * BLOCK, min(index.size, (b + 1) * BLOCK))
        block.take_at(source, index[j], buffer)
        block.write(buffer[: j.stop - j.start], out[j], add)


@compiled_entry(parallel=True)
def _gather_index_parallel(source, index, out, add, blocks, pieces):  # type: ignore[no-untyped-def]
    for p in prange(pieces):
        _gather_index(source, index, out, add, blocks * p // pieces, blocks * (p + 1) // pieces)


@compiled_entry(parallel=False)
def _scatter_bits(values, bits, target, low, high, rank=0):  # type: ignore[no-untyped-def]
    for b in range(low, high):
        these = bits[b * BLOCK // 8 : (b + 1) * BLOCK // 8]
        count = block.ones_in(these)
        block.put(values[rank : rank + count], these, target[b * BLOCK : min(target.size, (b + 1) * BLOCK)])
        rank += count


@compiled_entry(parallel=True)
def _scatter_bits_parallel(values, bits, target, blocks, pieces):  # type: ignore[no-untyped-def]
    starts, ranks = np.zeros(pieces + 1, np.int64), np.zeros(pieces, np.int64)
    _split(bits, blocks, starts, ranks)
    for p in prange(pieces):
        _scatter_bits(values, bits, target, starts[p], starts[p + 1], ranks[p])


@compiled_entry(parallel=False)
def _scatter_index(values, index, target, low, high):  # type: ignore[no-untyped-def]
    for b in range(low, high):
        j = slice(b * BLOCK, min(index.size, (b + 1) * BLOCK))
        block.put_at(values[j], index[j], target)


@compiled_entry(parallel=True)
def _scatter_index_parallel(values, index, target, blocks, pieces):  # type: ignore[no-untyped-def]
    for p in prange(pieces):
        _scatter_index(values, index, target, blocks * p // pieces, blocks * (p + 1) // pieces)


GATHER_BITS = Loop(_gather_bits, _gather_bits_parallel)
GATHER_INDEX = Loop(_gather_index, _gather_index_parallel)
SCATTER_BITS = Loop(_scatter_bits, _scatter_bits_parallel)
SCATTER_INDEX = Loop(_scatter_index, _scatter_index_parallel)
