"""Moving selected entries inside compiled code: side by side into a buffer, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, njit, uint8, uint16
from numba.extending import overload

from subnetune.engine.kernels.cpu_vectors import (
    LANES,
    SQUEEZES,
    choose,
    expand,
    lanes,
    load,
    ones,
    ones_of_word,
    prefetch,
    squeeze,
    store,
    store_some,
)

Array = np.ndarray[Any, Any]
TILE = 512  # entries whose values, gradients and packed states stay in the first cache
SLACK = LANES  # entries that a buffer has beyond what is taken: whole vectors are written to it

# numpy's error model: a division by zero gives inf or NaN, as in torch, and costs no branch.
part = njit(error_model="numpy")


@part
def lowest(count):  # type: ignore[no-untyped-def]
    """Return the first `count` lanes, of fewer than sixteen."""
    return lanes(uint16((1 << count) - 1))


@part
def word_at(bits, position):  # type: ignore[no-untyped-def]
    """Return the bits of vector `position` of a block; those beyond the last byte are zero."""
    byte = 2 * position
    if byte + 1 < bits.size:
        return uint16(bits[byte] | (uint16(bits[byte + 1]) << 8))
    return uint16(bits[byte])


@part
def ones_in(bits):  # type: ignore[no-untyped-def]
    """Return how many bits of an array of bytes are set."""
    count, words = 0, bits.size // 8
    for word in range(words):
        count += ones_of_word(bits, 8 * word)
    for byte in bits[8 * words :]:
        count += ones(uint16(byte))
    return count


def take(source: Array, bits: Array, out: Array) -> int:
    """Write the selected entries of a block side by side into a buffer, and return how many they are."""
    raise NotImplementedError("compiled only")


@overload(take, jit_options={"error_model": "numpy"})
def _take(source, bits, out):  # type: ignore[no-untyped-def]
    def vectors(source, bits, out):  # type: ignore[no-untyped-def]
        count, full = 0, source.size // LANES
        for vector in range(full):
            word = word_at(bits, vector)
            store(out, count, squeeze(load(source, vector * LANES), lanes(word)))
            count += ones(word)
        if full * LANES < source.size:
            word = word_at(bits, full)
            here = lowest(source.size - full * LANES)
            store(out, count, squeeze(expand(source, full * LANES, here), lanes(word)))
            count += ones(word)
        return count

    def entries(source, bits, out):  # type: ignore[no-untyped-def]
        count = 0
        for i in range(source.size):
            out[count] = source[i]  # written whether selected or not: no branch to guess
            count += (bits[i >> 3] >> uint8(i & 7)) & 1
        return count

    return vectors if SQUEEZES and source.dtype is float32 else entries


def put(values: Array, bits: Array, target: Array) -> None:
    """Write `values` into the selected entries of a block."""
    raise NotImplementedError("compiled only")


@overload(put, jit_options={"error_model": "numpy"})
def _put(values, bits, target):  # type: ignore[no-untyped-def]
    def vectors(values, bits, target):  # type: ignore[no-untyped-def]
        count, full = 0, target.size // LANES
        for vector in range(full):
            i = vector * LANES
            word = word_at(bits, vector)
            chosen = lanes(word)
            store(target, i, choose(chosen, expand(values, count, chosen), load(target, i)))
            count += ones(word)
        if full * LANES < target.size:
            chosen = lanes(word_at(bits, full))
            store_some(target, full * LANES, expand(values, count, chosen), chosen)

    def entries(values, bits, target):  # type: ignore[no-untyped-def]
        count = 0
        for i in range(target.size):
            if (bits[i >> 3] >> uint8(i & 7)) & 1:
                target[i] = values[count]
                count += 1

    return vectors if SQUEEZES and target.dtype is float32 else entries


@part
def take_both(weights, gradient, low, high, bits, chosen, seen):  # type: ignore[no-untyped-def]
    """Take from entries low .. high - 1 of both."""
    full = (high - low) // LANES if SQUEEZES else 0
    count = 0
    for vector in range(full):
        i = low + vector * LANES
        word = word_at(bits, vector)
        store(chosen, count, squeeze(load(weights, i), lanes(word)))
        store(seen, count, squeeze(load(gradient, i), lanes(word)))
        count += ones(word)
    if low + full * LANES < high:
        rest = bits[2 * full :]
        take(weights[low + full * LANES : high], rest, chosen[count:])
        count += take(gradient[low + full * LANES : high], rest, seen[count:])
    return count


@part
def put_ahead(values, bits, weights, gradient, low, high):  # type: ignore[no-untyped-def]
    """Put into entries low .. high - 1 of the weights, while the next tile of both comes from memory."""
    full = (high - low) // LANES if SQUEEZES else 0
    count = 0
    for vector in range(full):
        i = low + vector * LANES
        word = word_at(bits, vector)
        chosen = lanes(word)
        prefetch(weights, i + TILE)
        prefetch(gradient, i + TILE)
        store(weights, i, choose(chosen, expand(values, count, chosen), load(weights, i)))
        count += ones(word)
    if low + full * LANES < high:
        put(values[count:], bits[2 * full :], weights[low + full * LANES : high])


@part
def take_at(source, index, out):  # type: ignore[no-untyped-def]
    """Write source[index] into `out`."""
    for i in range(index.size):
        out[i] = source[index[i]]


@part
def take_both_at(weights, gradient, index, chosen, seen):  # type: ignore[no-untyped-def]
    """Take weights[index] and gradient[index]."""
    for i in range(index.size):
        where = index[i]
        chosen[i] = weights[where]
        seen[i] = gradient[where]


@part
def put_at(values, index, target):  # type: ignore[no-untyped-def]
    """Write `values` into target[index]."""
    for i in range(index.size):
        target[index[i]] = values[i]


@part
def write(values, out, add):  # type: ignore[no-untyped-def]
    """Write a buffer into `out`, or add it."""
    if add:
        for i in range(values.size):
            out[i] = out[i] + values[i]
    else:
        for i in range(values.size):
            out[i] = values[i]
