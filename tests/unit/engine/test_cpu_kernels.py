"""The kernels compiled for CPUs against the plain ones: sizes around a block and a vector, every kind of mask."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import subnetune
from subnetune.core.errors import UsageError
from subnetune.core.hashing import keys, threshold
from subnetune.core.masks import pack
from subnetune.engine.kernels import Hashed, Job, Kernels, Moments, Rates, Treatment
from subnetune.engine.kernels.plain import PlainKernels
from subnetune.engine.place import Place

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is not installed (pip install 'subnetune[fast]')"
)
SIZES = (0, 1, 7, 64, 4095, 4096, 4097, 100_003)
KEEPS = (0.0, 0.01, 0.3, 1.0)
TREATMENTS = (Treatment(True, True), Treatment(True, False), Treatment(False, True))
START = (1 << 32) - 200_000  # an index of a large tensor: the sum with a key wraps around
PLAIN = PlainKernels()
Call = Callable[[Kernels, Tensor, Tensor, Moments], None]


@pytest.fixture(scope="module")
def compiled() -> Kernels:
    from subnetune.engine.kernels.cpu import CpuKernels

    return CpuKernels()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Case:
    """Random tensors of one size, and a mask that keeps a share of the entries."""

    def __init__(self, size: int, keep: float, step: int = 7) -> None:
        draw = torch.Generator().manual_seed(size)
        self.weights = torch.randn(size, generator=draw) * 0.05
        self.gradient = torch.randn(size, generator=draw)
        averages = torch.randn(size, generator=draw) * 0.1, torch.rand(size, generator=draw) * 0.01
        self.moments = Moments(*(torch.zeros_like(m) if step == 1 else m for m in averages))
        self.chosen = torch.rand(size, generator=draw) < keep
        self.index = self.chosen.nonzero().squeeze(1)
        self.bits = pack(self.chosen)
        self.place = Place.of_bits(self.bits, size)
        self.packed = Moments(*(m[self.index] for m in self.moments))
        self.rates = Rates(1e-3, 0.9, 0.999, 1e-8, 0.01, step, torch.tensor(0.37), 1.7)

    def outside(self, value: float) -> Tensor:
        """The gradient with `value` wherever the mask does not reach."""
        return torch.where(self.chosen, self.gradient, torch.tensor(value))


def outcome(kernels: Kernels, call: Call, weights: Tensor, gradient: Tensor, moments: Moments) -> list[Tensor]:
    result = [weights.clone(), *(m.clone() for m in moments)]
    call(kernels, result[0], gradient, Moments(*result[1:]))
    return result


def check(compiled: Kernels, call: Call, weights: Tensor, gradient: Tensor, moments: Moments) -> list[Tensor]:
    """Compare with the plain kernels: each weight within 4 ulp of the larger of old and new; return what came out."""
    ours = outcome(compiled, call, weights, gradient, moments)
    plain = outcome(PLAIN, call, weights, gradient, moments)
    if weights.numel():
        largest = torch.maximum(plain[0].abs(), weights.abs())
        ulp = torch.nextafter(largest, torch.tensor(math.inf)) - largest
        assert float(((ours[0].double() - plain[0].double()).abs() / ulp.double()).max()) <= 4.0
    for mine, theirs in zip(ours[1:], plain[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-7, atol=1e-10)
    return ours


def same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_whole(compiled: Kernels, size: int, step: int) -> None:
    case = Case(size, 1.0, step)
    check(compiled, lambda k, w, g, m: k.adamw(w, g, m, case.rates), case.weights, case.gradient, case.moments)


@pytest.mark.parametrize("treatment", TREATMENTS, ids=("both", "zero", "hold"))
@pytest.mark.parametrize("size", SIZES)
def test_hashed(compiled: Kernels, size: int, treatment: Treatment) -> None:
    case = Case(size, 1.0)
    for keep in KEEPS:
        # One below the largest limit: the plain kernels compare with a signed word.
        mask = Hashed(*keys(3, 5, "layer.weight"), min(threshold(keep), (1 << 31) - 1), START)

        def call(k: Kernels, w: Tensor, g: Tensor, m: Moments, mask: Hashed = mask) -> None:
            k.adamw_hashed(w, g, m, case.rates, mask, treatment)

        check(compiled, call, case.weights, case.gradient, case.moments)


def test_hashed_selects_everything_at_the_largest_limit(compiled: Kernels) -> None:
    case = Case(4097, 1.0)
    mask = Hashed(*keys(3, 5, "layer.weight"), threshold(1.0), 0)
    ours = outcome(
        compiled,
        lambda k, w, g, m: k.adamw_hashed(w, g, m, case.rates, mask, TREATMENTS[0]),
        case.weights,
        case.gradient,
        case.moments,
    )
    whole = outcome(
        compiled, lambda k, w, g, m: k.adamw(w, g, m, case.rates), case.weights, case.gradient, case.moments
    )
    assert all(map(same_bits, ours, whole))


@pytest.mark.parametrize("treatment", TREATMENTS, ids=("both", "zero", "hold"))
@pytest.mark.parametrize("size", SIZES)
def test_masked(compiled: Kernels, size: int, treatment: Treatment) -> None:
    for case in (Case(size, keep) for keep in KEEPS):
        gradient = case.outside(math.nan) if treatment.zero_gradient else case.gradient

        def call(k: Kernels, w: Tensor, g: Tensor, m: Moments, case: Case = case) -> None:
            k.adamw_masked(w, g, m, case.rates, case.bits, treatment)

        ours = check(compiled, call, case.weights, gradient, case.moments)
        if treatment.hold:
            assert same_bits(ours[0][~case.chosen], case.weights[~case.chosen])


@pytest.mark.parametrize("packed", [False, True], ids=["dense-gradient", "packed-gradient"])
@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("size", SIZES)
def test_packed(compiled: Kernels, size: int, step: int, packed: bool) -> None:
    for case in (Case(size, keep, step) for keep in KEEPS):

        def call(k: Kernels, w: Tensor, g: Tensor, m: Moments, case: Case = case) -> None:
            k.adamw_packed(w, g, m, case.rates, case.place)

        gradient = case.gradient[case.index] if packed else case.outside(math.inf)
        ours = check(compiled, call, case.weights, gradient, case.packed)
        assert same_bits(ours[0][~case.chosen], case.weights[~case.chosen])


@pytest.mark.parametrize("keep", [0.01, 0.3], ids=["index", "bits"])
def test_held_entries_keep_their_bits(compiled: Kernels, keep: float) -> None:
    case = Case(10_000, keep)
    odd = torch.tensor([-0.0, math.nan, -math.inf, 1e-42]).repeat(2500)
    payload = odd.view(torch.int32)
    payload[1::4] = 0x7FC01234  # a NaN that says something
    weights = torch.where(case.chosen, case.weights, payload.view(torch.float32))
    held = weights[~case.chosen]
    for call in (
        lambda k, w, g, m: k.adamw_masked(w, g, m, case.rates, case.bits, TREATMENTS[0]),
        lambda k, w, g, m: k.adamw_packed(w, g, Moments(*(x[case.index] for x in m)), case.rates, case.place),
    ):
        ours = outcome(compiled, call, weights, case.outside(math.nan), case.moments)
        assert same_bits(ours[0][~case.chosen], held)
        assert not torch.equal(ours[0][case.chosen], weights[case.chosen])
        assert ours[0][case.chosen].isfinite().all()


@pytest.mark.parametrize("keep", [0.01, 0.3], ids=["index", "bits"])
def test_one_thread_and_two_give_the_same_bits(compiled: Kernels, keep: float, threads: Callable[[int], None]) -> None:
    case = Case(3_000_017 if keep < 0.3 else 100_003, keep)
    mask = Hashed(*keys(3, 5, "layer.weight"), threshold(keep), START)
    dense: list[Call] = [
        lambda k, w, g, m: k.adamw(w, g, m, case.rates),
        lambda k, w, g, m: k.adamw_hashed(w, g, m, case.rates, mask, TREATMENTS[0]),
        lambda k, w, g, m: k.adamw_masked(w, g, m, case.rates, case.bits, TREATMENTS[0]),
    ]
    packed: list[Call] = [
        lambda k, w, g, m: k.adamw_packed(w, g, m, case.rates, case.place),
        lambda k, w, g, m: k.gather(g, case.place, m.first, add=True),
        lambda k, w, g, m: k.scatter(m.first, case.place, w),
    ]
    for call in dense + packed:
        results = []
        for count in (1, 2):
            threads(count)
            moments = case.moments if call in dense else case.packed
            results.append(outcome(compiled, call, case.weights, case.gradient, moments))
        assert all(map(same_bits, *results))


def every_kind(rates: tuple[Rates, Rates]) -> list[Job]:
    """Tensors of many sizes under each kind of mask, some with packed gradients, of two rates."""
    jobs = []
    for size in (100_003, 1, 4096, 5000):
        for number, keep in enumerate((0.01, 0.3)):
            case, treatment = Case(size, keep), TREATMENTS[number]
            mask = Hashed(*keys(3, 5, f"layer.{size}"), threshold(keep), START)
            masks = (None, mask, case.bits, case.place, case.place)
            for kind, chosen in enumerate(masks):
                moments = case.packed if kind > 2 else case.moments
                gradient = case.gradient[case.index] if kind == 4 else case.gradient
                copies = case.weights.clone(), gradient, Moments(*(m.clone() for m in moments))
                jobs.append(Job(*copies, rates[kind % 2], chosen, treatment))
    return jobs


@pytest.mark.parametrize("count", [1, 2])
def test_many_tensors_in_one_call_are_each_alone(compiled: Kernels, count: int, threads: Callable[[int], None]) -> None:
    rates = Case(7, 1.0).rates, Rates(1e-2, 0.8, 0.99, 1e-6, 0.0, 2)
    together, alone = every_kind(rates), every_kind(rates)
    threads(count)
    compiled.adamw_all(together)
    threads(1)
    PLAIN.adamw_all(alone)
    for ours, plain in zip(together, alone, strict=True):
        torch.testing.assert_close(ours.weights, plain.weights, rtol=1e-6, atol=3e-8)
        for mine, theirs in zip(ours.moments, plain.moments, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


# In blocks, of which a thread takes 64 together. Such a run begins amid the second tensor (three times), with the fifth
# and the sixth, and amid the sixth, whose last block is not full.
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_bitmasks_that_several_runs_share(compiled: Kernels, packed: bool, threads: Callable[[int], None]) -> None:
    cases = [Case(int(blocks * 4096), 0.1 + 0.1 * i) for i, blocks in enumerate((10, 200, 45, 1, 64, 70.3))]
    assert all(case.place.bits is not None for case in cases)
    results = []
    for count in (1, 2):
        threads(count)
        jobs = []
        for case in cases:
            gradient = case.gradient[case.index] if packed else case.gradient
            moments = Moments(*(m.clone() for m in case.packed))
            jobs.append(Job(case.weights.clone(), gradient, moments, case.rates, case.place, TREATMENTS[0]))
        compiled.adamw_all(jobs)
        results.append(jobs)
    for case, one, two in zip(cases, *results, strict=True):
        assert same_bits(one.weights, two.weights)
        assert all(map(same_bits, one.moments, two.moments))
        plain = outcome(
            PLAIN,
            lambda k, w, g, m, case=case: k.adamw_packed(w, g, m, case.rates, case.place),
            case.weights,
            case.gradient,
            case.packed,
        )
        for mine, theirs in zip((one.weights, *one.moments), plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=3e-8)


@pytest.mark.parametrize("count", [1, 2])
def test_bits_amid_other_memory(compiled: Kernels, count: int, threads: Callable[[int], None]) -> None:
    """A place may share its bits with a file that was read: they begin anywhere, and anything follows them."""
    threads(count)
    case = Case(100_003, 0.3)
    memory = torch.full((case.bits.numel() + 600,), 0xFF, dtype=torch.uint8)
    memory[3 : 3 + case.bits.numel()] = case.bits
    place = Place.of_bits(memory[3 : 3 + case.bits.numel()], case.place.size)
    assert place.bits is not None
    assert place.bits.data_ptr() % 8 != 0
    assert place.count == case.index.numel()
    assert torch.equal(place.indices(), case.index)
    packed, target = torch.empty(place.count), torch.zeros(place.size)
    compiled.gather(case.gradient, place, packed)
    assert same_bits(packed, case.gradient[case.index])
    compiled.scatter(packed, place, target)
    assert same_bits(target, torch.where(case.chosen, case.gradient, 0.0))
    ours, wanted = (
        outcome(
            compiled,
            lambda k, w, g, m, p=p: k.adamw_packed(w, g, m, case.rates, p),
            case.weights,
            case.gradient,
            case.packed,
        )
        for p in (place, case.place)
    )
    assert all(map(same_bits, ours, wanted))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_rounded_as_torchs_fused_adamw(compiled: Kernels, step: int) -> None:
    """Also where an update is larger than the weights before and after it, whose last place is then small beside it."""
    case = Case(1 << 17, 1.0)  # full registers: the rest torch computes by other code
    rates = case.rates._replace(lr=0.01, weight_decay=0.1, step=step, scale=None, divisor=1.0)
    weights, gradient = case.weights * 0.1, case.gradient * 10.0 ** (case.weights * 40)
    moments = Moments(gradient * case.moments.first, gradient.square() * case.moments.second)
    theirs = torch.nn.Parameter(weights.clone())
    theirs.grad = gradient
    adamw = torch.optim.AdamW([theirs], lr=0.01, eps=1e-8, weight_decay=0.1, fused=True)
    state = {"exp_avg": moments.first.clone(), "exp_avg_sq": moments.second.clone()}
    adamw.state[theirs] = {"step": torch.tensor(float(step - 1)), **state}
    adamw.step()
    ours = outcome(compiled, lambda k, w, g, m: k.adamw(w, g, m, rates), weights, gradient, moments)
    largest = torch.maximum(theirs.detach().abs(), weights.abs())
    assert int(((theirs.detach() - weights).abs() > 1.5 * largest).sum()) > 100
    ulp = torch.nextafter(largest, torch.tensor(math.inf)) - largest
    assert float(((ours[0].double() - theirs.detach().double()).abs() / ulp.double()).max()) <= 1.0


def test_an_overflow_moves_weights_as_torch_does(compiled: Kernels) -> None:
    weights, gradient = torch.full((17,), 0.5), torch.full((17,), 1e30)
    rates = Rates(1e-3, 0.9, 0.999, 1e-8, 0.0, 1)

    def call(k: Kernels, w: Tensor, g: Tensor, m: Moments) -> None:
        k.adamw(w, g, m, rates)

    ours, plain = (outcome(k, call, weights, gradient, Moments(*torch.zeros(2, 17))) for k in (compiled, PLAIN))
    assert plain[2].isinf().all()
    assert same_bits(ours[0], plain[0])
    assert torch.equal(plain[0], weights)


@pytest.mark.parametrize("beta1", [0.0, 0.4, 0.95])
def test_every_first_momentum(compiled: Kernels, beta1: float) -> None:
    case = Case(1000, 1.0)
    rates = case.rates._replace(beta1=beta1, scale=None, divisor=1.0)
    ours = check(compiled, lambda k, w, g, m: k.adamw(w, g, m, rates), case.weights, case.gradient, case.moments)
    if beta1 == 0.0:
        assert same_bits(ours[1], case.gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_gather_and_scatter_move_bits(compiled: Kernels, size: int, dtype: torch.dtype) -> None:
    for case in (Case(size, keep) for keep in KEEPS):
        source = (case.gradient * 50).to(dtype)
        if dtype.is_floating_point:
            source[::3], source[1::5] = -0.0, math.nan
        packed, wanted = torch.ones(case.place.count, dtype=dtype), source[case.index]
        compiled.gather(source, case.place, packed)
        assert torch.equal(packed.view(torch.uint8), wanted.view(torch.uint8))
        target, expected = source.flip(0).clone(), source.flip(0).clone()
        expected[case.index] = wanted
        compiled.scatter(packed, case.place, target)
        assert torch.equal(target.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64], ids=str)
@pytest.mark.parametrize("keep", [0.01, 0.3], ids=["index", "bits"])
def test_gather_adds(compiled: Kernels, keep: float, dtype: torch.dtype) -> None:
    case = Case(4097, keep)
    source, before = (case.gradient * 50).to(dtype), torch.arange(case.place.count).to(dtype)
    before[::2] = -before[::2]
    source[case.index[::4]] = 0
    ours, plain = before.clone(), before.clone()
    compiled.gather(source, case.place, ours, add=True)
    PLAIN.gather(source, case.place, plain, add=True)
    assert torch.equal(ours.view(torch.uint8), plain.view(torch.uint8))
    assert not torch.equal(ours, before)


def test_gather_converts_as_torch_does(compiled: Kernels) -> None:
    case = Case(100, 0.3)
    out = torch.empty(case.place.count, dtype=torch.float64)
    compiled.gather(case.gradient, case.place, out)
    assert torch.equal(out, case.gradient[case.index].double())


def test_tensors_that_the_loops_cannot_read_are_refused(compiled: Kernels) -> None:
    case = Case(64, 1.0)
    with pytest.raises(UsageError, match="contiguous float32"):
        compiled.adamw(torch.zeros(128)[::2], case.gradient, case.moments, case.rates)
    with pytest.raises(UsageError, match="flat, contiguous"):
        compiled.scatter(case.weights, Place.of_bits(pack(torch.ones(64, dtype=torch.bool)), 64), torch.zeros(8, 8))
    with pytest.raises(UsageError, match=r"float32 tensors on the CPU, got torch\.float64"):
        compiled.adamw(case.weights.double(), case.gradient, case.moments, case.rates)


def test_calls_from_many_threads_at_once(compiled: Kernels, threads: Callable[[int], None]) -> None:
    case = Case(100_003, 0.3)

    def call(k: Kernels, w: Tensor, g: Tensor, m: Moments) -> None:
        k.adamw_packed(w, g, m, case.rates, case.place)

    wanted = outcome(compiled, call, case.weights, case.gradient, case.packed)
    results: list[list[Tensor]] = []

    def work() -> None:
        torch.set_num_threads(2)
        for _ in range(5):
            results.append(outcome(compiled, call, case.weights, case.gradient, case.packed))

    workers = [threading.Thread(target=work) for _ in range(4)]
    threads(2)
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 20
    assert all(same_bits(a, b) for result in results for a, b in zip(result, wanted, strict=True))


def test_the_callers_number_of_numba_threads_is_left_alone(compiled: Kernels, threads: Callable[[int], None]) -> None:
    import numba

    case = Case(100_003, 0.3)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        threads(2)
        compiled.adamw(case.weights, case.gradient, case.moments, case.rates)
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


# What follows runs in processes of its own, and may compile for half a minute.
STEP = """
import os, sys, time
import torch
torch.set_num_threads(2)
from subnetune.core.masks import pack
from subnetune.engine.kernels import Hashed, Moments, Rates, Treatment, kernels_for
from subnetune.engine.kernels.plain import PlainKernels
from subnetune.engine.place import Place
size = 100_003
chosen = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.3
place, rates, both = Place.of_bits(pack(chosen), size), Rates(1e-3, 0.9, 0.999, 1e-8, 0.01, 3), Treatment(True, True)
gradient = torch.randn(size, generator=torch.Generator().manual_seed(1))
def run(kernels):
    weights, packed, tens = torch.ones(size), torch.empty(place.count), torch.full((size,), 10.0)
    moments = Moments(torch.zeros(place.count), torch.zeros(place.count))
    kernels.adamw_packed(weights, gradient, moments, rates, place)
    kernels.adamw_hashed(weights, gradient, Moments(*torch.zeros(2, size)), rates, Hashed(1, 2, 0, 0), both)
    kernels.gather(gradient, place, packed)
    kernels.scatter(packed, place, tens)
    return weights, *moments, packed, tens
ours, plain = run(kernels_for("cpu")), run(PlainKernels())
for mine, theirs in zip(ours, plain):
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
"""
STATISTICS = """
from subnetune.engine.kernels import cpu_loops, cpu_many
entries = [one for loop in vars(cpu_loops).values() if isinstance(loop, cpu_loops.Loop) for one in loop]
entries += [cpu_many.many, cpu_many.many_parallel]
for kind in ("cache_misses", "cache_hits"):
    print(sum(sum(getattr(one.stats, kind).values()) for one in entries))
"""


def python(code: str, **environment: str) -> str:
    source = str(Path(subnetune.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": source, **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    compiled, _ = map(int, python(STEP + STATISTICS, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert compiled >= 6
    compiled, read = map(int, python(STEP + STATISTICS, NUMBA_CACHE_DIR=str(tmp_path)).split())
    assert (compiled, read >= 3) == (0, True)


@pytest.mark.slow
def test_processors_without_wide_vectors(tmp_path: Path) -> None:
    code = "from subnetune.engine.kernels.cpu_vectors import SQUEEZES; assert not SQUEEZES\n" + STEP
    python(code, NUMBA_CACHE_DIR=str(tmp_path), NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")


@pytest.mark.slow
def test_where_nothing_can_be_written_each_process_compiles() -> None:
    code = """
import numba.core.caching
def nowhere(*args):
    return None
for locator in numba.core.caching.CacheImpl._locator_classes:
    locator.from_function = classmethod(nowhere)
"""
    python(code + STEP)


@pytest.mark.slow
def test_a_forked_process_goes_on_with_one_thread() -> None:
    # The child makes no tensor: torch's own threads do not survive a fork either.
    code = (
        STEP
        + """
import signal
from subnetune.engine.kernels import cpu
def fresh():
    return torch.ones(size), gradient, Moments(torch.zeros(place.count), torch.zeros(place.count))
before, after = fresh(), fresh()
kernels_for("cpu").adamw_packed(*before, rates, place)
assert cpu.THREADS.count(100) == 2
child = os.fork()
if child == 0:
    signal.alarm(120)
    alone = cpu.THREADS.count(100) == 1
    kernels_for("cpu").adamw_packed(*after, rates, place)
    os._exit(0 if alone and (after[0].numpy() == before[0].numpy()).all() else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    )
    python(code)
