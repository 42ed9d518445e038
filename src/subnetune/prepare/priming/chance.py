"""Randomness that is a function of a seed, a number and a name, and leaves no trace."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from subnetune.core.hashing import draw_seed
from subnetune.core.randomness import forked_randomness


@contextmanager
def seeded(seed: int, index: int, name: str) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators for what happens inside, and put their states back behind it."""
    with forked_randomness():
        number = draw_seed(seed, index, f"priming: {name}")
        torch.manual_seed(number)
        random.seed(number)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(number % 2**32)
        yield
