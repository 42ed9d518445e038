"""Call one function for many items side by side, in as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch.distributed.tensor import DTensor

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return [function(item) for item in items], in `torch.get_num_threads()` threads (one: without any thread).

    It pays where the interpreter's lock is free for most of a call, as in hashing, numpy and file access. The function
    must not depend on the calling thread in any other way than its inference mode, so it is for tensors on the CPU
    (streams belong to threads) that are whole (shards are gathered in one order on all ranks). Operations that torch
    itself would split are better left to numpy there: each thread would start as many again. What the first failing
    item raises is raised once no call is running any more.
    """
    every = list(items)
    threads = min(torch.get_num_threads(), len(every))
    if threads < 2:
        return [function(item) for item in every]
    inference = torch.is_inference_mode_enabled()  # without it, what was made in that mode could not be written to

    def called(item: _Item) -> _Result:
        with torch.inference_mode(inference):
            return function(item)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(called, every))


def on_cpu(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether all tensors are whole and on the CPU, so that `each` may work on them."""
    return all(tensor.device.type == "cpu" and not isinstance(tensor, DTensor) for tensor in tensors)
