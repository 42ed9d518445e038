"""Wrote codings.json: what masks were coded as in format 1. It is not run again: equal input gives equal bytes."""

import hashlib
import json
from pathlib import Path

import torch

from subnetune.delta.codec import encode_mask


def masks() -> dict[str, torch.Tensor]:
    """Return masks of 300,007 entries by the share that they keep, from an integer formula."""
    numbers = torch.arange(300_007, dtype=torch.int64)
    mixed = (numbers * 2_654_435_761 % 2**32 ^ numbers * 40_503 % 65_521 * 65_537) % 10_007
    return {str(keep): mixed < 10_007 * keep for keep in (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.95)}


if __name__ == "__main__":
    coded = {keep: encode_mask(mask) for keep, mask in masks().items()}
    golden = {
        keep: [index.coding, index.low, index.moved, hashlib.sha256(index.data.numpy().tobytes()).hexdigest()]
        for keep, index in coded.items()
    }
    Path(__file__).with_name("codings.json").write_text(json.dumps(golden, indent=1) + "\n")
