"""What a checkpoint of a priming holds, and how it is taken up again: weights, the outer loop's state, the losses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from subnetune.core.errors import CheckpointError
from subnetune.engine.binding import persistent_buffers
from subnetune.experiment.checkpoint import Checkpoint, part
from subnetune.experiment.saving import put_tensors
from subnetune.prepare.priming.primer import Primer


@dataclass
class Progress:
    """Where a priming is, beside weights and optimizer: the last step's losses, and the seconds it took."""

    loss: float = float("nan")
    support_loss: float = float("nan")
    seconds: float = 0.0


def moving(primer: Primer) -> dict[str, Tensor]:
    """Return the live tensors that priming changes: what the outer loop moves, and buffers."""
    learner = primer.learner
    return learner.tensors(learner.parent) | persistent_buffers(learner.model)


def pack(primer: Primer, progress: Progress) -> Checkpoint:
    """Return the whole state of the priming after the last outer step."""
    states = {"primer": primer.state_dict(), "progress": asdict(progress)}
    return Checkpoint(primer.index, {"weights": moving(primer)}, states)


def unpack(primer: Primer, checkpoint: Checkpoint, path: Path) -> Progress:
    """Put weights and state back into a primer that was just made from the base; return where it was.

    Raises CheckpointError where the checkpoint is another priming's.
    """
    put_tensors(moving(primer), part(checkpoint, "weights", path), path / "weights.safetensors")
    primer.load_state_dict(part(checkpoint, "primer", path))
    if primer.index != checkpoint.step:
        raise CheckpointError(f"{path}: its state is of step {primer.index}, not {checkpoint.step}")
    return Progress(**part(checkpoint, "progress", path))
