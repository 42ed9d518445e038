"""The kernels in Triton, for GPUs. They need no compiler to be imported; each is compiled when it is first launched."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.engine.kernels import Hashed, Job, Moments, Rates, Treatment, gpu_code
from subnetune.engine.kernels.gpu_jobs import BLOCK, check, check_place, do_all, launch, ranks
from subnetune.engine.place import BLOCK as RANKED
from subnetune.engine.place import Place

_NO_MASK = Treatment(False, False)


class GpuKernels:
    """See `Kernels`. Tensors lie on one GPU (or, under TRITON_INTERPRET=1, on the CPU).

    Raises UsageError where tensors do not fit each other: the device would read or write past their ends.
    """

    name = "triton"

    def __init__(self) -> None:
        need_triton()

    def gather(self, source: Tensor, place: Place, out: Tensor, *, add: bool = False) -> None:
        """Write or add the selected entries of `source` into `out`."""
        check("gather", place.size, source.device, source)
        check("gather", place.count, source.device, out)
        check_place("gather", place, source.device)
        if place.index is not None:
            blocks = -(-place.count // BLOCK)
            launch(gpu_code.gather_index, blocks, source, place.index, out, place.count, ADD=add, BLOCK=BLOCK)
        else:
            before = _ranks(place)
            launch(
                gpu_code.gather_bits, before.numel(), source, place.bits, before, out, place.size,
                ADD=add, BYTES=RANKED // 8,
            )  # fmt: skip

    def scatter(self, values: Tensor, place: Place, target: Tensor) -> None:
        """Write `values` into the selected entries of `target`, of the same dtype."""
        check("scatter", place.count, target.device, values)
        check("scatter", place.size, target.device, target)
        check_place("scatter", place, target.device)
        if values.dtype != target.dtype:
            raise UsageError(f"scatter: values of {values.dtype} do not fit a target of {target.dtype}")
        if place.index is not None:
            blocks = -(-place.count // BLOCK)
            launch(gpu_code.scatter_index, blocks, values, place.index, target, place.count, BLOCK=BLOCK)
        else:
            before = _ranks(place)
            launch(
                gpu_code.scatter_bits, before.numel(), values, place.bits, before, target, place.size, BYTES=RANKED // 8
            )

    def adamw(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates) -> None:
        """Update every entry in place."""
        do_all([Job(weights, gradient, moments, rates, None, _NO_MASK)])

    def adamw_hashed(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, mask: Hashed, treatment: Treatment
    ) -> None:
        """Update in place under a random mask, whose bits are never in memory."""
        do_all([Job(weights, gradient, moments, rates, mask, treatment)])

    def adamw_masked(
        self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, bits: Tensor, treatment: Treatment
    ) -> None:
        """Update in place under a bitmask."""
        do_all([Job(weights, gradient, moments, rates, bits, treatment)])

    def adamw_packed(self, weights: Tensor, gradient: Tensor, moments: Moments, rates: Rates, place: Place) -> None:
        """Update the selected entries in place."""
        do_all([Job(weights, gradient, moments, rates, place, _NO_MASK)])

    def adamw_all(self, jobs: Sequence[Job]) -> None:
        """Do every job, those of one kind in one launch. Raises UsageError, and does none, where one does not fit."""
        do_all(jobs)


def need_triton() -> None:
    """Raise UsageError where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        raise UsageError("the GPU kernels need Triton, which is not installed: pip install triton")


@functools.cache
def refusal(device: torch.device) -> str | None:
    """Return why these kernels cannot run on a device, or None where they can.

    The first call for a device runs a small kernel there: Triton may find no C compiler, or the GPU may be too old.
    """
    try:
        kernels, place = GpuKernels(), Place(2, 1, torch.ones(1, dtype=torch.int32, device=device), None)
        out = torch.zeros(1, device=device)
        kernels.gather(torch.tensor([1.0, 2.0], device=device), place, out)
        return None if out.item() == 2.0 else f"Triton gives wrong numbers on {device}"
    except Exception as error:  # of Triton, its compilers or the driver: they share no class
        return f"Triton does not run on {device}: {type(error).__name__}: {error}"


def _ranks(place: Place) -> Tensor:
    """Return how many entries are selected before each block, int64, (blocks,); no block where nothing is selected."""
    assert place.bits is not None
    counts = torch.empty(-(-place.size // RANKED) if place.count else 0, dtype=torch.int32, device=place.bits.device)
    launch(gpu_code.count_bits, counts.numel(), place.bits, counts, place.size, BYTES=RANKED // 8)
    return ranks(counts)
