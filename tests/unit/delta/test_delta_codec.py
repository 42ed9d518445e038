"""Coded positions come back as they were, take no more than the bound, and refuse damaged bytes."""

from __future__ import annotations

import hashlib
import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subnetune.core.errors import CheckpointError, UsageError
from subnetune.delta import codec
from subnetune.delta.codec import Index, encode_mask, encode_positions, entropy_bytes

GOLDEN = Path(__file__).with_name("golden")


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_random_masks_round_trip_within_the_bound(entries: int, keep: float, seed: int) -> None:
    mask = torch.rand(entries, generator=torch.Generator().manual_seed(seed)) < keep
    mask[seed % entries] = True
    index = encode_mask(mask)
    index.check()
    assert index.moved == int(mask.sum())
    assert torch.equal(index.mask(), mask)
    assert torch.equal(index.positions(), mask.nonzero()[:, 0])
    # A byte of padding for each of at most 12 bit planes, the unary part, and the bitmap.
    assert index.data.numel() <= 1.15 * entropy_bytes(index.moved, entries) + 16


@given(st.lists(st.booleans(), min_size=1, max_size=70).filter(any))
def test_any_small_mask_round_trips_from_mask_and_from_positions(flags: list[bool]) -> None:
    mask = torch.tensor(flags)
    positions = mask.nonzero()[:, 0]
    assert torch.equal(encode_mask(mask).positions(), positions)
    assert torch.equal(encode_positions(positions, len(flags)).positions(), positions)


@pytest.mark.parametrize("entries", [1, 7, 8, 9, 64, 1000])
@pytest.mark.parametrize("which", ["first", "last", "all", "all but one", "every other", "ends"])
def test_boundaries(entries: int, which: str) -> None:
    mask = torch.zeros(entries, dtype=torch.bool)
    if which in ("first", "ends"):
        mask[0] = True
    if which in ("last", "ends"):
        mask[-1] = True
    if which.startswith("all"):
        mask[:] = True
        mask[entries // 2] = which == "all" or entries == 1
    if which == "every other":
        mask[::2] = True
    assert torch.equal(encode_mask(mask).mask(), mask)


@pytest.mark.parametrize("every", [2, 3, 4, 5, 8, 10, 33, 100, 1000])
def test_regular_masks_meet_the_bound_too(every: int) -> None:
    mask = torch.zeros(100_000, dtype=torch.bool)
    mask[every - 1 :: every] = True  # the worst for Rice codes: no gap is shorter than the mean
    for wanted in (mask, ~mask):
        index = encode_mask(wanted)
        assert torch.equal(index.mask(), wanted)
        assert index.data.numel() <= 1.15 * entropy_bytes(index.moved, wanted.numel()) + 16


def test_the_coding_is_the_smallest() -> None:
    random = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    codings = {keep: encode_mask(random < keep).coding for keep in (0.01, 0.3, 0.5, 0.7, 0.99)}
    assert codings == {0.01: "gaps", 0.3: "gaps", 0.5: "bitmap", 0.7: "holes", 0.99: "holes"}


@given(st.sets(st.integers(0, 2**35), min_size=1, max_size=20), st.integers(-2, 2))
@settings(deadline=None)
def test_positions_beyond_31_bits_round_trip_without_a_mask(found: set[int], beside: int) -> None:
    found |= {2**31 + beside, 2**32 + beside}
    positions = torch.tensor(sorted(found), dtype=torch.int64)
    index = encode_positions(positions, 2**35 + 1)
    index.check()
    assert torch.equal(index.positions(), positions)
    assert index.data.numel() < 200


@pytest.mark.parametrize("wrong", [[3, 2], [1, 1], [-1, 2], [0, 10]])
def test_positions_that_are_no_index_are_refused(wrong: list[int]) -> None:
    with pytest.raises(UsageError, match=r"ascending, unique and in range\(10\)"):
        encode_positions(torch.tensor(wrong), 10)


def test_nothing_moved_has_no_index() -> None:
    with pytest.raises(UsageError, match="did not move"):
        encode_mask(torch.zeros(4, dtype=torch.bool))


@given(st.binary(max_size=40), st.integers(-1, 70), st.integers(-1, 400), st.integers(-1, 400), st.integers(0, 3))
@settings(max_examples=400)
def test_arbitrary_bytes_are_refused_or_valid(data: bytes, low: int, entries: int, moved: int, coding: int) -> None:
    raw = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    index = Index(("bitmap", "gaps", "holes", "else")[coding], low, entries, moved, raw)
    try:
        index.check()
    except CheckpointError:
        return
    positions = index.positions()
    assert positions.numel() == moved
    assert torch.equal(positions, positions.unique())
    assert int(positions[0]) >= 0
    assert int(positions[-1]) < entries


def plainly_decoded(data: bytes, low: int, entries: int, count: int) -> list[int] | None:
    """The positions, read bit by bit by the format's definition; None for bytes that no encoder writes."""
    plane = (count + 7) // 8
    unary, planes = data[: len(data) - low * plane], data[len(data) - low * plane :]
    if len(data) < low * plane:
        return None
    bits = [byte >> bit & 1 for byte in unary for bit in range(8)]
    rows = [[byte >> bit & 1 for byte in planes[p * plane : (p + 1) * plane] for bit in range(8)] for p in range(low)]
    if sum(bits) != count or (unary and not unary[-1]) or any(any(row[count:]) for row in rows):
        return None
    positions, position, zeros = [], -1, 0
    for bit in bits:
        if bit == 0:
            zeros += 1
            continue
        position += 1 + (zeros << low) + sum(row[len(positions)] << p for p, row in enumerate(rows))
        positions.append(position)
        zeros = 0
    return positions if position < entries else None


@given(
    st.lists(st.integers(0, 255), max_size=12).map(bytes),
    st.sampled_from([0, 0, 1, 1, 2, 3, 8, 9, 61]),
    st.integers(1, 300),
    st.integers(0, 40),
    st.sampled_from(["gaps", "holes"]),
)
@settings(max_examples=300, deadline=None)
def test_exactly_the_bytes_of_the_format_are_valid(
    data: bytes, low: int, entries: int, count: int, coding: str
) -> None:
    # Half of the cases get the header that fits their bits, or most would be refused for their number.
    unary = len(data) - low * ((count + 7) // 8)
    count = sum(byte.bit_count() for byte in data[: max(unary, 0)]) if entries % 2 else count
    moved = count if coding == "gaps" else entries - count
    if not 0 < moved <= entries:
        return
    index = Index(coding, low, entries, moved, torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()))
    expected = plainly_decoded(data, low, entries, count)
    if expected is None:
        with pytest.raises(CheckpointError):
            index.check()
        with pytest.raises(CheckpointError):
            index.positions()
    else:
        index.check()
        kept = set(range(entries)) - set(expected) if coding == "holes" else set(expected)
        assert index.positions().tolist() == sorted(kept)
        assert index.mask().nonzero()[:, 0].tolist() == sorted(kept)


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("bits", [8, 64, 1000 * 8])
def test_pieces_of_any_size_are_the_positions(monkeypatch: pytest.MonkeyPatch, keep: float, bits: int) -> None:
    mask = torch.rand(5000, generator=torch.Generator().manual_seed(3)) < keep
    mask[1000:1900] = False  # a gap that is longer than some pieces
    mask[2000:2900] = True
    index = encode_mask(mask)
    monkeypatch.setattr(codec, "_DECODED", bits)
    pieces = list(index.pieces())
    assert all(piece.dtype == torch.int64 and 0 < piece.numel() <= bits for piece in pieces)
    assert torch.equal(torch.cat(pieces), mask.nonzero()[:, 0])
    assert torch.equal(index.mask(), mask)


def test_a_bitmap_of_another_number_of_positions_is_refused_wherever_it_is_read() -> None:
    index = replace(encode_mask(torch.tensor([True, False] * 40)), moved=39)
    assert index.coding == "bitmap"
    for read in (index.check, index.positions, index.mask):
        with pytest.raises(CheckpointError, match="holds 40 positions, its header says 39"):
            read()


def test_equal_masks_give_the_bytes_of_format_1() -> None:
    golden = json.loads((GOLDEN / "codings.json").read_text())
    maker = runpy.run_path(str(GOLDEN / "make_codings.py"))  # its masks; that does not write the file again
    for keep, mask in maker["masks"]().items():
        index = encode_mask(mask)
        digest = hashlib.sha256(index.data.numpy().tobytes()).hexdigest()
        assert [index.coding, index.low, index.moved, digest] == golden.pop(keep)
        where = mask.nonzero()[:, 0]
        assert torch.equal(index.positions(), where)
        assert torch.equal(encode_positions(where, mask.numel()).data, index.data)
    assert not golden


def test_gaps_whose_sum_would_overflow_are_refused() -> None:
    ones = torch.full((8,), 0xFF, dtype=torch.uint8)  # 64 gaps of which every bit is set
    index = Index("gaps", 61, 2**61 - 1, 64, torch.cat([ones, ones.repeat(61)]))
    with pytest.raises(CheckpointError, match="leaves the tensor"):
        index.check()
