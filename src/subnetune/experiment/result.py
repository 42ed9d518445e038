"""What a run came to, as a value that `metrics.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from subnetune.core.errors import CheckpointError

Evaluation = dict[str, dict[str, float]]


class Elsewhere(NamedTuple):
    """What a tuned model does on other tasks: its scores there, the sets that were left out with the reason, and what
    always the same answer scores (`tasks.majority`)."""

    scores: Evaluation
    skipped: dict[str, str]
    majority: Evaluation


def no_better(scores: Mapping[str, float], levels: Mapping[str, float], metric: str) -> bool | None:
    """Return whether scores are by none of the metrics above those of always the same answer, `levels`.

    By none, since one alone may favour that: always `equivalent` has an F1 of 0.81 on MRPC. Accuracies per kind of
    example (HANS: per heuristic) do not count: among several some kind is always above. None where the level of the
    headline `metric` is not known.
    """
    if metric not in levels or metric not in scores:
        return None
    whole = [name for name in levels if name in scores and not name.startswith(f"{metric}_")]
    return all(scores[name] <= levels[name] + 1e-9 for name in whole)


@dataclass(frozen=True)
class RunResult:
    """The result of a training or evaluation run.

    `metric` and `value` are the headline: the first metric of the first evaluation split, whose metrics are `metrics`;
    `evaluation` has all splits. `path` is the run directory (or the delta that was evaluated), `trained` of `total`
    entries trained, `seconds` is wall time over all parts of a resumed run, `finished` is False only while it lasts.
    `majority` has the shape of `evaluation`: what always the same answer scores ({} where that is not known).
    """

    metric: str
    value: float
    metrics: dict[str, float]
    path: Path
    trained: int
    total: int
    seconds: float
    delta_bytes: int
    evaluation: Evaluation
    finished: bool = True
    majority: Evaluation = field(default_factory=dict)

    @property
    def at_majority(self) -> bool | None:
        """Whether the first split's scores are by no metric above always the same answer's (None: not known)."""
        levels = self.majority.get(next(iter(self.evaluation), ""), {})
        return no_better(self.metrics, levels, self.metric)

    @staticmethod
    def of(
        evaluation: Evaluation,
        *,
        path: Path,
        trained: int,
        total: int,
        seconds: float,
        delta_bytes: int,
        majority: Evaluation | None = None,
    ) -> RunResult:
        """Return the result whose headline is the first metric of the first split of `evaluation`."""
        metrics = next(iter(evaluation.values()))
        metric, value = next(iter(metrics.items()))
        return RunResult(
            metric, value, metrics, path, trained, total, seconds, delta_bytes, evaluation, majority=majority or {}
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of `metrics.json`, without the path (a run directory may be moved)."""
        values = asdict(self)
        del values["path"], values["finished"]
        return {"status": "finished", **values}

    @staticmethod
    def from_json(values: Mapping[str, Any], path: Path) -> RunResult:
        """Return the result that `to_json` wrote. Raises CheckpointError where fields are missing or unknown."""
        fields = {key: value for key, value in values.items() if key not in ("status", "step", "steps")}
        try:
            return RunResult(**fields, path=path)
        except TypeError as error:
            raise CheckpointError(f"{path / 'metrics.json'}: not the result of a run ({error})") from error
