"""Random masks as a pure function of seed, step, tensor name and element index: no random-number state anywhere.

Hash, version 1 (`HASH_VERSION`), all arithmetic on unsigned 32-bit words that wrap around:

    k0, k1 = the two little-endian words of blake2b("seed/step/name", 8 bytes, salt = high word of the index)
    mix(x):  x ^= x >> 16;  x *= 0x21f0aaad;  x ^= x >> 15;  x *= 0x735a2d97;  x ^= x >> 15      (logical shifts)
    hash(i) = mix(mix((i mod 2^32) + k0) ^ k1)

`seed` and `step` are written in decimal, `name` in UTF-8; the salt is the index's high word (index div 2^32) as eight
little-endian bytes, so that it is absent (zero) for every tensor of fewer than 2^32 entries. An entry is selected iff
int32(hash) < round(keep * 2^32) - 2^31. The index is that of the unsharded tensor, so a mask is the same for every
sharding, device, rank and thread count. One keyed round is not enough: masks of two tensors would be permuted copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.core.recipe import check_choice, check_fraction
from subnetune.core.types import Placement
from subnetune.core.units import BLOCK, UNITS, grid_of, spread_blocks

HASH_VERSION = 1

_WORD = 1 << 32
_SCORE_STEP = -1  # uniform scores are drawn at a step that no training step has


def keys(seed: int, step: int, name: str, high: int = 0) -> tuple[int, int]:
    """Return the two 32-bit keys for the entries of tensor `name` whose index has the high word `high`."""
    text = f"{seed:d}/{step:d}/{name}".encode()
    salt = high.to_bytes(8, "little") if high else b""  # a salt of zeros is none
    words = int.from_bytes(hashlib.blake2b(text, digest_size=8, salt=salt).digest(), "little")
    return words & 0xFFFFFFFF, words >> 32


def draw_seed(seed: int, index: int, name: str) -> int:
    """Return a seed in [0, 2**63) for a generator of its own: the `index`-th draw of the stream `name`."""
    first, second = keys(seed, index, name)
    return (first << 31) ^ second


def hash_range(
    seed: int, step: int, name: str, start: int, stop: int, device: torch.device | str | None = None
) -> Tensor:
    """Return the hashes of flat indices `start .. stop - 1`: int32 with the unsigned word's bits, (stop - start,)."""
    if not 0 <= start <= stop:
        raise UsageError(f"hash_range: wanted 0 <= start <= stop, got start {start} and stop {stop}")
    out = torch.empty(stop - start, dtype=torch.int32, device=device)
    for low, piece in _hashes(seed, step, name, start, stop, out.device):
        out[low - start : low - start + piece.numel()] = piece
    return out


def hash_at(seed: int, step: int, name: str, index: Tensor) -> Tensor:
    """Return the hashes of flat indices, int64, (n,), ascending: int32 with the unsigned word's bits, (n,)."""
    result = torch.empty(index.numel(), dtype=torch.int32, device=index.device)
    if not index.numel():
        return result
    for high in range(int(index[0]) // _WORD, int(index[-1]) // _WORD + 1):
        here = slice(int(torch.searchsorted(index, high * _WORD)), int(torch.searchsorted(index, (high + 1) * _WORD)))
        first, second = keys(seed, step, name, high)
        x = (index[here] + first) % _WORD
        x = torch.where(x >= _WORD >> 1, x - _WORD, x).to(torch.int32)
        result[here] = _finish(x, torch.empty_like(x), second)
    return result


def bernoulli_mask(
    seed: int,
    step: int,
    name: str,
    keep: float,
    where: Placement,
    local_shape: tuple[int, ...],
    unit: str = "entry",
    device: torch.device | str | None = None,
    block: int = BLOCK,
) -> Tensor:
    """Return the random mask of the local part of a tensor: bool, each unit selected with probability `keep`.

    The shape broadcasts to `local_shape`: itself for "entry", (rows, 1, ...) for "row" (index along the first axis),
    (1, ..., columns) for "column" (index along the last), () for "tensor", (rows, 1, ..., columns) for "block": squares
    of `block` entries a side, counted row by row in the grid that they form. In a tensor of one axis rows and columns
    are entries, and blocks are runs of them. The mask of a shard, cut along any axes, is that part of the mask of the
    whole. Rows, columns and blocks of one name share their hashes: a caller that combines them gives them different
    names.
    """
    check_fraction("bernoulli_mask", "keep", keep)
    check_choice("bernoulli_mask", "unit", unit, UNITS)
    _check_part(name, where, local_shape)
    axes = len(local_shape)
    shape: tuple[int, ...]
    length: tuple[int, ...]
    start: tuple[int, ...]
    index_shape: tuple[int, ...]
    if unit == "tensor" or axes == 0:
        shape, index_shape, start, length = (), (), (), ()
    elif unit == "block":
        grid, length = grid_of(where, local_shape, block)
        shape, index_shape, start = length, grid.shape, grid.start
    elif unit == "entry" or axes == 1:
        shape, index_shape, start, length = local_shape, where.shape, where.start, local_shape
    else:
        axis = 0 if unit == "row" else axes - 1
        shape = tuple(n if i == axis else 1 for i, n in enumerate(local_shape))
        index_shape, start, length = (where.shape[axis],), (where.start[axis],), (local_shape[axis],)
    limit = threshold(keep)
    if limit >= _WORD >> 1:  # keep = 1, or so near that no int32 lies above
        return torch.ones(shape if unit != "block" else (1,) * axes, dtype=torch.bool, device=device)
    out = torch.empty(prod(length), dtype=torch.bool, device=device)
    for low, piece in _part_hashes(seed, step, name, index_shape, start, length, out.device):
        torch.lt(piece, limit, out=out[low : low + piece.numel()])
    return (
        out.view(shape) if unit != "block" or axes == 0 else spread_blocks(out.view(shape), where, local_shape, block)
    )


def threshold(keep: float) -> int:
    """Return the signed word below which the hash of a selected entry lies; 2^31, above every one, for keep = 1."""
    return round(keep * _WORD) - (_WORD >> 1)


def below(first: int, second: int, limit: int, start: int, count: int, device: torch.device | str) -> Tensor:
    """Return which of `count` entries from flat index `start` have a hash below `limit`: bool, (count,).

    `first` and `second` are the `keys`; the indices must share their high word. A limit of 2^31 lies above every hash.
    """
    if limit >= _WORD >> 1:
        return torch.ones(count, dtype=torch.bool, device=device)
    out = torch.empty(count, dtype=torch.bool, device=device)
    size = _chunk(out.device)
    for low in range(0, count, size):
        here = min(size, count - low)
        x = torch.arange(here, dtype=torch.int32, device=device)
        x += _signed(start + low + first)
        torch.lt(_finish(x, torch.empty_like(x), second), limit, out=out[low : low + here])
    return out


def uniform_scores(
    seed: int, name: str, where: Placement, local_shape: tuple[int, ...], device: torch.device | str | None = None
) -> Tensor:
    """Return float32 numbers in [0, 1), one per entry of the local part, independent of every step's random mask.

    They are multiples of 2^-24 (the hash's upper bits): the highest k of them are a random subset of exactly k entries.
    """
    _check_part(name, where, local_shape)
    out = torch.empty(prod(local_shape), dtype=torch.float32, device=device)
    for low, piece in _part_hashes(seed, _SCORE_STEP, name, where.shape, where.start, local_shape, out.device):
        piece >>= 8
        piece &= 0xFFFFFF
        torch.mul(piece, 2.0**-24, out=out[low : low + piece.numel()])
    return out.view(local_shape)


def _check_part(name: str, where: Placement, local_shape: tuple[int, ...]) -> None:
    fits = len(where.shape) == len(where.start) == len(local_shape) and all(
        first >= 0 and first + size <= whole
        for whole, first, size in zip(where.shape, where.start, local_shape, strict=True)
    )
    if not fits:
        raise UsageError(
            f"tensor {name!r}: the part {local_shape} starting at {where.start} does not lie inside {where.shape}"
        )


def _chunk(device: torch.device) -> int:
    # On a CPU the chunk and its temporary stay in the cache; an accelerator wants fewer, larger kernels.
    return 1 << 16 if device.type == "cpu" else 1 << 22


def _hashes(
    seed: int, step: int, name: str, start: int, stop: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first index, int32 hashes) for consecutive pieces of `start .. stop - 1`. A piece lives until the next."""
    size = min(_chunk(device), max(stop - start, 1))
    ramp = torch.arange(size, dtype=torch.int32, device=device)
    x, scratch = torch.empty_like(ramp), torch.empty_like(ramp)
    low = start
    while low < stop:
        high = low // _WORD
        count = min(size, stop - low, (high + 1) * _WORD - low)
        first, second = keys(seed, step, name, high)
        torch.add(ramp[:count], _signed(low + first), out=x[:count])
        yield low, _finish(x[:count], scratch[:count], second)
        low += count


def _part_hashes(
    seed: int,
    step: int,
    name: str,
    shape: tuple[int, ...],
    start: tuple[int, ...],
    local_shape: tuple[int, ...],
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (first local flat index, int32 hashes) for consecutive pieces of the part of a tensor of `shape`."""
    total = prod(local_shape)
    if not total:
        return
    strides = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = sum(begin * stride for begin, stride in zip(start, strides, strict=True))
    if local_shape[1:] == shape[1:]:  # one run of consecutive indices
        for low, piece in _hashes(seed, step, name, first, first + total, device):
            yield low - first, piece
        return
    size = _chunk(device)
    for low in range(0, total, size):
        rest = torch.arange(low, min(low + size, total), dtype=torch.int64, device=device)
        index = torch.full_like(rest, first)
        for axis in reversed(range(len(shape))):
            index += rest.remainder(local_shape[axis]) * strides[axis]
            rest = rest.div(local_shape[axis], rounding_mode="floor")
        yield low, hash_at(seed, step, name, index)


def _finish(x: Tensor, scratch: Tensor, second: int) -> Tensor:
    """Return mix(mix(x) ^ second), computed in place in `x`."""
    _mix(x, scratch)
    x ^= _signed(second)
    _mix(x, scratch)
    return x


def _mix(x: Tensor, scratch: Tensor) -> None:
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
        torch.bitwise_right_shift(x, shift, out=scratch)
        scratch &= (1 << (32 - shift)) - 1  # the shift of a signed word copies its sign: take the copies away
        x ^= scratch
        if factor != 1:
            x *= factor


def _signed(word: int) -> int:
    """Return the int32 that has the bits of `word` mod 2^32."""
    return (word + (_WORD >> 1)) % _WORD - (_WORD >> 1)
