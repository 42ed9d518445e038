"""The device code of the GPU kernels, in Triton: compiled at the first launch of each kind and cached by Triton.

Arithmetic is float32 in the order of `kernels.plain`, with correctly rounded quotients and roots; no product is fused
with a sum but where `fma` says so, which is where torch's own device code fuses them. Offsets within a program have 32
bits and those of a program 64, so that tensors may have 2^31 entries and more.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (Triton's compiler reads these functions; what they are given are tensors of the device)

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("triton") is not None:
    import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

    jit = triton.jit
    # These numbers change at every step; code made for one value of them would be made again and again.
    jit_for_any_keys = triton.jit(do_not_specialize=["offset", "second_key", "limit"])
else:

    def jit(function):
        """Return the function: without Triton this module can be imported, and nothing in it runs."""
        return function

    jit_for_any_keys = jit


@jit
def _adamw(w, g, m, v, factor, decay, lerp, beta2, rest2, root, eps, rate, NEAR: tl.constexpr):
    """Return the new weight and moments."""
    g = g * factor
    if NEAR:  # torch's lerp starts from the end that is nearer
        m = tl.fma(lerp, g - m, m)
    else:
        m = tl.fma(lerp - 1.0, g - m, g)
    v = tl.fma(rest2 * g, g, v * beta2)
    size = tl.div_rn(tl.sqrt_rn(v), root) + eps
    return tl.fma(rate, tl.div_rn(m, size), w * decay), m, v


@jit
def _update(
    weights, gradient, first, second, inside, chosen, scale,
    factor, decay, lerp, beta2, rest2, root, eps, rate,
    NEAR: tl.constexpr, ZERO: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """Update the entries that the pointers show, where they are `inside`; `chosen` is what the mask selects of them."""
    g = tl.load(gradient, mask=inside)
    if ZERO:
        g = tl.where(chosen, g, 0.0)
    if scale is not None:
        g = g * tl.load(scale)
    w, m, v = tl.load(weights, mask=inside), tl.load(first, mask=inside), tl.load(second, mask=inside)
    w, m, v = _adamw(w, g, m, v, factor, decay, lerp, beta2, rest2, root, eps, rate, NEAR)
    if HOLD:
        tl.store(weights, w, mask=inside & chosen)
    else:
        tl.store(weights, w, mask=inside)
    tl.store(first, m, mask=inside)
    tl.store(second, v, mask=inside)


@jit
def _mix(x):
    x ^= x >> 16
    x *= 0x21F0AAAD
    x ^= x >> 15
    x *= 0x735A2D97
    x ^= x >> 15
    return x


@jit
def _ones(x):
    """Return how many of the lowest eight bits are set; int32 numbers below 256."""
    x = x - ((x >> 1) & 0x55)
    x = (x & 0x33) + ((x >> 2) & 0x33)
    return (x + (x >> 4)) & 0x0F


@jit
def _is_set(byte):
    """Return the bits of bytes (int32), lowest first: bool, (bytes, 8)."""
    return ((byte[:, None] >> tl.arange(0, 8)[None, :]) & 1) != 0


@jit
def _rank(byte):
    """Return how many bits are set before each bit of these bytes: int32, (bytes, 8)."""
    ones = _ones(byte)
    before = tl.cumsum(ones, 0) - ones
    lower = byte[:, None] & ((1 << tl.arange(0, 8)[None, :]) - 1)
    return before[:, None] + _ones(lower)


@jit
def _entry(BYTES: tl.constexpr):
    """Return the entry that each bit of a block stands for, counted from the block's first: int32, (BYTES, 8)."""
    return tl.arange(0, BYTES)[:, None] * 8 + tl.arange(0, 8)[None, :]


@jit
def _wide(value):
    """Return half-precision numbers as float32: torch, too, sums them there and rounds once."""
    if (value.dtype == tl.float16) or (value.dtype == tl.bfloat16):
        value = value.to(tl.float32)
    return value


@jit
def gather_index(source, index, out, count, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """Write source[index] into `out`, or add it."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    j = tl.arange(0, BLOCK)
    inside = j < count - base
    value = tl.load(source + tl.load(index + base + j, mask=inside, other=0), mask=inside)
    if ADD:
        value = _wide(tl.load(out + base + j, mask=inside)) + _wide(value)
    tl.store(out + base + j, value.to(out.dtype.element_ty), mask=inside)


@jit
def gather_bits(source, bits, ranks, out, ADD: tl.constexpr, BYTES: tl.constexpr):
    """Write the entries of `source` whose bits are set into `out`, one after the other, or add them."""
    block = tl.program_id(0).to(tl.int64)
    byte = tl.load(bits + block * BYTES + tl.arange(0, BYTES)).to(tl.int32)
    chosen = _is_set(byte)
    to = out + tl.load(ranks + block) + _rank(byte)
    value = tl.load(source + block * (8 * BYTES) + _entry(BYTES), mask=chosen)
    if ADD:
        value = _wide(tl.load(to, mask=chosen)) + _wide(value)
    tl.store(to, value.to(out.dtype.element_ty), mask=chosen)


@jit
def scatter_index(values, index, target, count, BLOCK: tl.constexpr):
    """Write `values` into target[index]."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    j = tl.arange(0, BLOCK)
    inside = j < count - base
    to = target + tl.load(index + base + j, mask=inside, other=0)
    tl.store(to, tl.load(values + base + j, mask=inside), mask=inside)


@jit
def scatter_bits(values, bits, ranks, target, BYTES: tl.constexpr):
    """Write `values`, one after the other, into the entries of `target` whose bits are set."""
    block = tl.program_id(0).to(tl.int64)
    byte = tl.load(bits + block * BYTES + tl.arange(0, BYTES)).to(tl.int32)
    chosen = _is_set(byte)
    value = tl.load(values + tl.load(ranks + block) + _rank(byte), mask=chosen)
    tl.store(target + block * (8 * BYTES) + _entry(BYTES), value, mask=chosen)


@jit
def adamw_all(
    weights, gradient, first, second, size, scale,
    factor, decay, lerp, beta2, rest2, root, eps, rate, NEAR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update every entry."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    _update(
        weights + base + i, gradient + base + i, first + base + i, second + base + i, i < size - base, None, scale,
        factor, decay, lerp, beta2, rest2, root, eps, rate, NEAR, False, False,
    )  # fmt: skip


@jit_for_any_keys
def adamw_hashed(
    weights, gradient, first, second, size, offset, second_key, limit, scale,
    factor, decay, lerp, beta2, rest2, root, eps, rate,
    NEAR: tl.constexpr, ZERO: tl.constexpr, HOLD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update under the mask of `core.hashing`; `offset` is entry 0's flat index plus the first key, mod 2^32."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    i = tl.arange(0, BLOCK)
    x = (base + offset).to(tl.uint32) + i.to(tl.uint32)
    word = _mix(_mix(x) ^ second_key.to(tl.uint32)).to(tl.int32, bitcast=True)
    _update(
        weights + base + i, gradient + base + i, first + base + i, second + base + i, i < size - base, word < limit,
        scale, factor, decay, lerp, beta2, rest2, root, eps, rate, NEAR, ZERO, HOLD,
    )  # fmt: skip


@jit
def adamw_masked(
    weights, gradient, first, second, size, bits, scale,
    factor, decay, lerp, beta2, rest2, root, eps, rate,
    NEAR: tl.constexpr, ZERO: tl.constexpr, HOLD: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Update under a bitmask."""
    base = tl.program_id(0).to(tl.int64) * BYTES
    b = tl.arange(0, BYTES)
    byte = tl.load(bits + base + b, mask=8 * b < size - 8 * base, other=0).to(tl.int32)
    i, base = _entry(BYTES), 8 * base
    _update(
        weights + base + i, gradient + base + i, first + base + i, second + base + i, i < size - base, _is_set(byte),
        scale, factor, decay, lerp, beta2, rest2, root, eps, rate, NEAR, ZERO, HOLD,
    )  # fmt: skip


@jit
def adamw_index(
    weights, gradient, first, second, index, count, scale,
    factor, decay, lerp, beta2, rest2, root, eps, rate,
    NEAR: tl.constexpr, PACKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update the entries at `index`; the moments are packed, and so is the gradient where `PACKED`."""
    base = tl.program_id(0).to(tl.int64) * BLOCK
    j = tl.arange(0, BLOCK)
    inside = j < count - base
    i = tl.load(index + base + j, mask=inside, other=0)
    if PACKED:
        gradient = gradient + base + j
    else:
        gradient = gradient + i
    _update(
        weights + i, gradient, first + base + j, second + base + j, inside, None, scale,
        factor, decay, lerp, beta2, rest2, root, eps, rate, NEAR, False, False,
    )  # fmt: skip


@jit
def adamw_bits(
    weights, gradient, first, second, bits, ranks, scale,
    factor, decay, lerp, beta2, rest2, root, eps, rate,
    NEAR: tl.constexpr, PACKED: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Update the entries whose bits are set; the moments are packed, and so is the gradient where `PACKED`."""
    block = tl.program_id(0).to(tl.int64)
    byte = tl.load(bits + block * BYTES + tl.arange(0, BYTES)).to(tl.int32)
    begin, i = block * (8 * BYTES), _entry(BYTES)
    before, j = tl.load(ranks + block), _rank(byte)
    if PACKED:
        gradient = gradient + before + j
    else:
        gradient = gradient + begin + i
    _update(
        weights + begin + i, gradient, first + before + j, second + before + j, _is_set(byte), None, scale,
        factor, decay, lerp, beta2, rest2, root, eps, rate, NEAR, False, False,
    )  # fmt: skip


@jit
def selected_products(
    gradient, inputs, index, out, count, columns, tokens, ENTRIES: tl.constexpr, TOKENS: tl.constexpr
):  # fmt: skip
    """Write the products of gradient[row] and inputs[column], both token-last, for each (row, column) at `index`."""
    base = tl.program_id(0).to(tl.int64) * ENTRIES
    j = tl.arange(0, ENTRIES)
    inside = j < count - base
    flat = tl.load(index + base + j, mask=inside, other=0)
    row = flat // columns
    left = gradient + row.to(tl.int64)[:, None] * tokens
    right = inputs + (flat - row * columns).to(tl.int64)[:, None] * tokens
    total = tl.zeros((ENTRIES, TOKENS), dtype=tl.float32)
    for begin in range(0, tokens, TOKENS):
        t = begin + tl.arange(0, TOKENS)
        here = inside[:, None] & (t < tokens)[None, :]
        a = tl.load(left + t[None, :], mask=here, other=0.0).to(tl.float32)
        b = tl.load(right + t[None, :], mask=here, other=0.0).to(tl.float32)
        total = tl.fma(a, b, total)
    tl.store(out + base + j, tl.sum(total, 1), mask=inside)
