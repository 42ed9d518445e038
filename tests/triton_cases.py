"""The cases of tests/unit/engine/test_triton_kernels.py: functions of a device, each comparing with the plain kernels.

Run as a program (with TRITON_INTERPRET=1) it runs every case on the CPU and prints a JSON object: case -> "" or what
went wrong. A process of its own, since Triton reads that variable when it is imported.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from unittest import mock

import pytest
import torch
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.core.hashing import hash_range, keys
from subnetune.core.masks import pack
from subnetune.engine.kernels import Hashed, Job, Moments, Rates, Treatment, gpu_jobs
from subnetune.engine.kernels.gpu import GpuKernels, refusal
from subnetune.engine.kernels.gpu_products import selected_products
from subnetune.engine.kernels.plain import PlainKernels
from subnetune.engine.place import Place

MARGIN = 64  # entries beside each tensor that must stay as they are
TREATMENTS = (Treatment(True, False), Treatment(False, True), Treatment(True, True), Treatment(False, False))


def numbers(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def fenced(tensor: Tensor, device: str) -> Tensor:
    """Return a copy on the device that lies in the middle of a larger tensor."""
    whole = torch.full((tensor.numel() + 2 * MARGIN,), 77, dtype=tensor.dtype, device=device)
    whole[MARGIN : MARGIN + tensor.numel()] = tensor.to(device)
    return whole[MARGIN : MARGIN + tensor.numel()]


def same_bits(left: Tensor, right: Tensor) -> bool:
    width = {2: torch.int16, 4: torch.int32}[left.element_size()]
    return left.dtype == right.dtype and torch.equal(left.view(width), right.view(width))


def check_fence(tensor: Tensor) -> None:
    whole = tensor.as_strided((tensor.numel() + 2 * MARGIN,), (1,), 0)
    assert (whole[:MARGIN] == 77).all()
    assert (whole[MARGIN + tensor.numel() :] == 77).all(), "written past the end"


def check_ulp(found: Tensor, wanted: Tensor, before: Tensor) -> None:
    """Four units in the last place of the larger of what was there and what came out: a sum may cancel."""
    if found.numel() == 0:
        return
    size = torch.maximum(before.abs(), wanted.abs())
    unit = torch.nextafter(size, torch.full_like(size, torch.inf)) - size
    worst = ((found - wanted).abs() / unit).max().item()
    assert worst <= 4, f"{worst} ulp"


def masked(seed: int, size: int, keep: float) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed)) < keep


def place_of(mask: Tensor, device: str) -> Place:
    return Place.of_bits(pack(mask).to(device), mask.numel())


def rates_of(device: str, beta1: float = 0.9, scaled: bool = True) -> Rates:
    scale = torch.tensor(0.7, device=device) if scaled else None
    return Rates(1e-3, beta1, 0.999, 1e-8, 0.1, 3, scale, 0.5 if scaled else 1.0)


def compare(
    device: str, size: int, states: int, update: Callable[[object, Tensor, Moments], None], momentum: float = 1e-2
) -> list[Tensor]:
    """Run an update of `size` weights with both kernels from one state; return the weights before and after."""
    start = [numbers(1, size), numbers(2, states, scale=momentum), numbers(3, states, scale=1e-2) ** 2]
    results = []
    for kernels in (PlainKernels(), GpuKernels()):
        here = [fenced(tensor, device) for tensor in start]
        update(kernels, here[0], Moments(here[1], here[2]))
        for tensor in here:
            check_fence(tensor)
        results.append(here)
    for wanted, found, before in zip(*results, start, strict=True):
        check_ulp(found, wanted, before.to(device))
    assert size == 0 or states == 0 or not torch.equal(results[1][0].cpu(), start[0])
    return [start[0].to(device), results[0][0], results[1][0]]


def adamw_of_every_entry(device: str) -> None:
    for size, beta1, scaled in ((1, 0.9, True), (1023, 0.3, True), (1025, 0.9, False), (2048, 0.0, True)):
        gradient = numbers(4, size, scale=1e-2).to(device)
        rates = rates_of(device, beta1, scaled)
        # With beta1 = 0 the new average is the gradient itself, however large the old one was.
        momentum = 1e4 if beta1 == 0 else 1e-2
        compare(device, size, size, lambda k, w, m, g=gradient, r=rates: k.adamw(w, g, m, r), momentum)


def adamw_under_a_hashed_mask(device: str) -> None:
    size, keep = 1300, 0.3
    limit = round(keep * 2**32) - 2**31
    # Across the sign of an int32, up to the end of the first 2^32 entries, and beyond it.
    for start in (0, 2**31 - 650, 2**32 - size, 2**32 + 5):
        first, second = keys(3, 7, "layer.weight", start >> 32)
        wanted = hash_range(3, 7, "layer.weight", start, start + size, device) < limit
        assert 300 < int(wanted.sum()) < 480
        mask = Hashed(first, second, limit, start % 2**32)
        for treatment in TREATMENTS:
            gradient = numbers(5, size, scale=1e-2).to(device)
            before, plain, found = compare(
                device,
                size,
                size,
                lambda k, w, m, g=gradient, t=treatment, h=mask: k.adamw_hashed(w, g, m, rates_of(device), h, t),
            )
            if treatment.hold:
                assert torch.equal(found != before, wanted & (plain != before))
                assert int((found != before).sum()) > 300


def a_limit_above_every_hash_selects_all(device: str) -> None:
    size = 1500
    gradient = numbers(21, size, scale=1e-2).to(device)
    weights = [numbers(1, size).to(device) for _ in range(2)]
    moments = [Moments(torch.zeros(size, device=device), torch.zeros(size, device=device)) for _ in range(2)]
    GpuKernels().adamw(weights[0], gradient, moments[0], rates_of(device))
    every = Hashed(1, 2, 2**31, 0)
    GpuKernels().adamw_hashed(weights[1], gradient, moments[1], rates_of(device), every, TREATMENTS[2])
    assert same_bits(*weights)


def adamw_under_a_bitmask(device: str) -> None:
    for size in (1, 7, 1000, 1024, 2051):
        for treatment in TREATMENTS:
            mask = masked(6, size, 0.4) if size > 7 else torch.ones(size, dtype=torch.bool)
            gradient = numbers(7, size, scale=1e-2).to(device)
            before, _, found = compare(
                device,
                size,
                size,
                lambda k, w, m, g=gradient, t=treatment, b=pack(mask).to(device): k.adamw_masked(
                    w, g, m, rates_of(device), b, t
                ),
            )
            if treatment.hold:
                assert same_bits(found[~mask.to(device)], before[~mask.to(device)])


def _packed(device: str, sizes: Sequence[int], keep: float, kind: str) -> None:
    for size in sizes:
        mask = masked(8, size, keep)
        mask[size - 1] = True
        place = place_of(mask, device)
        assert (place.index is not None) == (kind == "index")
        gradient = numbers(9, size, scale=1e-2)
        for given in (gradient, gradient[mask]):
            before, plain, found = compare(
                device,
                size,
                place.count,
                lambda k, w, m, g=given.to(device), p=place: k.adamw_packed(w, g, m, rates_of(device), p),
            )
            # A step may, now and then, round to nothing.
            assert torch.equal(found != before, mask.to(device) & (plain != before))
            assert int((found != before).sum()) > 0.99 * place.count


def adamw_packed_at_an_index(device: str) -> None:
    _packed(device, (3000, 41_000), 0.027, "index")


def adamw_packed_at_set_bits(device: str) -> None:
    _packed(device, (1, 4096, 9001), 0.3, "bits")


def many_tensors_at_once(device: str) -> None:
    shared = [rates_of(device), rates_of(device, 0.8)._replace(divisor=0.3, lr=2e-3)]
    kinds: list[tuple[int, float, str]] = [
        (1, 1.0, "bits"), (9000, 0.3, "bits"), (4097, 0.3, "bits"), (41_000, 0.027, "index"), (5001, 0.004, "index"),
        (0, 1.0, "all"), (2100, 1.0, "all"), (1300, 1.0, "all"), (1100, 0.5, "masked"), (33, 0.5, "masked"),
        (2048, 0.5, "hashed"), (1040, 0.5, "hashed"), (1042, 0.5, "hashed"), (3000, 0.0, "index"), (20, 1.0, "all"),
    ]  # fmt: skip
    jobs: dict[str, list[Job]] = {}
    for kernels in (PlainKernels(), GpuKernels()):
        made = []
        for i, (size, keep, kind) in enumerate(kinds):
            mask = masked(i, size, keep)
            place = place_of(mask, device)
            states = place.count if kind in ("index", "bits") else size
            of = {
                "all": None, "masked": pack(mask).to(device), "hashed": Hashed(99 + i, 2**31 + i, 1234, 2**31 - 5 * i),
            }.get(kind, place)  # fmt: skip
            shape = (size // 2, 2) if size % 2 == 0 else (size,)
            made.append(
                Job(
                    fenced(numbers(i, size), device).view(shape),
                    numbers(50 + i, size, scale=1e-2).to(device).view(shape),
                    Moments(*(fenced(numbers(60 + i, states, scale=1e-2).abs(), device) for _ in range(2))),
                    shared[i % 2],
                    of,
                    TREATMENTS[2],
                )
            )
        with mock.patch.object(gpu_jobs, "launch", wraps=gpu_jobs.launch) as launch:
            kernels.adamw_all(made)
        jobs[kernels.name] = made
    # One a kind, and one that counts bits; the hashed tensors whose sizes are multiples of 16 are a kind of their own.
    assert launch.call_count == 7
    for i, (plain, found) in enumerate(zip(jobs["torch"], jobs["triton"], strict=True)):
        check_ulp(found.weights.view(-1), plain.weights.view(-1), numbers(i, found.weights.numel()).to(device))
        for left, right in zip(found.moments, plain.moments, strict=True):
            check_ulp(left, right, numbers(60 + i, left.numel(), scale=1e-2).to(device))
            check_fence(left)
        check_fence(found.weights)


def gathering_and_scattering_keep_every_bit(device: str) -> None:
    for size, keep in ((1, 1.0), (5000, 0.004), (5000, 0.3), (8192, 1.0)):
        mask = masked(10, size, keep)
        place = place_of(mask, device)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            source = numbers(11, size).to(dtype)
            bits = source.view(torch.int16 if dtype != torch.float32 else torch.int32)
            bits[::3] = -bits[::3]  # numbers of every kind: tiny, huge, and not a number with a payload
            if size > 1:
                bits[mask.nonzero()[0]] = torch.iinfo(bits.dtype).max - 5
            found = fenced(torch.zeros(place.count, dtype=dtype), device)
            GpuKernels().gather(source.to(device), place, found)
            assert same_bits(found.cpu(), source[mask])
            check_fence(found)
            target = fenced(numbers(12, size).to(dtype), device)
            wanted = target.cpu()
            GpuKernels().scatter(found, place, target)
            wanted[mask] = source[mask]
            assert same_bits(target.cpu(), wanted)
            check_fence(target)


def gathering_adds_and_converts(device: str) -> None:
    halves = (torch.float32, torch.bfloat16, torch.float16)
    for size, keep in ((3000, 0.01), (5000, 0.3)):
        place = place_of(masked(13, size, keep), device)
        for given in halves:
            for wanted in halves:
                # On the CPU sums fit every type: the interpreter, unlike the compiler, rounds to bf16 towards zero.
                source = numbers(14, size) if device != "cpu" else (numbers(14, size) * 32).round() / 32
                old = numbers(15, place.count) if device != "cpu" else (numbers(15, place.count) * 8).round() / 32
                for add in (False, True):
                    outs = [fenced(old.clamp(-1, 1).to(wanted), device) for _ in range(2)]
                    for kernels, out in zip((PlainKernels(), GpuKernels()), outs, strict=True):
                        kernels.gather(source.clamp(-2, 2).to(given).to(device), place, out, add=add)
                    assert same_bits(*outs), (given, wanted, add)
                    check_fence(outs[1])


def nothing_selected_or_nothing_there(device: str) -> None:
    kernels, rates = GpuKernels(), rates_of(device)
    for size in (0, 1, 5000):
        place = place_of(torch.zeros(size, dtype=torch.bool), device)
        weights, nothing = numbers(16, size).to(device), torch.empty(0, device=device)
        before = weights.clone()
        kernels.gather(weights, place, nothing)
        kernels.gather(weights, place, nothing, add=True)
        kernels.scatter(nothing, place, weights)
        kernels.adamw_packed(weights, weights.clone(), Moments(nothing, nothing), rates, place)
        assert same_bits(weights, before)
    empty = Moments(torch.empty(0, device=device), torch.empty(0, device=device))
    kernels.adamw(empty.first, empty.second, empty, rates)
    kernels.adamw_hashed(empty.first, empty.second, empty, rates, Hashed(1, 2, 3, 4), TREATMENTS[0])
    kernels.adamw_masked(
        empty.first, empty.second, empty, rates, torch.empty(0, dtype=torch.uint8, device=device), TREATMENTS[0]
    )
    index = torch.empty(0, dtype=torch.int32, device=device)
    assert selected_products(numbers(1, 4, 3).to(device), numbers(2, 4, 5).to(device), index).numel() == 0


def what_does_not_fit_is_refused(device: str) -> None:
    kernels, rates = GpuKernels(), rates_of(device)
    place = place_of(masked(17, 100, 0.3), device)
    weights, packed = torch.zeros(100, device=device), torch.zeros(place.count, device=device)
    dense = Moments(torch.zeros(100, device=device), torch.zeros(100, device=device))
    short = Moments(dense.first[:99], dense.second)
    bits = place.bits
    for call in (
        lambda: kernels.gather(weights[:99], place, packed),
        lambda: kernels.gather(weights, place, packed[1:]),
        lambda: kernels.scatter(packed[1:], place, weights),
        lambda: kernels.scatter(packed.half(), place, weights),
        lambda: kernels.adamw(weights, weights[1:], dense, rates),
        lambda: kernels.adamw(weights.half(), weights.half(), dense, rates),
        lambda: kernels.adamw(torch.zeros(200, device=device)[::2], weights, dense, rates),
        lambda: kernels.adamw_hashed(weights, weights, short, rates, Hashed(1, 2, 3, 4), TREATMENTS[0]),
        lambda: kernels.adamw_masked(weights, weights, dense, rates, bits[:12], TREATMENTS[0]),
        lambda: kernels.adamw_packed(weights, weights, dense, rates, place),
        lambda: kernels.adamw(weights, weights, dense, rates._replace(scale=torch.ones(2, device=device))),
        lambda: kernels.adamw_all([Job(weights, weights[1:], dense, rates, None, TREATMENTS[0])]),
        lambda: selected_products(torch.zeros(2, 3), torch.zeros(3, 3), torch.zeros(1, dtype=torch.int32)),
        lambda: selected_products(torch.zeros(2, 3).double(), torch.zeros(2, 3), torch.zeros(1, dtype=torch.int32)),
        lambda: selected_products(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64)),
    ):
        with pytest.raises(UsageError, match="wanted|fit"):
            call()


def products_at_selected_entries(device: str) -> None:
    for tokens, rows, columns, keep in ((1, 3, 5, 1.0), (130, 24, 40, 0.06), (257, 7, 300, 0.02)):
        mask = masked(18, rows * columns, keep)
        index = mask.nonzero().squeeze(1).to(torch.int32).to(device)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            gradient = numbers(19, tokens, rows).to(dtype).to(device)
            inputs = numbers(20, tokens, columns).to(dtype).to(device)
            wanted = (gradient.double().t() @ inputs.double()).flatten()[index.long()]
            found = selected_products(gradient, inputs, index)
            assert found.dtype == torch.float32
            # Of sums of `tokens` products near one: far under what sums of half-precision numbers would give.
            assert (found - wanted).abs().max().item() < 1e-6 * (tokens + 3)
            again = selected_products(gradient, inputs, index)
            assert same_bits(found, again)


def the_probe_finds_no_fault(device: str) -> None:
    assert refusal(torch.device(device)) is None


CASES: tuple[Callable[[str], None], ...] = (
    adamw_of_every_entry,
    adamw_under_a_hashed_mask,
    a_limit_above_every_hash_selects_all,
    adamw_under_a_bitmask,
    adamw_packed_at_an_index,
    adamw_packed_at_set_bits,
    many_tensors_at_once,
    gathering_and_scattering_keep_every_bit,
    gathering_adds_and_converts,
    nothing_selected_or_nothing_there,
    what_does_not_fit_is_refused,
    products_at_selected_entries,
    the_probe_finds_no_fault,
)


def main() -> None:
    """Print what went wrong in each case on the CPU."""
    results = {}
    for case in CASES:
        try:
            case("cpu")
            results[case.__name__] = ""
        except BaseException:  # pytest.fail is none of Exception
            results[case.__name__] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
