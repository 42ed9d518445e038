"""One job of two gloo ranks for the engines: the same run under each, replicated and sharded."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from distributed.job import case_of, halves, shard, whole
from subnetune.core.errors import CheckpointError
from subnetune.tuning import Tuning
from tiny import bits

DDP = ("d-bert", "random-subset-bert")
SHARDED = ("random-subset-bert", "random-rows-columns-bert")
RANDOM = "f-exact-bert"
ENGINES = ("reference", "packed", "fused")
ORDERS = ("sharded first", "bound first", "optimizer first")


def train(tuning: Tuning, optimizer: Any, data: list[dict[str, Tensor]], model: nn.Module | None = None) -> list[float]:
    norms = []
    for batch in data:
        tuning.forward(batch, model=model).loss.backward()
        norms.append(float(tuning.clip(0.5)))
        assert tuning.step(optimizer)
        optimizer.zero_grad()
        assert all(p.grad is None for p in tuning.model.parameters())
    return norms


def optimizer_of(tuning: Tuning, engine: str) -> Any:
    return tuning.optimizer(torch.optim.AdamW, engine=engine, lr=1e-2, weight_decay=0.1)


def replicated(rank: int) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Weights after some steps under DDP, by method and engine."""
    found: dict[str, dict[str, dict[str, Tensor]]] = {}
    for name in DDP:
        found[name] = {}
        for engine in ENGINES:
            case = case_of(name)
            model = case.build(dropout=False)
            tuning = case.tuning(model)
            optimizer = optimizer_of(tuning, engine)
            train(tuning, optimizer, halves(case)[1 + rank], DistributedDataParallel(model))
            found[name][engine] = bits(model)
    return found


def sharded(rank: int) -> dict[str, Any]:
    """Whole weights before and after some steps under FSDP2, and norms, by method, order of building, and engine."""
    found: dict[str, Any] = {}
    for name in (*SHARDED, RANDOM):
        for order in ORDERS:
            for engine in ENGINES:
                served = engine != "packed" if name == RANDOM else True
                # Torch's own optimizers hold on to the tensors that they were built over.
                if served and not (engine == "reference" and order == "optimizer first"):
                    found[f"{name}, {order}, {engine}"] = one_sharded(rank, name, order, engine)
    return found


def one_sharded(rank: int, name: str, order: str, engine: str) -> dict[str, Any]:
    case = case_of(name)
    model = case.build(dropout=False)
    if order == "sharded first":
        shard(model)
    tuning = case.tuning(model)
    tuning.start()
    if order == "bound first":
        shard(model)
    optimizer = optimizer_of(tuning, engine)
    if order == "optimizer first":
        optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does when it wraps
        shard(model)
    before = whole(model)
    norms = train(tuning, optimizer, halves(case)[1 + rank])
    mask = tuning.live().mask
    digest = None if mask is None else tuning.mask_digest() if tuning.mask is not None else None
    return {"before": before, "after": whole(model), "norms": norms, "digest": digest, "index": tuning.index}


def saved(rank: int) -> dict[str, str]:
    """What a sharded run is told that asks for its optimizer's state."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    found = {}
    for engine in ENGINES:
        case = case_of("random-subset-bert")
        model = case.build(dropout=False)
        shard(model)
        tuning = case.tuning(model)
        optimizer = optimizer_of(tuning, engine)
        train(tuning, optimizer, halves(case)[1 + rank][:1])
        options = StateDictOptions(full_state_dict=True)
        asks: dict[str, Callable[[], Any]] = {
            "gathered": lambda m=model, o=optimizer, s=options: get_optimizer_state_dict(m, o, options=s),
            "own": optimizer.state_dict,
        }
        for what, ask in asks.items():
            try:
                state = ask()["state"]
                shapes = {key: tuple(value["exp_avg"].shape) for key, value in state.items()} if rank == 0 else {}
                found[f"{engine} {what}"] = repr(shapes)
            except CheckpointError as error:
                found[f"{engine} {what}"] = f"refused: {error}"
        found[f"{engine} index"] = str(tuning.index)
    return found


CHECKS: tuple[Callable[[int], Any], ...] = (replicated, sharded, saved)


def run(rank: int, folder: str, names: tuple[str, ...]) -> None:
    """What each process does: the named checks in turn; one that fails leaves its traceback and stops the job."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    findings: dict[str, Any] = {}
    try:
        for check in CHECKS:
            if check.__name__ in names:
                findings[check.__name__] = check(rank)
    except Exception:  # the other rank may wait for this one: tell, and end
        findings["failed"] = traceback.format_exc()
    torch.save(findings, Path(folder) / f"rank{rank}.pt")
    if "failed" in findings:
        raise SystemExit(f"rank {rank} failed:\n{findings['failed']}")
    dist.destroy_process_group()
