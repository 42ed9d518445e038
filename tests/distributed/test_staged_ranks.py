"""Masks that are learned on two ranks: those of one process under DDP and FSDP2, and an error where ranks disagree."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from forks import side_by_side
from subnetune import Bernoulli, HoldUnselected, MaskGradient, Recipe, Scope, Staged, Tuning
from subnetune.core.errors import LifeCycleError
from subnetune.core.types import Output

pytestmark = pytest.mark.xdist_group("two-processes")
STEPS = 6
UPDATE = (MaskGradient(), HoldUnselected())
RECIPES = {
    "tensor": Recipe(Scope(("*weight",), ("*",)), Staged(0.5, 0.67), UPDATE),
    "model": Recipe(Scope(("*weight",), ("*",)), Staged(0.3, 0.67, per="model"), UPDATE),
    "drawn": Recipe(Scope(("*weight",), ("*",)), Staged(0.5, 0.67, collect=Bernoulli(0.6, "column")), UPDATE),
}


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def data(seed: int = 0) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(4, 6, generator=random)} for _ in range(STEPS)]


def forward(model: nn.Module, batch: dict[str, Tensor]) -> Output:
    logits = model(batch["x"])
    return Output(logits.square().mean(), logits)


def run(recipe: Recipe, model: nn.Module, batches: list[dict[str, Tensor]], wrapped: Any = None) -> list[Any]:
    """The local mask of every step, None where everything is selected."""
    tuning = Tuning(recipe, model, forward=forward, steps=STEPS)
    optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-2)
    wrapped = wrapped and wrapped(model)
    masks = []
    for batch in batches:
        tuning.forward(batch, model=wrapped).loss.backward()
        live = tuning.live()
        masks.append(live.mask and {n: live.mask[n].expand(p.shape).clone() for n, p in live.params.items()})
        tuning.step(optimizer)
        optimizer.zero_grad()
    return masks


def sharded() -> nn.Module:
    model = network()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def told(rank: int) -> str:
    """Each rank trains on data of its own without averaging: the masks of the first updating stage differ."""
    try:
        run(RECIPES["tensor"], network(), data(rank))
    except LifeCycleError as error:
        return str(error)
    return "nothing"


def job(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    try:  # both ranks see the same batches, so that the mean of their gradients is that of one, bit for bit
        found["ddp"] = {k: run(r, network(), data(), DistributedDataParallel) for k, r in RECIPES.items()}
        found["fsdp"] = {k: run(r, sharded(), data()) for k, r in RECIPES.items()}
        found["told"] = told(rank)
    except Exception:
        found["failed"] = traceback.format_exc()
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    if "failed" in found:
        raise SystemExit(found["failed"])
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("staged")
    side_by_side(job, (str(folder),), 2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_learned_masks_are_those_of_one_process(wrapper: str, kind: str, ranks: list[dict[str, Any]]) -> None:
    wanted = run(RECIPES[kind], network(), data())
    found = [rank[wrapper][kind] for rank in ranks]
    assert [mask is None for mask in wanted] == [kind != "drawn" and i % 4 < 2 for i in range(STEPS)]
    for step, mask in enumerate(wanted):
        for name in mask or ():
            parts = [each[step][name] for each in found]
            whole = parts if wrapper == "ddp" else [torch.cat(parts)]
            assert all(torch.equal(part, mask[name]) for part in whole), (step, name)
        assert [each[step] is None for each in found] == [mask is None] * 2
    assert not all(mask["0.weight"].all() for mask in wanted if mask)


def test_ranks_that_learned_different_masks_are_told_on_both_sides(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "at step 2 the ranks chose different entries" in rank["told"]
