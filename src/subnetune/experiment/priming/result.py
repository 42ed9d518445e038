"""What a priming came to, as a value that `metrics.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from subnetune.core.errors import CheckpointError


@dataclass(frozen=True)
class PrimeResult:
    """The result of a priming.

    `path` is the primed model's folder. `loss` and `support_loss` are the last outer step's, on query batches after the
    inner loop and on the first support batches before it. `gradient_evaluations`: backward passes through the loss of
    one batch. Of the model's `total` entries the outer loop moved `trained`; the tensors that the inner loop moves have
    `adapted`, adapters included. `rates`: learned inner rates by tensor, or {}. `seconds`: wall time over
    all parts of a resumed priming.
    """

    path: Path
    steps: int
    loss: float
    support_loss: float
    gradient_evaluations: int
    trained: int
    adapted: int
    total: int
    seconds: float
    rates: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `metrics.json`, without the path (a folder may be moved)."""
        values = asdict(self)
        del values["path"]
        return {"status": "finished", **values}

    @staticmethod
    def from_json(values: Mapping[str, Any], path: Path) -> PrimeResult:
        """Return the result that `to_json` wrote. Raises CheckpointError where fields are missing or unknown."""
        try:
            return PrimeResult(path, **{key: value for key, value in values.items() if key != "status"})
        except TypeError as error:
            raise CheckpointError(f"{path / 'metrics.json'}: not the result of a priming ({error})") from error
