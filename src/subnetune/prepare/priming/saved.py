"""What a saved priming says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subnetune.core.errors import CheckpointError

if TYPE_CHECKING:
    from subnetune.prepare.prime import Prime


def identity(prime: Prime, seed: int) -> dict[str, Any]:
    """Return what a state must have in common with the priming that goes on from it."""
    return {"recipe": repr(prime), "seed": seed}


def check_state(state: Mapping[str, Any], prime: Prime, seed: int) -> None:
    """Raise CheckpointError for a state that lacks a key, or is of another recipe or seed."""
    missing = [key for key in ("index", "selector", "optimizer", "log_rates") if key not in state]
    if missing:
        raise CheckpointError(f"this is no state of a priming: it has no {missing[0]!r}")
    for key, own in identity(prime, seed).items():
        if state.get(key) != own:
            raise CheckpointError(f"this priming state is of {key} {state.get(key)}, not of {own}")
