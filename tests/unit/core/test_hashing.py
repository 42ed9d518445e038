"""The mask hash: its definition, its statistics, and that no sharding and no random state changes a mask."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from math import prod, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from subnetune.core.errors import UsageError
from subnetune.core.hashing import HASH_VERSION, below, bernoulli_mask, hash_range, keys, threshold, uniform_scores
from subnetune.core.types import Placement

WORD = (1 << 32) - 1
COUNT = 1 << 20


def whole(*shape: int) -> Placement:
    return Placement(shape, (0,) * len(shape), False)


def mask_of(keep: float, *shape: int, seed: int = 0, step: int = 0, name: str = "w", unit: str = "entry") -> Tensor:
    return bernoulli_mask(seed, step, name, keep, whole(*shape), shape, unit)


def plain_mix(x: int) -> int:
    x ^= x >> 16
    x = x * 0x21F0AAAD & WORD
    x ^= x >> 15
    x = x * 0x735A2D97 & WORD
    return x ^ x >> 15


def plain_hash(seed: int, step: int, name: str, index: int) -> int:
    """The documented hash, said again in whole numbers."""
    salt = (index >> 32).to_bytes(8, "little")
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8, salt=salt).digest()
    first, second = (int.from_bytes(digest[at : at + 4], "little") for at in (0, 4))
    return plain_mix(plain_mix((index + first) & WORD) ^ second)


class TestDefinition:
    @settings(deadline=None)
    @given(st.integers(-5, 1 << 40), st.integers(-1, 1 << 40), st.text(max_size=20), st.integers(0, 1 << 40))
    def test_is_the_documented_one(self, seed: int, step: int, name: str, start: int) -> None:
        got = hash_range(seed, step, name, start, start + 5)
        assert got.dtype == torch.int32
        assert [value & WORD for value in got.tolist()] == [
            plain_hash(seed, step, name, index) for index in range(start, start + 5)
        ]

    def test_golden_values_of_version_1(self) -> None:
        """Printed by `plain_hash(42, 7, "encoder.layer.0.weight", i)`: masks of old runs must not change."""
        assert HASH_VERSION == 1
        indices = (0, 1, 65_535, 65_536, (1 << 32) - 1, 1 << 32, (1 << 33) + 5)
        got = [int(hash_range(42, 7, "encoder.layer.0.weight", i, i + 1)) & WORD for i in indices]
        assert got == GOLDEN
        assert keys(42, 7, "encoder.layer.0.weight") == GOLDEN_KEYS

    @pytest.mark.parametrize("start", [(1 << 32) - 3, (1 << 33) - 70_000, 65_530])
    def test_pieces_and_high_words_join_without_a_seam(self, start: int) -> None:
        got = hash_range(1, 2, "w", start, start + 140_000)
        for offset in (0, 2, 3, 4, 65_535, 65_536, 69_999, 70_000, 139_999):
            assert int(got[offset]) & WORD == plain_hash(1, 2, "w", start + offset)

    def test_an_entry_is_selected_below_the_threshold(self) -> None:
        hashes = hash_range(3, 4, "w", 0, 1000)
        assert torch.equal(mask_of(0.3, 1000, seed=3, step=4), hashes < round(0.3 * 2**32) - 2**31)

    @pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 4)])
    def test_a_range_runs_forward(self, start: int, stop: int) -> None:
        with pytest.raises(UsageError, match="start"):
            hash_range(0, 0, "w", start, stop)


class TestUnits:
    @pytest.mark.parametrize(
        ("unit", "shape"),
        [("entry", (4, 5, 6)), ("row", (4, 1, 1)), ("column", (1, 1, 6)), ("tensor", ())],
    )
    def test_broadcast_to_the_parameter(self, unit: str, shape: tuple[int, ...]) -> None:
        mask = mask_of(0.5, 4, 5, 6, unit=unit)
        assert mask.dtype == torch.bool
        assert tuple(mask.shape) == shape
        hashes = hash_range(0, 0, "w", 0, prod(shape))
        assert torch.equal(mask.flatten(), hashes < 0)

    @pytest.mark.parametrize("unit", ["row", "column"])
    def test_of_a_vector_are_its_entries(self, unit: str) -> None:
        assert torch.equal(mask_of(0.5, 64, unit=unit), mask_of(0.5, 64))

    @pytest.mark.parametrize("unit", ["entry", "row", "column", "tensor"])
    @pytest.mark.parametrize("keep", [1, 1.0, 1 - 2**-53])
    def test_keep_one_selects_all(self, unit: str, keep: float) -> None:
        assert mask_of(keep, 3, 4, unit=unit).all()

    @pytest.mark.parametrize("keep", [0, -0.1, 1.5, float("nan"), True])
    def test_keep_is_a_fraction(self, keep: float) -> None:
        with pytest.raises(UsageError, match="keep"):
            mask_of(keep, 3)

    def test_unknown_unit(self) -> None:
        with pytest.raises(UsageError, match="'entry', 'row', 'column', 'block', 'tensor'"):
            mask_of(0.5, 3, unit="rows")

    def test_a_part_that_sticks_out(self) -> None:
        with pytest.raises(UsageError, match="does not lie inside"):
            bernoulli_mask(0, 0, "w", 0.5, Placement((4, 4), (3, 0), True), (2, 4))

    @pytest.mark.parametrize("unit", ["entry", "row", "column"])
    def test_an_empty_part(self, unit: str) -> None:
        assert bernoulli_mask(0, 0, "w", 0.5, Placement((4, 4), (4, 0), True), (0, 4), unit).numel() in (0, 4)


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=4)))
    start = tuple(draw(st.integers(0, size)) for size in shape)
    local = tuple(draw(st.integers(0, size - first)) for size, first in zip(shape, start, strict=True))
    return shape, start, local


class TestShards:
    @settings(deadline=None)
    @given(parts(), st.sampled_from(["entry", "row", "column", "tensor"]), st.sampled_from([0.2, 0.7]))
    def test_a_shard_has_its_part_of_the_mask(
        self, part: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], unit: str, keep: float
    ) -> None:
        shape, start, local = part
        here = tuple(slice(first, first + size) for first, size in zip(start, local, strict=True))
        mask = bernoulli_mask(5, 6, "w", keep, Placement(shape, start, True), local, unit)
        everywhere = bernoulli_mask(5, 6, "w", keep, whole(*shape), shape, unit).expand(shape)
        assert torch.equal(mask.expand(local), everywhere[here])
        scores = uniform_scores(5, "w", Placement(shape, start, True), local)
        assert torch.equal(scores, uniform_scores(5, "w", whole(*shape), shape)[here])

    def test_columns_across_the_high_word(self) -> None:
        """Part of a tensor of 2^33 entries, cut along its last axis, where the index passes 2^32."""
        shape, start, local = (1 << 17, 1 << 16), (65_534, 65_530), (4, 6)
        mask = bernoulli_mask(1, 0, "w", 0.5, Placement(shape, start, True), local)
        for row in range(4):
            for column in range(6):
                index = (start[0] + row) * shape[1] + start[1] + column
                assert bool(mask[row, column]) == (plain_hash(1, 0, "w", index) ^ 1 << 31 < 1 << 31), (row, column)

    def test_the_thread_count_changes_nothing(self) -> None:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = mask_of(0.3, 300_000)
            torch.set_num_threads(2)
            assert torch.equal(mask_of(0.3, 300_000), one)
        finally:
            torch.set_num_threads(threads)


class TestRandomState:
    def test_is_neither_read_nor_written(self) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first = mask_of(0.3, 1000), uniform_scores(0, "w", whole(1000), (1000,))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(1)
        assert torch.equal(mask_of(0.3, 1000), first[0])
        assert torch.equal(uniform_scores(0, "w", whole(1000), (1000,)), first[1])


def z_of(hits: Tensor, chance: float) -> float:
    """How many standard deviations the number of true entries lies from that of independent draws."""
    count = hits.numel()
    return float((hits.sum() - count * chance) / sqrt(count * chance * (1 - chance)))


class TestStatistics:
    """Fixed seeds, so nothing here is flaky; |z| < 4 would fail once in 16,000 for a perfect generator."""

    @pytest.mark.parametrize("keep", [0.001, 0.01, 0.1, 0.3, 0.5, 0.9])
    @pytest.mark.parametrize("seed", [0, 1, 42])
    def test_frequency(self, keep: float, seed: int) -> None:
        assert abs(z_of(mask_of(keep, COUNT, seed=seed), keep)) < 4

    @pytest.mark.parametrize("lag", [1, 2, 3, 4, 7, 8, 64, 256, 768, 1024, 3072, 65_536])
    @pytest.mark.parametrize("keep", [0.3, 0.05])
    def test_neighbours_are_independent(self, lag: int, keep: float) -> None:
        mask = mask_of(keep, COUNT)
        assert abs(z_of(mask[lag:] & mask[:-lag], keep * keep)) < 4

    @pytest.mark.parametrize("keep", [0.3, 0.05])
    def test_steps_names_and_seeds_are_independent(self, keep: float) -> None:
        """Tensors of equal shape, following steps and following seeds: also at a shift of up to three entries."""
        series = {
            "step": [mask_of(keep, COUNT, step=step) for step in range(5)],
            "name": [mask_of(keep, COUNT, name=f"layer.{layer}.weight") for layer in range(5)],
            "seed": [mask_of(keep, COUNT, seed=seed) for seed in range(5)],
        }
        for kind, masks in series.items():
            for one, other in pairwise(masks):
                for shift in range(4):
                    both = one[shift:] & other[: COUNT - shift]
                    assert abs(z_of(both, keep * keep)) < 4.5, (kind, shift)  # 96 comparisons in all

    def test_no_mask_is_a_permuted_copy_of_another(self) -> None:
        """One keyed round fails here: XOR of the index with a constant maps one tensor's mask to another's."""
        one, other = (hash_range(0, 0, name, 0, 1 << 14) for name in ("a", "b"))
        shared = len(set(one.tolist()) & set(other.tolist()))
        assert shared < 3  # about 2^28 / 2^32 are expected

    def test_avalanche(self) -> None:
        """Each bit of the index flips each bit of the hash in half of the cases."""
        index = torch.arange(1 << 14)
        hashes = hash_range(0, 0, "w", 0, 1 << 20)
        for bit in range(20):
            flipped = (index ^ 1 << bit) if bit < 14 else index + (1 << bit)
            changed = hashes[index] ^ hashes[flipped]
            for out in range(32):
                assert abs(z_of((changed >> out & 1).bool(), 0.5)) < 5, (bit, out)  # 640 comparisons

    def test_uniform_scores_are_uniform_and_apart_from_the_masks(self) -> None:
        scores = uniform_scores(0, "w", whole(COUNT), (COUNT,))
        assert scores.dtype == torch.float32
        assert float(scores.min()) >= 0.0
        assert float(scores.max()) < 1.0
        counts = torch.histc(scores, 64, 0.0, 1.0)
        chi = float(((counts - COUNT / 64) ** 2 / (COUNT / 64)).sum())
        assert abs(chi - 63) < 4 * sqrt(2 * 63)
        assert abs(z_of((scores < 0.3) & mask_of(0.3, COUNT), 0.09)) < 4


GOLDEN_KEYS = (3078230482, 1615454177)
GOLDEN = [2871376736, 2539601720, 2011824278, 2639969551, 277966714, 1063352760, 4030739291]


def test_a_limit_above_every_hash_selects_everything() -> None:
    assert bool(below(*keys(1, 2, "w"), threshold(1.0), 0, 1000, "cpu").all())
    chosen = below(*keys(1, 2, "w"), threshold(0.3), 7, 1000, "cpu")
    assert torch.equal(chosen, bernoulli_mask(1, 2, "w", 0.3, Placement((1007,), (7,), True), (1000,)))
