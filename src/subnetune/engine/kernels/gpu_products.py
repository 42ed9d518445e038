"""Selected entries of a linear layer's weight gradient on a GPU, in Triton, without the dense gradient.

Each entry is a product of two rows of numbers, one per token: of the output's gradient and of the input, both copied
into token-last order first, so that a program reads consecutive numbers. Sums are float32 in an order that depends on
the number of tokens alone: repeatable, but not the bits of a dense product.
"""

from __future__ import annotations

import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.engine.kernels.gpu import need_triton
from subnetune.engine.kernels.gpu_code import selected_products as _code
from subnetune.engine.kernels.gpu_jobs import launch

_ENTRIES = 16  # of a program
_TOKENS = 128  # read at a time
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def selected_products(gradient: Tensor, inputs: Tensor, index: Tensor) -> Tensor:
    """Return the entries at `index` of gradient^T inputs: float32, (count,).

    `gradient` is that of the layer's output, (tokens, rows), `inputs` what the layer was given, (tokens, columns), both
    float32, float16 or bfloat16; `index` holds flat indices of the weight, (rows, columns), int32, (count,); in
    ascending order they are fastest. It must not reach beyond the weight: the device does not check. Raises UsageError
    for other shapes and types, and without Triton.
    """
    need_triton()
    if gradient.dim() != 2 or inputs.dim() != 2 or gradient.shape[0] != inputs.shape[0]:
        raise UsageError(
            f"selected_products: wanted (tokens, rows) and (tokens, columns), got {tuple(gradient.shape)} and "
            f"{tuple(inputs.shape)}"
        )
    if gradient.dtype not in _TYPES or inputs.dtype not in _TYPES:
        raise UsageError(f"selected_products: wanted {_TYPES}, got {gradient.dtype} and {inputs.dtype}")
    if index.dtype != torch.int32 or index.dim() != 1 or not index.is_contiguous():
        raise UsageError(
            f"selected_products: wanted a contiguous int32 index of one axis, got {index.dtype}, {tuple(index.shape)}"
        )
    out = torch.empty(index.numel(), dtype=torch.float32, device=gradient.device)
    launch(
        _code, -(-index.numel() // _ENTRIES), gradient.t().contiguous(), inputs.t().contiguous(), index, out,
        index.numel(), inputs.shape[1], inputs.shape[0], ENTRIES=_ENTRIES, TOKENS=_TOKENS,
    )  # fmt: skip
    return out
