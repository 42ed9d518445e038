"""Which entries of a tensor moved, in few bytes: a bitmap, or Golomb-Rice coded gaps where those are smaller.

Gap coding (Golomb 1966, Rice 1979): the entries between two coded positions are counted; the low r bits of the counts
are stored as bit planes, the rest in unary. It codes the positions that moved or, as "holes", those that did not. For
any k of n positions it takes at most k (1 + r) + (n - k) / 2^r bits at the best r: the smaller of it and the bitmap is
within 1.11 of n H(k / n). All bits are little-endian in their byte; every part starts at a byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from subnetune.core.errors import CheckpointError, UsageError

CODINGS = ("bitmap", "gaps", "holes")
_PIECE = 1 << 15  # positions at a time: their int64 numbers fit into the cache (a multiple of 8: bit planes go on)
_DECODED = 1 << 17  # bits decoded at a time: threads need work beside the interpreter's lock (a multiple of 8 too)
_MOST_ENTRIES = 1 << 61  # sums of two positions stay inside int64
_Numbers: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Index:
    """Coded positions: `moved` of `entries` flat positions, as `coding`, with `low` bits of each gap in planes.

    `data` is uint8, (bytes,). Positions are ascending and unique by construction: no other ones can be written down.
    """

    coding: str
    low: int
    entries: int
    moved: int
    data: Tensor

    def pieces(self) -> Iterator[Tensor]:
        """Yield the flat positions, int64, ascending, in pieces that fit into the cache.

        Raises CheckpointError on bytes that are not valid, before the first piece.
        """
        data = self.data.numpy()
        if self.coding == "gaps":
            yield from map(torch.from_numpy, _decode_gaps(data, self.low, self.entries, self.moved))
            return
        mask = self._bits(data)
        for start in range(0, mask.size, _DECODED):
            where = np.flatnonzero(mask[start : start + _DECODED])
            where += start
            if where.size:
                yield torch.from_numpy(where)

    def positions(self) -> Tensor:
        """Return the flat positions, int64, (moved,), ascending. Raises CheckpointError on bytes that are not valid."""
        pieces = [piece.numpy() for piece in self.pieces()]
        return torch.from_numpy(np.concatenate([*pieces, np.empty(0, dtype=np.int64)]))

    def mask(self) -> Tensor:
        """Return the positions as a mask, bool, (entries,). Raises CheckpointError on bytes that are not valid."""
        data = self.data.numpy()
        if self.coding != "gaps":
            return torch.from_numpy(self._bits(data))
        mask = np.zeros(self.entries, dtype=np.bool_)
        for where in _decode_gaps(data, self.low, self.entries, self.moved):
            mask[where] = True
        return torch.from_numpy(mask)

    def _bits(self, data: _Numbers) -> _Numbers:
        if self.coding == "bitmap":
            _check_bits(data, self.entries, self.moved)
            return np.unpackbits(data, count=self.entries, bitorder="little").view(np.bool_)
        mask = np.ones(self.entries, dtype=np.bool_)
        for where in _decode_gaps(data, self.low, self.entries, self.entries - self.moved):
            mask[where] = False
        return mask

    def check(self) -> None:
        """Raise CheckpointError unless the bytes hold exactly `moved` positions below `entries`."""
        known = self.coding in CODINGS and 0 <= self.low < 62 and (self.coding != "bitmap" or self.low == 0)
        if not known or not 0 < self.moved <= self.entries < _MOST_ENTRIES:
            what = f"{self.coding!r} with {self.low} low bits for {self.moved} of {self.entries} entries"
            raise CheckpointError(f"unknown index coding {what}; this version knows {', '.join(CODINGS)}")
        if self.data.dtype != torch.uint8 or self.data.dim() != 1:
            raise CheckpointError(
                f"an index is a row of bytes, got {self.data.dtype} of shape {tuple(self.data.shape)}"
            )
        data = self.data.numpy()
        if self.coding == "bitmap":
            _check_bits(data, self.entries, self.moved)
        else:
            count = self.moved if self.coding == "gaps" else self.entries - self.moved
            _check_gaps(data, self.low, self.entries, count)


def encode_mask(mask: Tensor) -> Index:
    """Return the smallest coding of a bool mask, (entries,). Raises UsageError where nothing is selected."""
    flat = mask.reshape(-1).numpy()
    moved = int(np.count_nonzero(flat))
    if moved == 0:
        raise UsageError("an index of no positions: leave a tensor out that did not move")
    coding, count = ("gaps", moved) if 2 * moved <= flat.size else ("holes", flat.size - moved)
    if _least_gap_bytes(count, flat.size) < _bytes_for(flat.size):
        low, data = _encode_gaps(np.flatnonzero(flat if coding == "gaps" else ~flat), flat.size)
        if data.size < _bytes_for(flat.size):
            return Index(coding, low, flat.size, moved, torch.from_numpy(data))
    return Index("bitmap", 0, flat.size, moved, torch.from_numpy(np.packbits(flat, bitorder="little")))


def encode_positions(positions: Tensor, entries: int) -> Index:
    """Return the smallest coding of flat positions, int64, (moved,), of a tensor with `entries` entries.

    Few positions in a huge tensor need no memory of the tensor's size. Raises UsageError unless the positions are
    ascending, unique, and in range(entries).
    """
    if positions.dtype != torch.int64 or positions.dim() != 1 or positions.numel() == 0:
        raise UsageError(f"positions must be int64, (moved,), got {positions.dtype} of shape {tuple(positions.shape)}")
    where = positions.numpy()
    if where[0] < 0 or where[-1] >= entries or not bool(np.all(where[1:] > where[:-1])):
        raise UsageError(f"positions must be ascending, unique and in range({entries})")
    if 8 * where.size < entries:  # then gap coding is always the smallest
        low, data = _encode_gaps(where, entries)
        return Index("gaps", low, entries, where.size, torch.from_numpy(data))
    mask = np.zeros(entries, dtype=np.bool_)
    mask[where] = True
    return encode_mask(torch.from_numpy(mask))


def entropy_bytes(moved: int, entries: int) -> float:
    """Return entries * H(moved / entries) / 8: what an ideal code for random positions of this density takes."""
    share = moved / entries
    if share in (0.0, 1.0):
        return 0.0
    return entries * -(share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8


def _least_gap_bytes(count: int, entries: int) -> int:
    """Return a lower bound on the bytes of `count` coded gaps: one unary bit and the low bits for each."""
    return max(1, _first_guess(count, entries)) * _bytes_for(count)


def _bytes_for(bits: int) -> int:
    return (bits + 7) // 8


def _first_guess(count: int, entries: int) -> int:
    """The low bits that suit geometric gaps: near log2(mean gap * ln 2)."""
    mean = (entries - count) / max(count, 1)
    return max(0, round(math.log2(mean * math.log(2)))) if mean * math.log(2) > 1 else 0


def _gaps(positions: _Numbers) -> Iterator[tuple[int, _Numbers]]:
    """Yield, a cache-sized piece at a time, where it starts and how many entries are skipped before each position."""
    before = -1
    for start in range(0, positions.size, _PIECE):
        part = positions[start : start + _PIECE]
        gaps = part - 1
        gaps[1:] -= part[:-1]
        gaps[0] -= before
        before = int(part[-1])
        yield start, gaps


def _encode_gaps(positions: _Numbers, entries: int) -> tuple[int, _Numbers]:
    """Return the number of low bits and the bytes: unary bits, then one plane for each low bit."""
    count, plane = positions.size, _bytes_for(positions.size)
    guess = _first_guess(count, entries)
    highs = dict.fromkeys(range(max(0, guess - 1), guess + 2), 0)
    for _, gaps in _gaps(positions):
        for bits in highs:
            highs[bits] += int((gaps >> bits).sum())
    low = min(highs, key=lambda bits: (_bytes_for(count + highs[bits]) + bits * plane, bits))
    unary = np.zeros(count + highs[low], dtype=np.uint8)
    planes = np.zeros((low, plane), dtype=np.uint8)
    end = -1
    for start, gaps in _gaps(positions):
        ends = np.cumsum((gaps >> low) + 1)  # where each unary number ends
        ends += end
        end = int(ends[-1])
        unary[ends] = 1
        place = start // 8
        for bit in range(low):
            packed = np.packbits((gaps >> bit).astype(np.uint8) & 1, bitorder="little")
            planes[bit, place : place + packed.size] = packed
    return low, np.concatenate([np.packbits(unary, bitorder="little"), planes.reshape(-1)])


def _check_gaps(data: _Numbers, low: int, entries: int, count: int) -> tuple[_Numbers, _Numbers]:
    """Return the unary bytes and the planes; raises CheckpointError on anything `_encode_gaps` would not write.

    Counting bits is enough: positions ascend whatever the bits are, and the sum of all gaps is where the last one lies.
    """
    plane = _bytes_for(count)
    split = data.size - low * plane
    unary = data[: max(split, 0)]
    ones = _ones(unary)
    used = 8 * (split - 1) + int(unary[-1]).bit_length() if ones else 0  # up to the last bit that is set
    if ones != count or _bytes_for(used) != split:
        raise CheckpointError(f"the index holds {ones} positions in {data.size} bytes, its header says {count}")
    planes = data[split:].reshape(low, plane)
    for bits in planes:
        _check_bits(bits, count)
    last = ((used - count) << low) + sum(_ones(bits) << bit for bit, bits in enumerate(planes)) + count - 1
    if last >= entries:
        raise CheckpointError(f"the index leaves the tensor: its last position is {last}, the tensor has {entries}")
    return unary, planes


def _decode_gaps(data: _Numbers, low: int, entries: int, count: int) -> Iterator[_Numbers]:
    """Yield the `count` ascending positions, int64, in pieces; raises CheckpointError as `_check_gaps` does."""
    unary, planes = _check_gaps(data, low, entries, count)  # from here on nothing can leave the range of int64
    each = np.arange(min(_DECODED, count))
    start, position = 0, -1
    for byte in range(0, unary.size, _DECODED // 8):
        where = np.flatnonzero(np.unpackbits(unary[byte : byte + _DECODED // 8], bitorder="little").view(np.bool_))
        stop = start + where.size
        if low == 0:  # the unary bits are a bitmap
            where += 8 * byte
        else:
            where -= each[: where.size]
            where += (
                8 * byte - start
            )  # the zeros among the unary bits so far: the high bits of all gaps so far, added up
            where *= 1 << low
            steps = np.cumsum(_steps(planes, start, stop), dtype=np.int64)
            steps += position
            where += steps
            position = int(steps[-1]) if steps.size else position
        start = stop
        if where.size:
            yield where


def _steps(planes: _Numbers, start: int, stop: int) -> _Numbers:
    """Return one more than the low bits of the gaps from `start` to `stop`, (stop - start,), in narrow integers."""
    dtype = np.uint8 if len(planes) < 8 else np.int64
    before, count = start % 8, stop - start // 8 * 8
    steps: _Numbers = np.ones(stop - start, dtype=dtype)
    for bit, plane in enumerate(planes):
        bits = np.unpackbits(plane[start // 8 : _bytes_for(stop)], count=count, bitorder="little")[before:]
        steps += np.multiply(bits, 1 << bit, dtype=dtype) if bit else bits
    return steps


def _ones(data: _Numbers) -> int:
    """Return how many bits are set, eight bytes at a time."""
    data = np.ascontiguousarray(data)
    body = data.size - data.size % 8
    found = np.bitwise_count(data[:body].view(np.uint64)).sum(dtype=np.int64)
    return int(found) + int(np.bitwise_count(data[body:]).sum(dtype=np.int64))


def _check_bits(data: _Numbers, count: int, ones: int | None = None) -> None:
    """Raise CheckpointError unless there are exactly `count` bits, `ones` of them set."""
    if data.size != _bytes_for(count) or (count % 8 and data[-1] >> (count % 8)):
        raise CheckpointError(f"{count} bits were expected in {_bytes_for(count)} bytes, got {data.size} or stray bits")
    if ones is not None and (found := _ones(data)) != ones:
        raise CheckpointError(f"the index holds {found} positions, its header says {ones}")
