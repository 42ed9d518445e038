"""Prime a model on tasks for the fine-tuning that it will get, and leave a plain checkpoint: `subnetune prime`."""

from __future__ import annotations

from subnetune.experiment.priming.config import PrimeConfig
from subnetune.experiment.priming.result import PrimeResult

__all__ = ["PrimeConfig", "PrimeResult", "prime"]


def prime(config: PrimeConfig) -> PrimeResult:
    """Prime as `config` says and leave a checkpoint in its `output`; see `subnetune.experiment.priming.loop.prime`."""
    from subnetune.experiment.priming.loop import prime as run  # torch, which reading options does not need

    return run(config)
