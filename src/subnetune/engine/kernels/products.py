"""Selected entries of a product of two matrices, without the rest of it: what is fastest on each kind of device."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor


class EntriesProduct(NamedTuple):
    """What gives entries of the first matrix, turned, times the second: (tokens, rows), (tokens, columns) -> (count,).

    Above `worth`, the fraction of entries, the dense product is faster (benchmarks/bench_products.py).
    """

    make: Callable[[Tensor, int, int], Callable[[Tensor, Tensor], Tensor]]  # of ascending flat indices, rows, columns
    worth: float


def entries_product(device_type: str) -> EntriesProduct | None:
    """Return what is fastest on this kind of device; None where there is nothing."""
    if device_type == "cpu" and importlib.util.find_spec("numba") is not None:
        from subnetune.engine.kernels import cpu_products

        return EntriesProduct(partial(_indexed, cpu_products.selected_products), 0.2)
    if device_type == "cpu":
        return EntriesProduct(SampledProduct, 0.1)
    if device_type == "cuda" and importlib.util.find_spec("triton") is not None:
        from subnetune.engine.kernels import gpu_products

        return EntriesProduct(partial(_indexed, gpu_products.selected_products), 0.1)
    return None


def _indexed(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], index: Tensor, rows: int, columns: int
) -> Callable[[Tensor, Tensor], Tensor]:
    narrow = index.to(torch.int32) if rows * columns < 1 << 31 else index
    return lambda gradient, inputs: function(gradient, inputs, narrow)


class SampledProduct:
    """By torch's own product of sampled entries. float32."""

    def __init__(self, index: Tensor, rows: int, columns: int) -> None:
        narrow = torch.int32 if index.numel() < 1 << 31 else torch.int64
        bounds = torch.arange(rows + 1, device=index.device) * columns
        starts = torch.searchsorted(index, bounds).to(narrow)
        values = torch.zeros(index.numel(), dtype=torch.float32, device=index.device)
        with warnings.catch_warnings():  # torch calls the layout a beta; what is used of it is tested
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            self._pattern = torch.sparse_csr_tensor(
                starts, (index % columns).to(narrow), values, (rows, columns), check_invariants=False
            )

    def __call__(self, gradient: Tensor, inputs: Tensor) -> Tensor:
        product: Tensor = torch.sparse.sampled_addmm(self._pattern, gradient.t(), inputs, beta=0.0)
        return product.values()
