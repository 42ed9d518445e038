"""The loops inside one block of entries, compiled as parts of the entries in `cpu_loops`.

Every array is one-dimensional and contiguous. A block's packed entries go through buffers that fit the first cache.
"""

from __future__ import annotations

from numba import float32, int32, uint16, uint32

from subnetune.engine.kernels.cpu_moves import (
    SLACK,
    TILE,
    Array,
    lowest,
    ones_in,
    part,
    put,
    put_ahead,
    put_at,
    take,
    take_at,
    take_both,
    take_both_at,
    word_at,
    write,
)
from subnetune.engine.kernels.cpu_vectors import (
    LANES,
    choose,
    expand,
    lanes,
    less,
    load,
    ramp,
    root,
    spread,
    store,
    store_some,
    times_plus,
)
from subnetune.engine.place import BLOCK

__all__ = [
    "BLOCK",
    "SLACK",
    "Array",
    "at_bits",
    "at_index",
    "dense",
    "hashed",
    "int32",
    "masked",
    "ones_in",
    "put",
    "put_at",
    "take",
    "take_at",
    "write",
]
ALL = uint16(0xFFFF)


@part
def spread_rates(rates):  # type: ignore[no-untyped-def]
    """Return the numbers of `cpu.rates_of` as vectors, the last one as lanes; then whether gradients are divided."""
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
        spread(rates[9]),
        lanes(uint16(ALL if rates[10] != 0 else 0)),
        rates[9] != float32(1),
    )


@part
def step(weight, gradient, first, second, rates):  # type: ignore[no-untyped-def]
    """Return AdamW's new weight and averages, rounded as torch rounds them: it fuses the same operations.

    A quotient takes as long as eight products: where the loop waits for nothing else, each is felt. So the root is not
    divided, as torch does, but multiplied by the divisor's inverse in two parts, which have the bits to round as the
    quotient does, unless that lies within a millionth of a last place from a tie. Both parts are above zero: an
    infinite root stays infinite.
    """
    decay, pull, beta, rest, inverse, inverse_rest, eps, size, scale, divisor, far, divides = rates
    gradient = gradient * scale
    if divides:
        gradient = gradient / divisor
    # lerp, from the end that is nearer, so that a weight of one gives the gradient itself
    first = times_plus(pull, gradient - first, choose(far, gradient, first))
    second = times_plus(rest * gradient, gradient, second * beta)
    deviation = root(second)
    deviation = times_plus(deviation, inverse, deviation * inverse_rest)
    return weight * decay - size * first / (deviation + eps), first, second


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


@part
def at_bits(weights, gradient, first, second, numbers, bits, packed, chosen, seen):  # type: ignore[no-untyped-def]
    """Update the selected entries of a block and return their number; averages, gradients if so said, are packed."""
    done = 0
    for low in range(0, weights.size, TILE):
        high = min(weights.size, low + TILE)
        these = bits[low // 8 : (low + TILE) // 8]
        if packed:
            count = take(weights[low:high], these, chosen)
            here = slice(done, done + count)
            dense(chosen[:count], gradient[here], first[here], second[here], numbers)
            put_ahead(chosen, these, weights, weights, low, high)
        else:
            count = take_both(weights, gradient, low, high, these, chosen, seen)
            here = slice(done, done + count)
            dense(chosen[:count], seen[:count], first[here], second[here], numbers)
            put_ahead(chosen, these, weights, gradient, low, high)
        done += count
    return done


@part
def at_index(weights, gradient, first, second, numbers, index, packed, chosen, seen):  # type: ignore[no-untyped-def]
    """Update the entries at a piece of an index; averages, and the gradient if so said, are packed."""
    for low in range(0, index.size, TILE):
        here = slice(low, min(index.size, low + TILE))
        these = index[here]
        count = these.size
        if packed:
            take_at(weights, these, chosen)
            dense(chosen[:count], gradient[here], first[here], second[here], numbers)
        else:
            take_both_at(weights, gradient, these, chosen, seen)
            dense(chosen[:count], seen[:count], first[here], second[here], numbers)
        put_at(chosen, these, weights)
