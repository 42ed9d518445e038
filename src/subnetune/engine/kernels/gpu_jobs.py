"""AdamW of many tensors in few launches: what differs between tensors goes to the device as one table a launch.

A launch costs the host as long as the device needs for a hundred thousand entries or more, and a model has hundreds of
tensors. Since pointers, sizes, keys and rates are data, no step and no tensor compiles anything new.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.engine.kernels import Hashed, Job, Rates, gpu_code, is_packed
from subnetune.engine.place import BLOCK as RANKED
from subnetune.engine.place import Place

BLOCK = 1024  # entries of a program; RANKED where it counts bits
_WORDS, _NUMBERS = struct.Struct("<10q"), struct.Struct("<8f")
_ROW = (_WORDS.size + _NUMBERS.size) // 8  # words of eight bytes in a row of the table


class Kind(NamedTuple):
    """What the device code of an update is compiled for: see `gpu_code.adamw`."""

    kind: str
    near: bool
    zero: bool
    hold: bool
    packed: bool
    scaled: bool
    aligned: bool
    block: int
    device: torch.device


class Row(NamedTuple):
    """A row of the table, which the device reads; how many programs it takes; tensors that must live until then.

    As int64: pointers to weights, gradient and both moments; the number of entries (or of indices); the first program
    (written last); three words of the kind (hashed: first index plus first key, second key, limit; masked: pointer to
    the bits; index: to the index; bits: to the bits); a pointer to the scale. Then the float32 of `_numbers`.
    """

    words: list[int]
    numbers: bytes
    programs: int
    kept: tuple[Tensor, ...]


def do_all(jobs: Sequence[Job]) -> None:
    """Do every job, those of one kind in one launch. Raises UsageError, and does none, where one does not fit."""
    kinds: dict[Kind, list[Row]] = {}
    numbers: dict[int, bytes] = {}  # many tensors share their rates
    for job in jobs:
        key = id(job.rates)
        if key not in numbers:
            numbers[key] = _numbers(job.rates)
        kind, row = _row(job, numbers[key])
        if row.programs:
            kinds.setdefault(kind, []).append(row)
    for kind, rows in kinds.items():
        _run(kind, rows)


def _row(job: Job, numbers: bytes) -> tuple[Kind, Row]:
    weights, gradient, moments, rates, mask, (zero, hold) = job
    device, wanted = weights.device, weights.numel()
    size = states = wanted
    own: tuple[int, ...]
    extra: tuple[Tensor, ...] = ()
    block, packed = BLOCK, False
    if mask is None:
        kind, own, zero, hold = "all", (0, 0, 0), False, False
    elif isinstance(mask, Hashed):
        kind, own = "hashed", (mask.start + mask.first, mask.second, mask.limit)
    elif isinstance(mask, Place):
        packed, states, zero, hold = is_packed(gradient, mask), mask.count, False, False
        wanted = mask.size
        check_place("adamw", mask, device)
        if mask.index is not None:
            kind, size, extra = "index", mask.count, (mask.index,)
        else:
            assert mask.bits is not None
            kind, size, block, extra = "bits", mask.size if mask.count else 0, RANKED, (mask.bits,)
        own = (*(x.data_ptr() for x in extra), 0, 0)[:3]
    else:
        if mask.dtype != torch.uint8 or mask.numel() < (size + 7) // 8 or mask.device != device:
            raise UsageError(
                f"adamw: wanted a mask of {size} bits on {device}, got {mask.numel()} of {mask.dtype} on {mask.device}"
            )
        kind, own, extra = "masked", (mask.data_ptr(), 0, 0), (mask,)
    tensors = (weights, gradient, *moments)
    pointers = []
    # The device checks nothing, and a pointer that leads astray ends the process.
    for tensor, entries in zip(tensors, (wanted, states if packed else wanted, states, states), strict=True):
        if tensor.dtype != torch.float32:
            raise UsageError(f"adamw: wanted float32, got {tensor.dtype}")
        if tensor.numel() != entries or tensor.device != device or not tensor.is_contiguous():
            check("adamw", entries, device, tensor)
        pointers.append(tensor.data_ptr())
    scale = 0
    if rates.scale is not None:
        check("adamw", 1, device, rates.scale)
        scale, extra = rates.scale.data_ptr(), (*extra, rates.scale)
    aligned = not any(x % 16 for x in (*pointers, size))
    near = abs(1 - rates.beta1) < 0.5
    found = Kind(kind, near, zero, hold, packed, rates.scale is not None, aligned, block, device)
    return found, Row([*pointers, size, 0, *own, scale], numbers, -(-size // block), (*tensors, *extra))


def _numbers(rates: Rates) -> bytes:
    """Return what the device calculates with: divisor, decay, lerp, beta2, 1 - beta2, root, eps, rate with its sign."""
    return _NUMBERS.pack(
        rates.divisor,
        1 - rates.lr * rates.weight_decay,
        1 - rates.beta1,
        rates.beta2,
        1 - rates.beta2,
        (1 - rates.beta2**rates.step) ** 0.5,
        rates.eps,
        -(rates.lr / (1 - rates.beta1**rates.step)),
    )


def _run(kind: Kind, rows: Sequence[Row]) -> None:
    table, begun = bytearray(), 0
    for row in rows:
        row.words[5] = begun
        table += _WORDS.pack(*row.words)
        table += row.numbers
        begun += row.programs
    # The host does not wait for the device: memory that is not pinned has been read when this returns.
    words = torch.frombuffer(table, dtype=torch.int64).to(kind.device, non_blocking=True)
    owner = _owners(tuple(row.programs for row in rows), kind.device)
    before = owner  # not looked at
    if kind.kind == "bits":
        counts = torch.empty(begun, dtype=torch.int32, device=kind.device)
        launch(gpu_code.count_all_bits, begun, words, owner, counts, BLOCK=kind.block, ROW=_ROW)
        before = ranks(counts)
    launch(
        gpu_code.adamw, begun, words, words.view(torch.float32), owner, before,
        KIND=kind.kind, NEAR=kind.near, ZERO=kind.zero, HOLD=kind.hold, PACKED=kind.packed, SCALED=kind.scaled,
        ALIGNED=kind.aligned, BLOCK=kind.block, ROW=_ROW,
    )  # fmt: skip


@functools.lru_cache(maxsize=16)  # they change when other tensors have gradients, which is seldom
def _owners(programs: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the row of each program, int32."""
    rows = torch.arange(len(programs), dtype=torch.int32)
    return rows.repeat_interleave(torch.tensor(programs)).to(device)


def ranks(counts: Tensor) -> Tensor:
    """Return the sum of the counts before each, int64."""
    return counts.cumsum(0, dtype=torch.int64) - counts


def launch(kernel: Any, programs: int, *arguments: Any, **constants: Any) -> None:
    """Run a function of `gpu_code` in so many programs, on the device of the first argument. None: nothing happens."""
    if not programs:
        return
    # Triton launches on the current device, which need not be the tensors' own. (-1, the CPU, changes nothing.)
    with torch.cuda.device(arguments[0].get_device()):
        kernel[(programs,)](*arguments, **constants, num_warps=warps_of(constants), enable_fp_fusion=False)


def warps_of(constants: Mapping[str, Any]) -> int:
    """Return how many warps a program has: eight entries a thread keep loads under way, and the code short."""
    entries: int = constants.get("BLOCK") or 8 * constants.get("BYTES", 0)
    return max(4, entries // 256)


def check(owner: str, wanted: int, device: torch.device, *tensors: Tensor) -> None:
    """Raise UsageError for tensors that are not contiguous, on `device`, of `wanted` entries: the GPU does not look."""
    for tensor in tensors:
        if tensor.numel() != wanted or not tensor.is_contiguous() or tensor.device != device:
            raise UsageError(
                f"{owner}: wanted a contiguous tensor of {wanted} entries on {device}, got shape "
                f"{tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
            )


def check_place(owner: str, place: Place, device: torch.device) -> None:
    """Raise UsageError where a place lies on another device."""
    here = place.index if place.index is not None else place.bits
    if here is not None and here.device != device:
        raise UsageError(f"{owner}: wanted a place on {device}, got one on {here.device}")
