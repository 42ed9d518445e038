"""Selected entries of a linear layer's weight gradient on the CPU, compiled by numba, without the dense gradient.

Each entry is a product of two rows of numbers, one per token: of the output's gradient and of the input, both copied
into token-last order first. Its sum has an order of its own: the same in every repetition and for any number of
threads, but not that of a dense product.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.engine.kernels.cpu import THREADS
from subnetune.engine.kernels.cpu_loops import compiled_entry

_AT_ONCE = 64  # entries that one thread takes


def selected_products(gradient: Tensor, inputs: Tensor, index: Tensor) -> Tensor:
    """Return the entries at `index` of gradient^T inputs: float32, (count,).

    `gradient` is that of the layer's output, (tokens, rows), `inputs` what the layer was given, (tokens, columns), both
    float32; `index` holds flat indices of the weight, (rows, columns), int32 or int64, (count,); in ascending order
    they are fastest. Raises UsageError for other types.
    """
    if gradient.dtype != torch.float32 or inputs.dtype != torch.float32:
        raise UsageError(f"selected_products: wanted float32, got {gradient.dtype} and {inputs.dtype}")
    left, right = gradient.detach().t().contiguous().numpy(), inputs.detach().t().contiguous().numpy()
    out = torch.empty(index.numel(), dtype=torch.float32)
    blocks = -(-index.numel() // _AT_ONCE)
    threads = THREADS.count(blocks)
    with THREADS.set(threads):
        (_all if threads == 1 else _all_parallel)(left, right, index.numpy(), out.numpy(), blocks)
    return out


@njit(error_model="numpy", nogil=True, fastmath={"reassoc", "contract", "nsz"})  # sums in registers; NaN and inf stay
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(error_model="numpy", nogil=True)
def _some(left, right, index, out, b):  # type: ignore[no-untyped-def]
    columns = right.shape[0]
    for k in range(b * _AT_ONCE, min(index.size, (b + 1) * _AT_ONCE)):
        out[k] = _dot(left[index[k] // columns], right[index[k] % columns])


@compiled_entry(parallel=False)
def _all(left, right, index, out, blocks):  # type: ignore[no-untyped-def]
    for b in range(blocks):
        _some(left, right, index, out, b)


@compiled_entry(parallel=True)
def _all_parallel(left, right, index, out, blocks):  # type: ignore[no-untyped-def]
    for b in prange(blocks):
        _some(left, right, index, out, b)
