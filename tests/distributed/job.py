"""One job of two gloo ranks that serves every distributed test: each check runs on both and leaves its findings."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from conformance.table import CASES, Case, each_method_once, learns, train
from distributed import lean_job, priming_job
from subnetune import methods
from subnetune.core.errors import LifeCycleError
from subnetune.core.masks import mask_digest
from subnetune.core.recipe import Recipe
from subnetune.core.types import placement
from subnetune.delta import Delta
from subnetune.engine.saving import identity
from subnetune.tuning import Tuning
from tiny import bits


def by_default(case: Case) -> bool:
    """Whether the default run has it: where nothing selects, there is no mask to differ."""
    return each_method_once(case) and case.row.recipe().selector is not None


MASK_CASES = [case for case in CASES if case.model in ("bert", "llama-lm", "t5")]
DEFAULT_CASES = [case for case in MASK_CASES if by_default(case)]
REPLICATED = ("d-bert", "f-exact-bert", "random-rows-columns-llama", "lora-bert", "gradual-unfreezing-bert")
SHARDED = (  # bound after sharding
    *("f-exact-bert", "f-rows-bert", "random-subset-bert", "random-rows-columns-bert", "gradual-unfreezing-bert"),
)
STARTED_BEFORE = ("d-bert", "d-release-bert", "random-count-bert")  # their scores need whole gradients
DRAWING = ("r-drop-bert", "r3f-bert", "l2-sp-bert", "hype-bert")
STEPS = 3


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.id == name)


def digests(case: Case) -> list[str]:
    """The digests of the masks of the first three steps; of masks that the run's gradients make, in a run."""
    torch.manual_seed(13)  # rules that draw noise draw the same on every rank, as averaged gradients are the same
    tuning = case.tuning(case.build(dropout=False))
    optimizer = tuning.optimizer(lr=1e-3)
    found = []
    for batch in case.batches(3, seed=9):
        live = tuning.live()
        found.append(mask_digest(live.mask, live.params))
        if learns(tuning.recipe):
            train(tuning, optimizer, [batch])
        else:
            tuning.advance()
    return found


def halves(case: Case) -> list[list[dict[str, Tensor]]]:
    """Batches of four rows for one process, and the two rows of each that go to each rank."""
    whole = case.batches(STEPS, seed=9)
    return [whole, *([{k: v[2 * r : 2 * r + 2] for k, v in b.items()} for b in whole] for r in range(2))]


def masks(rank: int) -> dict[str, list[str]]:
    return digests_of(DEFAULT_CASES, rank)


def other_masks(rank: int) -> dict[str, list[str]]:
    return digests_of([case for case in MASK_CASES if case not in DEFAULT_CASES], rank)


def digests_of(cases: list[Case], rank: int) -> dict[str, list[str]]:
    torch.manual_seed(100 + rank)
    torch.rand(7 * rank + 1)  # the ranks' random states differ from here on
    return {case.id: digests(case) for case in cases}


def disagreement(rank: int) -> dict[str, str]:
    """What each rank is told when the ranks bind different things."""

    def told(tuning: Tuning) -> str:
        try:
            tuning.start()
        except LifeCycleError as error:
            return str(error)
        return "nothing"

    def told_loading(recipe: Recipe, model: nn.Module, index: int) -> str:
        alone = Tuning(recipe, model)
        state = {"format": 1, **identity(recipe, 0, 0, alone.fingerprint.base), "index": index, "unprepared": {}}
        state["selector"] = {} if recipe.selector is None else {"seed": 0, "keep": 0.3}
        names = alone.scope.trained
        state["anchor"] = {n: p.detach().clone() for n, p in model.named_parameters() if n in names}
        try:
            alone.load_state_dict(state)
        except LifeCycleError as error:
            return f"{error} (index {alone.index})"
        return "nothing"

    scored, drawn = case_of("d-bert"), case_of("f-exact-bert")

    def changed(by: int) -> nn.Module:
        model = drawn.build()
        with torch.no_grad():
            next(model.parameters())[0, 0] += by
        return model

    other = changed(rank)
    return {
        "batches": told(scored.tuning(scored.build(), batches=scored.batches(2, seed=50 + rank))),
        "seed": told(drawn.tuning(drawn.build(), seed=rank)),
        "steps": told(drawn.tuning(drawn.build(), steps=10 + rank)),
        "base": told(drawn.tuning(other)),
        "base without a selector": told(Tuning(methods.full(), changed(rank))),
        "base of a resumed run": told_loading(methods.full(), changed(rank), 0),
        "index": told_loading(drawn.row.recipe(), drawn.build(), rank),
        "resumed": told_loading(drawn.row.recipe(), drawn.build(), 2),
        "agreed": told(drawn.tuning(drawn.build())),
    }


def replicated(rank: int) -> dict[str, dict[str, Tensor]]:
    """Weights after some steps under DDP."""
    ends = {}
    for name in REPLICATED:
        case = case_of(name)
        model = case.build(dropout=False)
        tuning = case.tuning(model)
        optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
        wrapped = DistributedDataParallel(model)
        train(tuning, optimizer, halves(case)[1 + rank], model=wrapped)
        ends[name] = bits(model)
    return ends


def drawing(rank: int) -> dict[str, dict[str, Tensor]]:
    """Weights after some steps under DDP of rules whose passes each rank draws noise and dropout for."""
    ends = {}
    for name in DRAWING:
        case = case_of(name)
        torch.manual_seed(20 + rank)
        model = case.build()
        tuning = case.tuning(model)
        optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
        wrapped = DistributedDataParallel(model)
        train(tuning, optimizer, halves(case)[1 + rank], model=wrapped)
        ends[name] = bits(model)
    return ends


def wrapped_too_early(rank: int) -> str:
    case = case_of("d-bert")
    try:
        case.tuning(DistributedDataParallel(case.build()))
    except LifeCycleError as error:
        return str(error)
    return "nothing"


def shard(model: nn.Module) -> None:
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def sharded(rank: int, names: tuple[str, ...] = SHARDED, before: bool = False) -> dict[str, Any]:
    """Under FSDP2: whole weights around each step, this rank's masks and where they lie, norms, whole deltas."""
    found = {}
    for name in names:
        case = case_of(name)
        model = case.build(dropout=False)
        if before:
            tuning = case.tuning(model)
            tuning.start()
            shard(model)
        else:
            shard(model)
            tuning = case.tuning(model)
        optimizer = tuning.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.1)
        weights, parts, norms = [whole(model)], [], []
        for batch in halves(case)[1 + rank]:
            tuning.forward(batch).loss.backward()
            norms.append(tuning.clip(1.0))
            live = tuning.live()
            parts.append({n: (placement(p), live.mask[n].expand(p.shape).clone()) for n, p in live.params.items()})
            tuning.step(optimizer)
            optimizer.zero_grad()
            weights.append(whole(model))
        found[name] = {
            "weights": weights,
            "parts": [{n: tuple(v) for n, v in p.items()} for p in parts],
            "norms": norms,
            "delta": applied(case, tuning),
            "digest": tuning.mask_digest(),
            "trained": tuning.describe().trained,
        }
    return found


def applied(case: Case, tuning: Tuning) -> dict[str, Tensor]:
    """The weights of a fresh, unsharded base after the run's delta was applied to it."""
    model = case.build()
    Delta.of(tuning).apply(model)
    return bits(model)


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.full_tensor().detach().clone() for name, p in model.named_parameters()}


def sharded_later(rank: int) -> dict[str, Any]:
    return sharded(rank, STARTED_BEFORE, before=True)


def lean(rank: int) -> dict[str, Any]:
    """Lean gradients beside dense ones; test_lean_ranks.py has more of them."""
    return lean_job.replicated(rank)


def primed(rank: int) -> dict[str, Any]:
    """Priming on batches of each rank's own; test_priming_ranks.py has more of it."""
    return priming_job.primings(rank)


CHECKS: tuple[Callable[[int], Any], ...] = (
    masks,
    disagreement,
    replicated,
    drawing,
    wrapped_too_early,
    sharded,
    sharded_later,
    lean,
    primed,
)


def run(rank: int, folder: str, checks: tuple[Callable[[int], Any], ...] = CHECKS) -> None:
    """What each process does: the checks in turn; one that fails leaves its traceback and stops the job."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    findings: dict[str, Any] = {}
    try:
        for check in checks:
            findings[check.__name__] = check(rank)
    except Exception:  # the other rank may wait for this one: tell, and end
        findings["failed"] = traceback.format_exc()
    torch.save(findings, Path(folder) / f"rank{rank}.pt")
    if "failed" in findings:
        raise SystemExit(f"rank {rank} failed:\n{findings['failed']}")
    dist.destroy_process_group()
