"""The same results in the same order, in as many threads as torch may use; what fails is raised."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from subnetune.core.parallel import each, on_cpu


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    torch.set_num_threads(threads)
    assert each(lambda n: n * n, range(50)) == [n * n for n in range(50)]
    assert each(str, iter([])) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_threads_work_as_torch_may_use(threads: int) -> None:
    torch.set_num_threads(threads)
    together = threading.Barrier(threads, timeout=20)  # passes only where that many calls run at once

    def name(_: int) -> str:
        together.wait()
        return threading.current_thread().name

    names = set(each(name, range(threads)))
    assert len(names) == threads
    assert (threading.main_thread().name in names) == (threads == 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_failure_is_raised_and_nothing_runs_on(threads: int) -> None:
    torch.set_num_threads(threads)

    def halve(n: int) -> float:
        return 1 / n

    with pytest.raises(ZeroDivisionError):
        each(halve, [1, 0, 2])
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.mark.parametrize("mode", [True, False])
def test_inference_mode_is_that_of_the_caller(mode: bool) -> None:
    torch.set_num_threads(3)
    with torch.inference_mode(mode):
        assert each(lambda _: torch.ones(1).is_inference(), range(4)) == [mode] * 4


def test_only_whole_tensors_on_the_cpu_are_worked_on_side_by_side() -> None:
    assert on_cpu([torch.ones(2), torch.nn.Parameter(torch.ones(1))])
    assert not on_cpu([torch.ones(2), torch.ones(2, device="meta")])
