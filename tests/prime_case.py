"""A priming small enough to be killed: the random two-layer BERT of `tiny_run` on the embedded task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tiny_run import Child, make_model


def options(root: Path, **changed: Any) -> dict[str, Any]:
    """Return the options of a three-step priming for BitFit of the model in `root`, into its folder `primed`."""
    values: dict[str, Any] = {
        "model": str(root / "model"),
        "tasks": ["demo"],
        "for": "bitfit",
        "steps": 3,
        "inner_steps": 2,
        "task_batch": 2,
        "lr": 1e-3,
        "inner_lr": 0.1,
        "batch_size": 4,
        "max_train": 40,
        "max_length": 16,
        "threads": 1,
        "output": str(root / "primed"),
    }
    return values | changed


def make_prime_root(root: Path) -> Path:
    """Write the model into `root` and return it."""
    make_model(root / "model")
    return root


def run_prime(**values: Any) -> Any:
    """Prime in this process and return the result."""
    from subnetune.experiment.priming import PrimeConfig, prime

    return prime(PrimeConfig.from_values(values))


def _prime(values: dict[str, Any], before: str) -> None:
    exec(before, {"__name__": "before"})
    from subnetune.core.errors import SubnetuneError

    try:
        run_prime(**values)
    except SubnetuneError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def prime_child(values: dict[str, Any], before: str = "") -> Child:
    """Start the priming in a process of its own; `before` is Python code that runs there first."""
    return Child(_prime, values, before)
