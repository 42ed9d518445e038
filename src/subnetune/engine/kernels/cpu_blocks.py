"""The loops inside one block of entries, compiled as parts of the entries in `cpu_loops`.

Every array is one-dimensional and contiguous. A block's packed entries go through buffers that fit the first cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, int32, njit, uint8, uint16, uint32
from numba.extending import overload

from subnetune.engine.kernels.cpu_vectors import (
    LANES,
    SQUEEZES,
    choose,
    expand,
    lanes,
    less,
    load,
    ones,
    ramp,
    root,
    spread,
    squeeze,
    store,
    store_some,
    times_plus,
)
from subnetune.engine.place import BLOCK

Array = np.ndarray[Any, Any]
ALL = uint16(0xFFFF)
SLACK = LANES  # entries that a buffer has beyond a block: whole vectors are written to it

# numpy's error model: a division by zero gives inf or NaN, as in torch, and costs no branch.
part = njit(error_model="numpy")


@part
def spread_rates(rates):  # type: ignore[no-untyped-def]
    """Return the ten numbers of `cpu.rates_of` as vectors, the last one as lanes."""
    return (
        spread(rates[0]),
        spread(rates[1]),
        spread(rates[2]),
        spread(rates[3]),
        spread(rates[4]),
        spread(rates[5]),
        spread(rates[6]),
        spread(rates[7]),
        spread(rates[8]),
        lanes(uint16(ALL if rates[9] != 0 else 0)),
    )


@part
def step(weight, gradient, first, second, rates):  # type: ignore[no-untyped-def]
    """Return AdamW's new weight and averages, each operation rounded as torch rounds it (it fuses the same ones)."""
    decay, pull, beta, rest, correction, eps, size, scale, factor, far = rates
    gradient = gradient * scale * factor
    # lerp, from the end that is nearer, so that a weight of one gives the gradient itself
    first = times_plus(pull, gradient - first, choose(far, gradient, first))
    second = times_plus(rest * gradient, gradient, second * beta)
    return weight * decay - size * first / (root(second) / correction + eps), first, second


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
def dense(weights, gradient, first, second, numbers):  # type: ignore[no-untyped-def]
    """Update every entry."""
    rates = spread_rates(numbers)
    full = weights.size // LANES
    for vector in range(full):
        i = vector * LANES
        w, m, v = step(load(weights, i), load(gradient, i), load(first, i), load(second, i), rates)
        store(weights, i, w)
        store(first, i, m)
        store(second, i, v)
    i = full * LANES
    if i < weights.size:
        here = lowest(weights.size - i)
        w, m, v = step(
            expand(weights, i, here), expand(gradient, i, here), expand(first, i, here), expand(second, i, here), rates
        )
        store_some(weights, i, w, here)
        store_some(first, i, m, here)
        store_some(second, i, v, here)


@part
def treated(weights, gradient, first, second, numbers, chosen, i, zero, hold, rates):  # type: ignore[no-untyped-def]
    """Update the full vector at entry i under the mask `chosen`; `zero` and `hold` are lanes: all, or none."""
    old = load(weights, i)
    seen = choose(chosen | zero, load(gradient, i), spread(float32(0)))
    w, m, v = step(old, seen, load(first, i), load(second, i), rates)
    store(weights, i, choose(chosen | hold, w, old))
    store(first, i, m)
    store(second, i, v)


@part
def treated_end(weights, gradient, first, second, numbers, chosen, i, zero, hold, rates):  # type: ignore[no-untyped-def]
    """The same for the last entries, fewer than sixteen."""
    here = lowest(weights.size - i)
    old = expand(weights, i, here)
    seen = choose(chosen | zero, expand(gradient, i, here), spread(float32(0)))
    w, m, v = step(old, seen, expand(first, i, here), expand(second, i, here), rates)
    store_some(weights, i, choose(chosen | hold, w, old), here)
    store_some(first, i, m, here)
    store_some(second, i, v, here)


@part
def mix(x):  # type: ignore[no-untyped-def]
    """One round of the hash (core.hashing)."""
    x = x ^ (x >> spread(uint32(16)))
    x = x * spread(uint32(0x21F0AAAD))
    x = x ^ (x >> spread(uint32(15)))
    x = x * spread(uint32(0x735A2D97))
    return x ^ (x >> spread(uint32(15)))


@part
def hashed(weights, gradient, first, second, numbers, base, key, limit, zero, hold):  # type: ignore[no-untyped-def]
    """Update under the random mask of a block whose entry 0 has index + first key = `base`."""
    rates = spread_rates(numbers)
    everywhere, kept = lanes(uint16(0 if zero else ALL)), lanes(uint16(0 if hold else ALL))
    counter, keys, bound, stride = ramp() + spread(base), spread(key), spread(limit), spread(uint32(LANES))
    full = weights.size // LANES
    for vector in range(full):
        chosen = less(mix(mix(counter) ^ keys), bound)
        counter = counter + stride
        treated(weights, gradient, first, second, numbers, chosen, vector * LANES, everywhere, kept, rates)
    if full * LANES < weights.size:
        chosen = less(mix(mix(counter) ^ keys), bound)
        treated_end(weights, gradient, first, second, numbers, chosen, full * LANES, everywhere, kept, rates)


@part
def masked(weights, gradient, first, second, numbers, bits, zero, hold):  # type: ignore[no-untyped-def]
    """Update under a bitmask."""
    rates = spread_rates(numbers)
    everywhere, kept = lanes(uint16(0 if zero else ALL)), lanes(uint16(0 if hold else ALL))
    full = weights.size // LANES
    for vector in range(full):
        chosen = lanes(word_at(bits, vector))
        treated(weights, gradient, first, second, numbers, chosen, vector * LANES, everywhere, kept, rates)
    if full * LANES < weights.size:
        chosen = lanes(word_at(bits, full))
        treated_end(weights, gradient, first, second, numbers, chosen, full * LANES, everywhere, kept, rates)


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
def take_at(source, index, out):  # type: ignore[no-untyped-def]
    """Write source[index] into `out`."""
    for i in range(index.size):
        out[i] = source[index[i]]


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


__all__ = ["ALL", "BLOCK", "SLACK", "dense", "hashed", "int32", "masked", "put", "put_at", "take", "take_at"]
