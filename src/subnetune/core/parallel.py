"""Call one function for many items side by side, in as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return [function(item) for item in items], in `torch.get_num_threads()` threads (one: without any thread).

    It pays where the interpreter's lock is free for most of a call, as in hashing, numpy and file access. The function
    must not depend on the calling thread (grad mode, a device context, a distributed group). What the first failing
    item raises is raised.
    """
    every = list(items)
    threads = min(torch.get_num_threads(), len(every))
    if threads < 2:
        return [function(item) for item in every]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, every))
