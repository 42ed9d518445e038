"""Data loaders with a random state of their own are read by a priming as if they had not been."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from priming_cases import BIASES, Two, prime
from subnetune import Tuning
from tiny import bits, differing


def loader() -> DataLoader[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(1)
    rows = [
        {"x": torch.randn(4, generator=random, dtype=torch.float64), "labels": torch.tensor(i % 3)} for i in range(12)
    ]
    return DataLoader(rows, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(3))


def test_the_generators_of_the_tasks_loaders_are_put_back() -> None:
    recipe = replace(BIASES, prepare=(prime(),))
    english, german, model = loader(), loader(), Two()
    base = bits(model)
    Tuning(recipe, model, tasks={"a": english, "b": german}).start()
    assert differing(base, bits(model))
    # One of them may be what trains: a resumed run does not prime again, and must see the same order.
    for used in (english, german):
        assert all(torch.equal(a["x"], b["x"]) for a, b in zip(used, loader(), strict=True))
