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
else:

    def jit(function):
        """Return the function: without Triton this module can be imported, and nothing in it runs."""
        return function


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
    if value.dtype == tl.float16:
        value = value.to(tl.float32)
    if value.dtype == tl.bfloat16:
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
def _bytes(bits, block, size, BYTES: tl.constexpr):
    """Return the bytes of a block of the mask of `size` entries, zero past its end: int32, (BYTES,)."""
    b = tl.arange(0, BYTES)
    begin = block * BYTES
    return tl.load(bits + begin + b, mask=8 * b < size - 8 * begin, other=0).to(tl.int32)


@jit
def count_bits(bits, counts, size, BYTES: tl.constexpr):
    """Write how many bits of each block are set, int32."""
    block = tl.program_id(0).to(tl.int64)
    tl.store(counts + block, tl.sum(_ones(_bytes(bits, block, size, BYTES)), 0))


@jit
def count_all_bits(table, owner, counts, BLOCK: tl.constexpr, ROW: tl.constexpr):
    """Write how many bits are set in the block of each program of `adamw`, int32."""
    program = tl.program_id(0).to(tl.int64)
    row = table + tl.load(owner + program) * ROW
    bits, block = tl.load(row + 6).to(tl.pointer_type(tl.uint8)), program - tl.load(row + 5)
    tl.store(counts + program, tl.sum(_ones(_bytes(bits, block, tl.load(row + 4), BLOCK // 8)), 0))


@jit
def gather_bits(source, bits, ranks, out, size, ADD: tl.constexpr, BYTES: tl.constexpr):
    """Write the entries of `source` whose bits are set into `out`, one after the other, or add them."""
    block = tl.program_id(0).to(tl.int64)
    byte = _bytes(bits, block, size, BYTES)
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
def scatter_bits(values, bits, ranks, target, size, BYTES: tl.constexpr):
    """Write `values`, one after the other, into the entries of `target` whose bits are set."""
    block = tl.program_id(0).to(tl.int64)
    byte = _bytes(bits, block, size, BYTES)
    chosen = _is_set(byte)
    value = tl.load(values + tl.load(ranks + block) + _rank(byte), mask=chosen)
    tl.store(target + block * (8 * BYTES) + _entry(BYTES), value, mask=chosen)


@jit
def _adamw(w, g, m, v, number, NEAR: tl.constexpr):
    """Return the new weight and moments; `number` points at the eight numbers of `gpu_jobs.Row`."""
    g = tl.div_rn(g, tl.load(number))
    lerp = tl.load(number + 2)
    if NEAR:  # torch's lerp starts from the end that is nearer
        m = tl.fma(lerp, g - m, m)
    else:
        m = tl.fma(lerp - 1.0, g - m, g)
    v = tl.fma(tl.load(number + 4) * g, g, v * tl.load(number + 3))
    size = tl.div_rn(tl.sqrt_rn(v), tl.load(number + 5)) + tl.load(number + 6)
    return tl.fma(tl.load(number + 7), tl.div_rn(m, size), w * tl.load(number + 1)), m, v


@jit
def adamw(
    table, numbers, owner, ranks, KIND: tl.constexpr, NEAR: tl.constexpr, ZERO: tl.constexpr, HOLD: tl.constexpr,
    PACKED: tl.constexpr, SCALED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr, ROW: tl.constexpr,
):  # fmt: skip
    """Update many tensors, each by those programs that it owns. For a row of the table see `gpu_jobs.Row`.

    `numbers` is the table read as float32; `ranks`, of each program: how many bits are set before its block, in all
    masks together. `ALIGNED`: every pointer and size is a multiple of 16.
    """
    program = tl.program_id(0).to(tl.int64)
    job = tl.load(owner + program)
    row, number = table + job * ROW, numbers + (job + 1) * (2 * ROW) - 8
    weights = tl.load(row).to(tl.pointer_type(tl.float32))
    gradient = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    first = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    second = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    size = tl.load(row + 4)
    if ALIGNED:
        weights, gradient = tl.multiple_of(weights, 16), tl.multiple_of(gradient, 16)
        first, second, size = tl.multiple_of(first, 16), tl.multiple_of(second, 16), tl.multiple_of(size, 16)

    # Weights lie at begin + i and moments at start + j: the scalar part has 64 bits, the other 32.
    first_program = tl.load(row + 5)
    block = program - first_program
    begin = block * BLOCK
    i = tl.arange(0, BLOCK)
    if (KIND == "masked") or (KIND == "bits"):
        i = _entry(BLOCK // 8)
    start, j, inside = begin, i, i < size - begin
    chosen = inside
    if KIND == "hashed":
        x = (begin + tl.load(row + 6)).to(tl.uint32) + i.to(tl.uint32)
        chosen = _mix(_mix(x) ^ tl.load(row + 7).to(tl.uint32)).to(tl.int32, bitcast=True) < tl.load(row + 8)
    if (KIND == "masked") or (KIND == "bits"):
        byte = _bytes(tl.load(row + 6).to(tl.pointer_type(tl.uint8)), block, size, BLOCK // 8)
        chosen = _is_set(byte)
    if KIND == "bits":
        start, j, inside = tl.load(ranks + program) - tl.load(ranks + first_program), _rank(byte), chosen
    if KIND == "index":
        i = tl.load(tl.load(row + 6).to(tl.pointer_type(tl.int32)) + begin + j, mask=inside, other=0)
        begin = begin * 0

    weights, first, second = weights + begin + i, first + start + j, second + start + j
    if PACKED:
        g = tl.load(gradient + start + j, mask=inside)
    else:
        g = tl.load(gradient + begin + i, mask=inside)
    if ZERO:
        g = tl.where(chosen, g, 0.0)
    if SCALED:
        g = g * tl.load(tl.load(row + 9).to(tl.pointer_type(tl.float32)))
    w, m, v = tl.load(weights, mask=inside), tl.load(first, mask=inside), tl.load(second, mask=inside)
    w, m, v = _adamw(w, g, m, v, number, NEAR)
    if HOLD:
        tl.store(weights, w, mask=inside & chosen)
    else:
        tl.store(weights, w, mask=inside)
    tl.store(first, m, mask=inside)
    tl.store(second, v, mask=inside)


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
