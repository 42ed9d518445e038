"""A job of two gloo ranks that prime a model, each on batches of its own."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from priming_cases import ALL, Tasks, Two, points, prime, primed
from subnetune import NumericError, Prime, Recipe, Scope
from subnetune.core.errors import LifeCycleError
from subnetune.prepare.priming.primer import Primer
from subnetune.score.fisher import Fisher
from subnetune.select.top import Top
from subnetune.update import HoldUnselected
from tiny import bits

PIECES: dict[str, Prime] = {
    "fomaml": prime(inner=ALL, weight_decay=0.1, clip=0.1),
    "learned-rates": prime(algorithm="maml", inner=ALL, inner_rates="learned"),
    "reptile": prime(algorithm="reptile"),
}


def tasks_of(rank: int, spoiled: bool = False) -> Tasks:
    """Five batches of either task; where `spoiled`, the third of rank 1 is not finite."""

    def made(seed: int) -> Any:
        found = [points(5, 1000 * rank + seed + i) for i in range(5)]
        if spoiled and rank == 1:
            found[2]["x"] = found[2]["x"] * float("nan")
        return found

    return {"a": lambda: made(10), "b": lambda: made(20)}


def primings(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, piece in PIECES.items():
        torch.manual_seed(rank)  # the ranks' own random states differ
        model, losses, norms = Two(), [], []
        with Primer(piece, primed(piece, model, tasks_of(rank))) as primer:
            while primer.index < piece.steps:
                losses.append([float(loss) for loss in primer.step()])
                norms.append(primer.norm)
            rates = primer.rates.log.detach().clone()
        found[name] = {"weights": bits(model), "losses": losses, "norms": norms, "rates": rates}
    return found


def trouble(rank: int) -> str:
    """What either rank is told where the loss of one alone is not finite."""
    model, piece = Two(), prime()
    try:
        piece(primed(piece, model, tasks_of(rank, spoiled=True)))
    except NumericError as error:
        return str(error)
    return "nothing"


def scored_apart(rank: int) -> str:
    """What either rank is told where the inner recipe scores entries on batches that the ranks do not share."""
    inner = Recipe(Scope(("*weight",)), selector=Top(Fisher(), keep=0.3), update=(HoldUnselected(),))
    piece = prime(inner=inner)
    try:
        piece(primed(piece, Two(), tasks_of(rank)))
    except LifeCycleError as error:
        return str(error)
    return "nothing"


def run(rank: int, folder: str) -> None:
    """What each process does; a check that fails leaves its traceback."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    findings: dict[str, Any] = {}
    try:
        findings = {"primings": primings(rank), "trouble": trouble(rank), "apart": scored_apart(rank)}
    except Exception:  # the other rank may wait for this one: tell, and end
        findings["failed"] = traceback.format_exc()
    torch.save(findings, Path(folder) / f"rank{rank}.pt")
    if "failed" in findings:
        raise SystemExit(f"rank {rank} failed:\n{findings['failed']}")
    dist.destroy_process_group()
