"""Two gloo ranks with lean gradients beside dense ones: what each finds is left for test_lean_ranks.py."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from subnetune import Random, Top
from subnetune.core.errors import SubnetuneError
from subnetune.tuning import Tuning
from tiny import bits
from tower import TOWER, Tower, data, tower
from tower import tuned as tuned_at

STEPS, MICRO = 3, 2
SPARSE = replace(TOWER, selector=Top(Random(), 0.08))  # sparse enough for selected weight gradients
tuned = partial(tuned_at, recipe=SPARSE)


def train(tuning: Tuning, optimizer: Any, wrapped: Any, rank: int, gradients: str, scaler: Any = None) -> list[Tensor]:
    """Some steps of accumulated batches, other ones on each rank; the norms."""
    norms = []
    for step in range(STEPS):
        for part in range(MICRO):
            last = part == MICRO - 1 or gradients != "dense"
            with nullcontext() if last else wrapped.no_sync():
                loss = tuning.forward(data(100 * rank + 10 * step + part), model=wrapped).loss
            (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is None:
            norms.append(tuning.clip(0.1))
        tuning.step(optimizer, scaler=scaler)
        wrapped.zero_grad()
    return norms


def replicated(rank: int, engine: str = "packed", **options: Any) -> dict[str, Any]:
    """Weights and norms of each mode under DDP."""
    found = {}
    for gradients in ("dense", "lean", "selected"):
        tuning, optimizer = tuned(gradients, tower(**options), engine=engine)
        wrapped = DistributedDataParallel(tuning.model)
        norms = train(tuning, optimizer, wrapped, rank, gradients)
        found[gradients] = {"weights": bits(tuning.model), "norms": norms}
    return found


def checkpointed(rank: int) -> dict[str, Any]:
    return replicated(rank, "fused", checkpointing=False)


def scaled(rank: int) -> dict[str, Any]:
    """Weights under a GradScaler when one rank's gradients overflow in the second step."""
    found: dict[str, Any] = {}
    for gradients in ("dense", "lean"):
        tuning, optimizer = tuned(gradients)
        wrapped, scaler = DistributedDataParallel(tuning.model), torch.amp.GradScaler("cpu", init_scale=4.0)
        happened = []
        for step in range(3):
            loss = tuning.forward(data(10 * rank + step), model=wrapped).loss
            bad = float("inf") if step == 1 and rank == 1 else 1.0
            scaler.scale(loss * bad).backward()
            happened.append(tuning.step(optimizer, scaler=scaler))
            wrapped.zero_grad()
        found[gradients] = {"weights": bits(tuning.model), "happened": happened, "scale": scaler.get_scale()}
    return found


class Part(Tower):
    """A tower of which only the first `taking` layers take part."""

    taking = 0

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        self.layers, kept = self.layers[: self.taking], self.layers
        try:
            return super().forward(ids, labels)
        finally:
            self.layers = kept


def absent(rank: int) -> dict[str, Any]:
    """Weights when a layer takes part on one rank alone, and one on none."""

    found = {}
    for gradients in ("dense", "lean"):
        torch.manual_seed(3)
        tuning, optimizer = tuned(gradients, Part())
        tuning.model.taking = rank
        wrapped = DistributedDataParallel(tuning.model, find_unused_parameters=True)
        for step in range(2):
            tuning.forward(data(10 * rank + step), model=wrapped).loss.backward()
            tuning.step(optimizer)
            optimizer.zero_grad()
        found[gradients] = bits(tuning.model)
    return found


def measured(rank: int) -> dict[str, Tensor]:
    """Weights when norms are measured between micro-batches, in the second of which a layer is on one rank alone."""
    torch.manual_seed(3)
    tuning, optimizer = tuned("lean", Part())
    wrapped = DistributedDataParallel(tuning.model, find_unused_parameters=True)
    for part, taking in enumerate((2, 1 + rank)):
        tuning.model.taking = taking
        tuning.forward(data(10 * rank + part), model=wrapped).loss.backward()
        tuning.clip(1e9)
    tuning.step(optimizer)
    return bits(tuning.model)


def buffered(rank: int) -> dict[str, Tensor]:
    """The running mean of a batch norm, which DDP copies from rank 0."""
    model = tower()
    model.layers[0].norm = torch.nn.Sequential(torch.nn.BatchNorm1d(7))
    tuning, optimizer = tuned("lean", model)
    wrapped = DistributedDataParallel(model)
    train(tuning, optimizer, wrapped, rank, "lean")
    return {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def told(call: Callable[[], Any]) -> str:
    try:
        call()
    except SubnetuneError as error:
        return str(error)
    return "nothing"


def refusals(rank: int) -> dict[str, str]:
    found = {}
    tuning, _ = tuned()
    found["no wrapper"] = told(lambda: tuning.forward(data()).loss.backward())

    tuning, _ = tuned()
    beside = DistributedDataParallel(tuning.model)
    found["beside, never seen"] = told(lambda: beside(**data()).loss.backward())

    tuning, optimizer = tuned()
    wrapped = DistributedDataParallel(tuning.model)
    tuning.forward(data(), model=wrapped).loss.backward()
    tuning.step(optimizer)
    found["beside"] = told(lambda: wrapped(**data()).loss.backward())
    with torch.no_grad():
        found["beside, no gradients"] = told(lambda: wrapped(**data()))

    tuning, _ = tuned()
    fixed = DistributedDataParallel(tuning.model, static_graph=True)
    found["static graph"] = told(lambda: tuning.forward(data(), model=fixed))

    for order in ("clip", "unscale"):
        tuning, optimizer = tuned()
        wrapped, scaler = DistributedDataParallel(tuning.model), torch.amp.GradScaler("cpu")
        scaler.scale(tuning.forward(data(), model=wrapped).loss).backward()
        if order == "clip":
            tuning.clip(0.1)
        else:
            scaler.unscale_(optimizer)
        found[f"{order} before a scaled step"] = told(partial(tuning.step, optimizer, scaler=scaler))
    return found


def sharded(rank: int) -> dict[str, Any]:
    """Weights and norms of each mode under FSDP2, and what a model sharded too late is told."""
    mesh, found = init_device_mesh("cpu", (2,)), {}

    def shard(model: Tower) -> Tower:
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    for gradients in ("dense", "lean"):
        model = shard(tower())
        tuning, optimizer = tuned(gradients, model)
        norms = []
        for step in range(STEPS):
            for part in range(MICRO):
                tuning.forward(data(100 * rank + 10 * step + part)).loss.backward()
            norms.append(tuning.clip(0.1))
            assert gradients == "dense" or all(p.grad is None for p in model.layers.parameters())
            tuning.step(optimizer)
            model.zero_grad()
        whole = {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}
        found[gradients] = {"weights": whole, "norms": norms, "base": tuning.base_values()}
    model = tower()
    tuning, optimizer = tuned("lean", model)
    shard(model)
    tuning.forward(data(rank)).loss.backward()
    found["late"] = told(lambda: tuning.step(optimizer))
    found["selected"] = told(lambda: tuned("selected", shard(tower())))
    return found


CHECKS = (replicated, checkpointed, scaled, absent, measured, buffered, refusals, sharded)


def run(rank: int, folder: str) -> None:
    """What each process does; a check that fails leaves its traceback and stops the job."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    findings: dict[str, Any] = {}
    try:
        for check in CHECKS:
            findings[check.__name__] = check(rank)
    except Exception:
        findings["failed"] = traceback.format_exc()
    torch.save(findings, Path(folder) / f"rank{rank}.pt")
    if "failed" in findings:
        raise SystemExit(f"rank {rank} failed:\n{findings['failed']}")
    dist.destroy_process_group()
