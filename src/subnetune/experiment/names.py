"""What a run is called: its task, its method, and the options that differ from their defaults."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subnetune.experiment.config import RunConfig

_NOT_IN_NAMES = (
    "data_dir",
    "output",
    "resume",
    "delta",
    "eval_batch_size",
    "threads",
    "task",
    "method",
    "save_steps",
    "dev_file",
    "track",
)


def run_name(config: RunConfig) -> str:
    """Name a run by its task, its method and what differs from the defaults: `rte-child-tuning-d-keep0.3-seed7`."""
    parts = [config.task or (config.train_file.stem if config.train_file else "own"), config.method]
    for name, value in config.model_dump(mode="json", exclude_defaults=True, exclude=set(_NOT_IN_NAMES)).items():
        shown = ",".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = ",".join(f"{key}={value[key]}" for key in sorted(value))
        shown = Path(str(shown)).name if name in ("model", "train_file", "peft_config") else shown
        parts.append(f"{name.rstrip('_').replace('_', '')}{shown}")
    return "".join(c if c.isalnum() or c in "-_.,=" else "_" for c in "-".join(parts))[:150]
