"""The loss around a solution: along the line from the base, along a random direction, and in the plane of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from subnetune.core.errors import NumericError
from subnetune.experiment.alignment import LOST
from subnetune.experiment.analysis.directions import Landscape
from subnetune.experiment.data import Collator, Encoded
from subnetune.experiment.evaluate import predict_logits
from subnetune.experiment.fit import Fit
from subnetune.experiment.words import predict_words, tag_words
from subnetune.tasks.metrics import compute_metrics
from subnetune.tasks.types import Split, Task

ALONG = (-0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)  # 0 is the base, 1 the solution
# A step half as long as the weights leaves little of what an encoder learned: what there is to see lies nearer.
ACROSS = (-1.0, -0.5, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
PLANE_X = (-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25)  # points of both lines: they are not computed twice
PLANE_Y = (-0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3)


class Point(NamedTuple):
    """The loss and the task's headline metric at one point; None where the model's outputs are not finite there."""

    loss: float | None
    metric: float | None


@dataclass
class Examples:
    """Labelled examples of a task, tokenised, and what was found on them by point."""

    task: Task
    split: Split
    encoded: Encoded
    collate: Collator
    batch_size: int

    def __post_init__(self) -> None:
        self._found: dict[tuple[float, float], Point] = {}

    def at(self, model: nn.Module, landscape: Landscape, along: float, across: float) -> Point:
        """Return what the model scores at a point, which is computed once."""
        if (along, across) not in self._found:
            landscape.go(along, across)
            self._found[along, across] = self.measure(model)
        return self._found[along, across]

    def measure(self, model: nn.Module) -> Point:
        """Return what the model scores as it is."""
        assert self.split.labels is not None
        if self.task.kind == "tokens":
            return self._measure_words(model)
        assert self.encoded.labels is not None
        logits = predict_logits(model, self.encoded, self.collate, self.batch_size)
        loss = float(mean_loss(self.task, logits, self.encoded.labels))
        try:
            metric = next(iter(compute_metrics(self.task, logits.numpy(), self.split.labels).values()))
        except NumericError:
            metric = None
        return Point(loss if math.isfinite(loss) else None, metric)

    def _measure_words(self, model: nn.Module) -> Point:
        tags, places = self.split.tags, self.encoded.places
        assert tags is not None
        assert places is not None
        logits = predict_words(model, self.encoded, self.collate, self.batch_size)
        seen = [tag for row, at in zip(tags, places, strict=True) for tag, i in zip(row, at, strict=True) if i != LOST]
        loss = float(mean_loss(self.task, torch.cat(logits), torch.tensor(seen)))
        try:
            said = tag_words(logits, self.encoded, Fit(self.task.labels, self.task))
            metric = next(iter(compute_metrics(self.task, said, tags).values()))
        except NumericError:
            metric = None
        return Point(loss if math.isfinite(loss) else None, metric)


def mean_loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, or squared error for scores, of logits (examples, outputs)."""
    if task.kind == "regression":
        return torch.nn.functional.mse_loss(logits.squeeze(-1), labels)
    return torch.nn.functional.cross_entropy(logits, labels)


def surface(
    model: nn.Module,
    base: Mapping[str, Tensor],
    new: tuple[str, ...],
    seed: int,
    examples: Examples,
    plane: Examples | None,
) -> dict[str, Any]:
    """Return what `surface.json` holds; the model is at the solution, and is so again, bit for bit.

    `{"examples", "directions": [{"name", "alphas", "loss", "metric", "metric_name"}], "plane": {"x", "y", "loss",
    "examples"}, "why": {}}`. "base to tuned" goes from the base (0) through the solution (1), with the head as it is at
    the solution; "random, filter-normalised" from the solution (0). The plane has the first along x, the second along
    y, and its loss row by row: one row per y. `base`, `new` and `seed` as in `Landscape`. The plane is measured on
    examples of its own (`examples` themselves will do); it is null without them, or where nothing but the head moved;
    `why` says which.
    """
    name = next(iter(examples.task.metrics))
    why: dict[str, str] = {}
    directions = []
    found: dict[str, Any] | None = None
    with Landscape(model, base, new, seed) as landscape:
        lines = {"base to tuned": [(a, 0.0) for a in ALONG], "random, filter-normalised": [(1.0, a) for a in ACROSS]}
        for line, alphas in (("base to tuned", ALONG), ("random, filter-normalised", ACROSS)):
            if line == "base to tuned" and not landscape.moved:
                why[line] = why["plane"] = "nothing but the head moved"
                continue
            points = [examples.at(model, landscape, *place) for place in lines[line]]
            values = {"loss": [p.loss for p in points], "metric": [p.metric for p in points], "metric_name": name}
            directions.append({"name": line, "alphas": list(alphas), **values})
        if plane is not None and landscape.moved:
            loss = [[plane.at(model, landscape, x, y).loss for x in PLANE_X] for y in PLANE_Y]
            found = {"x": list(PLANE_X), "y": list(PLANE_Y), "loss": loss, "examples": len(plane.encoded)}
    if plane is None:
        why["plane"] = "too few examples can be afforded at so many points"
    return {"examples": len(examples.encoded), "directions": directions, "plane": found, "why": why}
