"""The saved state as plain data, and the cutting of whole tensors to shards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from subnetune.core.errors import CheckpointError, UsageError
from subnetune.core.masks import PackedMask
from subnetune.core.types import Placement
from subnetune.engine.anchors import Anchors
from subnetune.engine.saving import restore, snapshot
from subnetune.engine.views import local_mask, local_part, local_view

WHO = {"recipe": "Recipe()", "seed": 0, "steps": 3, "base": "b"}


def state(**changes: Any) -> dict[str, Any]:
    selector = {"mask": {"bits": {"w": torch.tensor([5], dtype=torch.uint8)}}, "counts": [1, 2], "big": 300_000_001}
    saved = snapshot(WHO, 2, selector, Anchors({"w": torch.zeros(3, dtype=torch.bfloat16)}), {})
    return {**saved, **changes}


LIKE = {"w": torch.zeros(3, dtype=torch.bfloat16)}


def test_a_state_comes_back_as_it_was_dtypes_and_all() -> None:
    found = restore(state(), WHO, LIKE)
    assert found.index == 2
    assert found.state["mask"]["bits"]["w"].dtype == torch.uint8
    assert found.state["counts"] == [1, 2]
    assert found.state["big"] == 300_000_001
    assert found.anchor["w"].dtype == torch.bfloat16


def test_what_is_restored_shares_nothing_with_what_was_saved() -> None:
    saved = state()
    found = restore(saved, WHO, LIKE)
    found.anchor["w"].add_(1)
    found.state["mask"]["bits"]["w"].add_(1)
    assert saved["anchor"]["w"].tolist() == [0, 0, 0]
    assert saved["selector"]["mask"]["bits"]["w"].tolist() == [5]


@pytest.mark.parametrize(
    ("changes", "like", "words"),
    [
        ({"format": 3}, LIKE, "format 3; this version reads 1 and 2"),
        ({"seed": 8}, LIKE, "saved with seed=8, this run has seed=0"),
        ({"anchor": {}}, LIKE, "other tensors than this recipe trains, such as 'w'"),
        ({}, {"w": torch.zeros(4, dtype=torch.bfloat16)}, r"the anchor of 'w' is \(3,\).* the model has \(4,\)"),
        ({}, {"w": torch.zeros(3)}, "bfloat16, the model has .* torch.float32"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(changes: Any, like: Any, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        restore(state(**changes), WHO, like)


def part_of(whole: Tensor, start: tuple[int, ...], stop: tuple[int, ...]) -> Tensor:
    """A tensor that is marked as the engine marks local shards."""
    local = whole[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))].clone()
    local.subnetune_placement = Placement(tuple(whole.shape), start, True)  # type: ignore[attr-defined]
    return local


@st.composite
def parts(draw: Any) -> tuple[Tensor, Tensor, tuple[slice, ...]]:
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    start = tuple(draw(st.integers(0, n)) for n in shape)
    stop = tuple(draw(st.integers(a, n)) for a, n in zip(start, shape, strict=True))
    return whole, part_of(whole, start, stop), tuple(slice(a, b) for a, b in zip(start, stop, strict=True))


@given(parts(), st.data())
def test_the_local_part_of_what_broadcasts_is_that_of_the_whole(made: Any, data: Any) -> None:
    whole, local, where = made
    axes = [data.draw(st.booleans()) for _ in whole.shape]
    small = whole[tuple(slice(0, 1) if one else slice(None) for one in axes)]
    cut = local_part(small, local)
    assert torch.equal(cut.expand(local.shape), small.expand(whole.shape)[where])
    assert torch.equal(local_part(cut, local), cut), "what is local already stays"
    scalar = torch.tensor(True)
    assert local_part(scalar, local) is scalar


def test_masks_of_whole_tensors_are_cut_when_they_are_read() -> None:
    whole = torch.zeros(4, 2)
    mask = PackedMask.of({"w": torch.tensor([[True, False], [False, True], [True, True], [False, False]])})
    local = part_of(whole, (2, 0), (4, 2))
    cut = local_mask(mask, {"w": local})
    assert cut is not None
    assert cut["w"].tolist() == [[True, True], [False, False]]
    assert local_mask(mask, {"w": whole}) is mask
    assert local_mask(None, {"w": local}) is None


def test_shards_that_several_ranks_hold_and_gradients_that_lie_otherwise_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sums over all ranks would count such shards several times; a part of a sum is no gradient."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    if dist.is_initialized():
        pytest.skip("another test holds the process group")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        split = distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)])
        assert local_view(split).shape == (6, 4)
        with monkeypatch.context() as patch:
            patch.setattr(dist, "get_world_size", lambda: 2)
            with pytest.raises(UsageError, match="in 1 shards on 2 ranks are not supported"):
                local_view(split)
        copied = distribute_tensor(torch.ones(6, 4), mesh, [Replicate()]).requires_grad_()
        copied.grad = DTensor.from_local(torch.ones(6, 4), mesh, [Partial()])
        with pytest.raises(UsageError, match="is no part of one as"):
            local_view(copied)
    finally:
        dist.destroy_process_group()
