"""How much two masks agree, and how much two random ones would, counted on packed bits."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from subnetune.core.container import strict_json
from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.masks import PackedMask
from subnetune.select.maskheader import FORMAT, KEY, VERSION, shapes_in

Bits = NDArray[np.uint8]
_PIECE = 1 << 20  # bytes at a time: what `and` makes stays small


class Overlap(NamedTuple):
    """Two masks on the tensors that both have: entries, how many each selects, both select, and two random ones would.

    Masks add up over tensors, since a mask draws its entries tensor by tensor or for the whole model.
    """

    entries: int = 0
    first: int = 0
    second: int = 0
    both: int = 0
    expected: float = 0.0

    @property
    def jaccard(self) -> float | None:
        """|A and B| / |A or B|; None where neither selects anything."""
        either = self.first + self.second - self.both
        return self.both / either if either else None

    @property
    def chance(self) -> float | None:
        """The Jaccard index of independent uniform masks that select as many entries of each tensor.

        Two masks of k1 and k2 among n entries share k1 k2 / n on average (the hypergeometric mean). This is the ratio
        of the expected sizes of intersection and union; the expected ratio differs by less than 1 / n.
        """
        either = self.first + self.second - self.expected
        return self.expected / either if either else None

    def plus(self, entries: int, first: int, second: int, both: int) -> Overlap:
        """Return the overlap with one more tensor."""
        more = first * second / entries if entries else 0.0
        return Overlap(
            *(self.entries + entries, self.first + first, self.second + second, self.both + both),
            self.expected + more,
        )


class MaskFile:
    """A mask file of which one tensor is read at a time. Raises CheckpointError for another or a damaged file."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            self._file = cast(Any, safe_open(path, framework="pt"))
            header = strict_json((self._file.metadata() or {})[KEY])
            if (header["format"], header["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {header['format']!r}, version {header['version']!r}")
            self.shapes = shapes_in(header)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is not a mask file that this release reads: {error}") from error

    def bits(self, name: str) -> Bits:
        """Return the packed bits of one tensor, checked."""
        from safetensors import SafetensorError

        try:
            mask = PackedMask({name: self._file.get_tensor(name)}, {name: self.shapes[name]})
        except (SafetensorError, UsageError, ValueError) as error:
            raise CheckpointError(f"the mask file {self.path} is damaged: {error}") from error
        bits: Bits = mask.bits[name].numpy()
        return bits


def ones(bits: Bits, other: Bits | None = None) -> int:
    """Return how many bits are set, in both where two are given: uint8, (bytes,), eight bytes at a time."""
    count = 0
    for start in range(0, bits.size, _PIECE):
        part = bits[start : start + _PIECE]
        part = part.copy() if other is None else np.bitwise_and(part, other[start : start + _PIECE])
        body = part.size - part.size % 8
        count += int(np.bitwise_count(part[:body].view(np.uint64)).sum(dtype=np.int64))
        count += int(np.bitwise_count(part[body:]).sum(dtype=np.int64))
    return count


def pairwise(masks: Sequence[MaskFile]) -> list[list[Overlap]]:
    """Return the overlap of each mask with each, in a square; a tensor that two have in different shapes is left out.

    Holds one tensor's bits of each mask at a time.
    """
    found = [[Overlap() for _ in masks] for _ in masks]
    for name in dict.fromkeys(name for mask in masks for name in mask.shapes):
        here = {i: mask.bits(name) for i, mask in enumerate(masks) if name in mask.shapes}
        counts = {i: ones(bits) for i, bits in here.items()}
        for i, j in ((i, j) for i in here for j in here if i <= j):
            if masks[i].shapes[name] == masks[j].shapes[name]:
                both = counts[i] if i == j else ones(here[i], here[j])
                entries = prod(masks[i].shapes[name])
                found[i][j] = found[i][j].plus(entries, counts[i], counts[j], both)
    for i in range(len(masks)):
        for j in range(i):
            upper = found[j][i]
            found[i][j] = upper._replace(first=upper.second, second=upper.first)
    return found
