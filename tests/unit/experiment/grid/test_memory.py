"""The peak of a piece of work, not that of the process before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from subnetune.experiment.grid.memory import PeakMemory

MIB = 2**20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel tells no peak")
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU its memory is measured")
def test_the_peak_is_what_was_held_at_once_since_the_start() -> None:
    earlier = bytearray(b"1") * (128 * MIB)
    del earlier
    memory = PeakMemory()
    first = bytearray(b"1") * (48 * MIB)
    del first
    second = bytearray(b"1") * (32 * MIB)
    del second
    assert 44 * MIB < memory.bytes() < 72 * MIB
