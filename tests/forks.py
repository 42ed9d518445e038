"""Processes that start at once: forked from a server that has imported the libraries and done nothing else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

_LIBRARIES = (
    "accelerate",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
    "subnetune.tuning",
)


def context() -> ForkServerContext:
    """Return where to make processes; the first one starts the server."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(_LIBRARIES))
    return found


def side_by_side(function: Callable[..., None], args: tuple[Any, ...], processes: int) -> None:
    """Call function(rank, *args) in as many processes; raise what the first that fails raises."""
    import torch.multiprocessing

    context()
    torch.multiprocessing.start_processes(function, args=args, nprocs=processes, start_method="forkserver")
