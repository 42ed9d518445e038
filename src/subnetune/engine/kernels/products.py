"""Selected entries of a product of two matrices, without the rest of it: what is fastest on each kind of device."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor


def entries_product(index: Tensor, rows: int, columns: int) -> Callable[[Tensor, Tensor], Tensor] | str:
    """Return a function of (tokens, rows) and (tokens, columns): entries of the first, turned, times the second.

    `index` holds the ascending flat indices of these entries in (rows, columns), int64; the result has their order,
    (count,). A string says why there is none.
    """
    if index.device.type == "cpu":
        return SampledProduct(index, rows, columns)
    if index.device.type == "cuda" and importlib.util.find_spec("triton") is not None and rows * columns < 1 << 31:
        from subnetune.engine.kernels.gpu_products import selected_products

        flat = index.to(torch.int32)
        return lambda gradient, inputs: selected_products(gradient, inputs, flat)
    return f"there is no product of single entries for {index.device.type} (Triton is not installed)"


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
