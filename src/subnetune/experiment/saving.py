"""What a checkpoint of a run holds, and how a run takes it up again: weights, tuning, optimizer, random states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from subnetune.core.errors import CheckpointError
from subnetune.core.fingerprint import named_parameters
from subnetune.engine.binding import persistent_buffers
from subnetune.engine.choice import Choice
from subnetune.experiment.checkpoint import Checkpoint, abandoned, committed, discard, load_checkpoint, part
from subnetune.experiment.environment import random_state, restore_random_state
from subnetune.experiment.progress import Reporter
from subnetune.experiment.result import Evaluation
from subnetune.experiment.rundir import RunDir
from subnetune.tuning import Tuning


@dataclass
class Progress:
    """Where a run is, beside weights and optimizer: the evaluations by step, the best one, the seconds it took."""

    evaluations: dict[int, Evaluation] = field(default_factory=dict)
    best_step: int = -1
    best_value: float = float("-inf")
    best: dict[str, Tensor] = field(default_factory=dict)  # the weights at best_step, on the CPU
    seconds: float = 0.0

    def note(self, step: int, evaluation: Evaluation, tuning: Tuning, *, keep_best: bool) -> None:
        """Keep the evaluation, and with `keep_best` the weights if its headline is above all before (ties: first)."""
        self.evaluations[step] = evaluation
        value = next(iter(next(iter(evaluation.values())).values()))
        if keep_best and value > self.best_value:
            self.best_step, self.best_value = step, value
            self.best = {n: t.detach().cpu().clone() for n, t in changing_tensors(tuning).items()}


def changing_tensors(tuning: Tuning) -> dict[str, Tensor]:
    """Return the live tensors that make the model differ from its base: what trains, what is new, buffers."""
    parameters = named_parameters(tuning.model)
    names = {*tuning.base_names(), *tuning.new}
    kept: dict[str, Tensor] = {name: p for name, p in parameters.items() if name in names or p.requires_grad}
    return kept | persistent_buffers(tuning.model)


def put_weights(tuning: Tuning, weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy `weights` into the model, all or none. Raises CheckpointError where names, shapes or dtypes do not agree."""
    put_tensors(changing_tensors(tuning), weights, source)


def put_tensors(targets: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path) -> None:
    """Copy the tensors of the file `source` into live ones of the same names, all or none.

    Raises CheckpointError where names, shapes or dtypes do not agree.
    """
    missing, unknown = sorted({*targets} - {*weights}), sorted({*weights} - {*targets})
    if missing or unknown:
        problem = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which this run does not train"
        raise CheckpointError(f"{source}: {problem} ({len(missing)} missing, {len(unknown)} unknown tensors)")
    for name, tensor in weights.items():
        if tensor.shape != targets[name].shape or tensor.dtype != targets[name].dtype:
            raise CheckpointError(
                f"{source}: {name!r} is {tuple(tensor.shape)} {tensor.dtype}, "
                f"wanted {tuple(targets[name].shape)} {targets[name].dtype}"
            )
    with torch.no_grad():
        for name, tensor in weights.items():
            targets[name].copy_(tensor)


def newest_checkpoint(run: RunDir, reporter: Reporter, *, sweep: bool) -> tuple[Path, Checkpoint] | None:
    """Return the newest committed checkpoint, read and checked; say what was skipped. None where there is none.

    With `sweep` (one process only) what killed saves left behind is removed.
    """
    left = abandoned(run.checkpoints) if sweep else []
    for path in left:
        reporter.say(f"{path} was not finished (no COMMIT marker): skipped and removed")
    discard(run.checkpoints, left)
    found = committed(run.checkpoints)
    if not found:
        return None
    return found[-1], load_checkpoint(found[-1])


def pack(tuning: Tuning, optimizer: Optimizer, progress: Progress, world: int) -> Checkpoint:
    """Return the whole state of the run after the last optimizer step. Every rank must call it."""
    states = [random_state()]
    if world > 1:
        from accelerate.utils import gather_object

        states = gather_object(states)
    tensors: dict[str, Mapping[str, Tensor]] = {"weights": changing_tensors(tuning)}
    if progress.best:
        tensors["best"] = progress.best
    plain = {
        "evaluations": progress.evaluations,
        "best_step": progress.best_step,
        "best_value": progress.best_value,
        "seconds": progress.seconds,
        "world": world,
    }
    return Checkpoint(
        tuning.index,
        tensors,
        {
            "optimizer": optimizer.state_dict(),
            "tuning": tuning.state_dict(),
            "random": {"ranks": states},
            "progress": plain,
        },
    )


def unpack_model(tuning: Tuning, checkpoint: Checkpoint, path: Path) -> Progress:
    """Put tuning state and weights back, before the optimizer is built; return where the run was."""
    tuning.load_state_dict(part(checkpoint, "tuning", path))
    put_weights(tuning, part(checkpoint, "weights", path), path / "weights.safetensors")
    plain = part(checkpoint, "progress", path)
    if tuning.index != checkpoint.step:
        raise CheckpointError(f"{path}: its tuning state is of step {tuning.index}, not {checkpoint.step}")
    best: dict[str, Any] = dict(part(checkpoint, "best", path)) if plain["best_step"] >= 0 else {}
    return Progress(plain["evaluations"], plain["best_step"], plain["best_value"], best, plain["seconds"])


def check_engine(choice: Choice, checkpoint: Checkpoint, path: Path) -> None:
    """Raise CheckpointError where the checkpoint's optimizer state is another engine's than the one chosen now."""
    about = part(checkpoint, "optimizer", path).get("about")
    saved = about.get("engine") if isinstance(about, Mapping) else "reference"
    if saved != choice.name:
        raise CheckpointError(
            f"{path} was saved by the {saved} engine, and this process would take the {choice}. A run goes on with the "
            f"engine that it began with: resume with --engine {saved}"
        )


def unpack_optimizer(optimizer: Optimizer, checkpoint: Checkpoint, path: Path, rank: int, world: int) -> None:
    """Put the optimizer's state and this rank's random state back, right before the next step.

    Raises CheckpointError where the checkpoint was made by another number of processes or another optimizer.
    """
    before = part(checkpoint, "progress", path)["world"]
    if before != world:
        raise CheckpointError(f"{path} was made by {before} processes, this run has {world}; start as many")
    try:
        optimizer.load_state_dict(dict(part(checkpoint, "optimizer", path)))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path / 'optimizer.pt'}: not the state of this run's optimizer ({error})") from error
    restore_random_state(part(checkpoint, "random", path)["ranks"][rank])
