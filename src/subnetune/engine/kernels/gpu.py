"""The kernels in Triton, for GPUs. They need no compiler to be imported; each is compiled when it is first launched."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.engine.kernels import Hashed, Moments, Rates, Treatment, gpu_code, is_packed
from subnetune.engine.place import BLOCK as PLACE_BLOCK
from subnetune.engine.place import Place

_BLOCK = 1024  # entries of a program
_RANKED = PLACE_BLOCK // 8  # bytes of a program that counts bits: a block of the rank directory
_WARPS = 4  # of a program of 1024 entries: eight entries a thread; those of a block of the directory have twice as many
_WORD = 1 << 32


class GpuKernels:
    """See `Kernels`. Tensors lie on one GPU (or, under TRITON_INTERPRET=1, on the CPU).

    Raises UsageError where tensors do not fit each other: the device would read or write past their ends.
    """

    name = "triton"

    def __init__(self) -> None:
        need_triton()

    def gather(self, source: Tensor, place: Place, out: Tensor, *, add: bool = False) -> None:
        """Write or add the selected entries of `source` into `out`."""
        _check("gather", place.size, source)
        _check("gather", place.count, out)
        if place.index is not None:
            blocks = -(-place.count // _BLOCK)
            launch(gpu_code.gather_index, blocks, source, place.index, out, place.count, ADD=add, BLOCK=_BLOCK)
        else:
            launch(gpu_code.gather_bits, _blocks(place), source, place.bits, place.ranks, out, ADD=add, BYTES=_RANKED)

    def scatter(self, values: Tensor, place: Place, target: Tensor) -> None:
        """Write `values` into the selected entries of `target`, of the same dtype."""
        _check("scatter", place.count, values)
        _check("scatter", place.size, target)
        if values.dtype != target.dtype:
            raise UsageError(f"scatter: values of {values.dtype} do not fit a target of {target.dtype}")
        if place.index is not None:
            blocks = -(-place.count // _BLOCK)
            launch(gpu_code.scatter_index, blocks, values, place.index, target, place.count, BLOCK=_BLOCK)
        else:
            launch(gpu_code.scatter_bits, _blocks(place), values, place.bits, place.ranks, target, BYTES=_RANKED)

    def adamw(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates) -> None:
        """Update every entry in place."""
        size = _dense("adamw", weights, gradient, moments)
        launch(
            gpu_code.adamw_all, -(-size // _BLOCK), weights, gradient, *moments, size, *_numbers(rates), BLOCK=_BLOCK
        )

    def adamw_hashed(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, mask: Hashed, treatment: Treatment
    ) -> None:
        """Update in place under a random mask, whose bits are never in memory."""
        size = _dense("adamw_hashed", weights, gradient, moments)
        keys = _signed(mask.start + mask.first), _signed(mask.second), mask.limit
        launch(
            gpu_code.adamw_hashed, -(-size // _BLOCK), weights, gradient, *moments, size, *keys, *_numbers(rates),
            ZERO=treatment.zero_gradient, HOLD=treatment.hold, BLOCK=_BLOCK,
        )  # fmt: skip

    def adamw_masked(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, bits: Tensor, treatment: Treatment
    ) -> None:
        """Update in place under a bitmask."""
        size = _dense("adamw_masked", weights, gradient, moments)
        if bits.dtype != torch.uint8 or bits.numel() < (size + 7) // 8:
            raise UsageError(f"adamw_masked: {size} bits do not fit {bits.numel()} entries of {bits.dtype}")
        launch(
            gpu_code.adamw_masked, -(-size // _BLOCK), weights, gradient, *moments, size, bits, *_numbers(rates),
            ZERO=treatment.zero_gradient, HOLD=treatment.hold, BYTES=_BLOCK // 8,
        )  # fmt: skip

    def adamw_packed(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, place: Place) -> None:
        """Update the selected entries in place."""
        packed = is_packed(gradient, place)
        _check("adamw_packed", place.size, weights)
        _check("adamw_packed", place.count if packed else place.size, gradient)
        _check("adamw_packed", place.count, *moments)
        _check_float32("adamw_packed", weights, gradient, *moments)
        if place.index is not None:
            launch(
                gpu_code.adamw_index, -(-place.count // _BLOCK), weights, gradient, *moments, place.index, place.count,
                *_numbers(rates), PACKED=packed, BLOCK=_BLOCK,
            )  # fmt: skip
        else:
            launch(
                gpu_code.adamw_bits, _blocks(place), weights, gradient, *moments, place.bits, place.ranks,
                *_numbers(rates), PACKED=packed, BYTES=_RANKED,
            )  # fmt: skip


def need_triton() -> None:
    """Raise UsageError where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise UsageError("the GPU kernels need Triton, which is not installed: pip install 'subnetune[fast]'")


@functools.cache
def refusal(device: torch.device) -> str | None:
    """Return why these kernels cannot run on a device, or None where they can.

    The first call for a device runs a small kernel there: Triton may find no C compiler, or the GPU may be too old.
    """
    try:
        kernels, place = GpuKernels(), Place(2, 1, torch.ones(1, dtype=torch.int32, device=device), None, None)
        out = torch.zeros(1, device=device)
        kernels.gather(torch.tensor([1.0, 2.0], device=device), place, out)
        return None if out.item() == 2.0 else f"Triton gives wrong numbers on {device}"
    except Exception as error:  # of Triton, its compilers or the driver: they share no class
        return f"Triton does not run on {device}: {type(error).__name__}: {error}"


def _blocks(place: Place) -> int:
    return -(-place.size // PLACE_BLOCK) if place.count else 0


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run a function of `gpu_code` in so many programs, on the device of the first argument. None: nothing happens."""
    if not programs:
        return
    # Triton launches on the current device, which need not be the tensors' own. (-1, the CPU, changes nothing.)
    with torch.cuda.device(arguments[0].get_device()):
        warps = 2 * _WARPS if constants.get("BYTES") == _RANKED else _WARPS
        kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)


def _numbers(rates: Rates) -> tuple[Tensor | float | None, ...]:
    """Return what the device code calls scale, factor, decay, lerp, beta2, rest2, root, eps, rate and NEAR."""
    lerp = 1 - rates.beta1
    return (
        rates.scale,
        float(rates.factor),
        float(1 - rates.lr * rates.weight_decay),
        float(lerp),
        float(rates.beta2),
        float(1 - rates.beta2),
        float((1 - rates.beta2**rates.step) ** 0.5),
        float(rates.eps),
        float(-(rates.lr / (1 - rates.beta1**rates.step))),
        lerp < 0.5,
    )


def _dense(owner: str, weights: Tensor, gradient: Tensor, moments: Moments) -> int:
    """Return the number of entries, after checks."""
    size = weights.numel()
    _check(owner, size, weights, gradient, *moments)
    _check_float32(owner, weights, gradient, *moments)
    return size


def _check(owner: str, wanted: int, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.numel() != wanted or not tensor.is_contiguous():
            raise UsageError(
                f"{owner}: wanted a contiguous tensor of {wanted} entries, got shape {tuple(tensor.shape)} with "
                f"strides {tensor.stride()}"
            )


def _check_float32(owner: str, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            raise UsageError(f"{owner}: wanted float32, got {tensor.dtype}")


def _signed(word: int) -> int:
    """Return the int32 that has the bits of `word` mod 2^32, so that every key has one type on the device."""
    return (word + (_WORD >> 1)) % _WORD - (_WORD >> 1)
