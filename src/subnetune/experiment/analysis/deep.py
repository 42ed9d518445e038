"""The part of the analysis that runs the model: representations, and the loss around the solution.

Its cost is bounded in tokens, so that it stays small beside training for every model and task, and is the same on
every machine. The examples are a fixed draw from the first evaluation split: runs of one task are compared on the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from subnetune.delta import Delta
from subnetune.experiment.analysis.representations import compare_states, hidden_states
from subnetune.experiment.analysis.solution import solution
from subnetune.experiment.analysis.surface import ACROSS, ALONG, PLANE_X, PLANE_Y, Examples, surface
from subnetune.experiment.config import RunConfig
from subnetune.experiment.data import Collator, encode
from subnetune.experiment.rundir import RunDir, write_json
from subnetune.experiment.session import load_data, load_tokenizer, pick_device
from subnetune.tasks.types import Split, Task

CKA_EXAMPLES, CKA_TOKENS = 256, 3072  # at most, for each of the two models
SURFACE_EXAMPLES, LEAST_EXAMPLES = 128, 8
LINE_TOKENS = 20480  # at most, over all points of the two lines; those of the plane too where it has none
PLANE_TOKENS = 8192  # at most, over all points of the plane
_LINE_POINTS = len(ALONG) + len(ACROSS) - 1
_PLANE_POINTS = len(PLANE_X) * len(PLANE_Y)


def analyse_deeply(run: RunDir, config: RunConfig, delta: Delta, model: nn.Module, folder: Path) -> None:
    """Write `cka.json` and `surface.json` into `folder`. `model` is the base, in eval mode, and is so again."""
    device = pick_device()
    model.to(device)
    classes = tuple((delta.info.labels or {}).values())
    data = load_data(config, ("dev",) if config.holdout is None else ("train", "dev"), classes)
    split = next(iter(data.evaluation.values()))
    tokenizer = load_tokenizer(config, run.tokenizer)
    some = _Drawn(data.task, split, tokenizer, config, Collator(tokenizer, device))
    seen = some.examples(CKA_EXAMPLES, CKA_TOKENS)
    base_states = hidden_states(model, seen.encoded, seen.collate, seen.batch_size)
    with solution(delta, model) as at:
        tuned_states = hidden_states(model, seen.encoded, seen.collate, seen.batch_size)
        write_json(folder / "cka.json", compare_states(base_states, tuned_states))
        del base_states, tuned_states
        if at.why is not None:
            write_json(
                folder / "surface.json", {"examples": 0, "directions": [], "plane": None, "why": {"all": at.why}}
            )
            return
        lines, plane = some.around()
        write_json(folder / "surface.json", surface(model, at.base, tuple(delta.new), config.seed, lines, plane))


class _Drawn:
    """Draws examples from a split, the same for every run of a task."""

    def __init__(self, task: Task, split: Split, tokenizer: Any, config: RunConfig, collate: Collator) -> None:
        self._task, self._split, self._tokenizer, self._config, self._collate = task, split, tokenizer, config, collate
        pool = encode(split.take(CKA_EXAMPLES, 0), task, tokenizer, config.max_length)
        self.tokens = sum(len(example["input_ids"]) for example in pool.examples) / len(pool)  # the mean

    def examples(self, most: int, tokens: int) -> Examples:
        """Return `most` examples, or as many as are about `tokens` long together, but not fewer than a few."""
        return self._take(min(most, max(LEAST_EXAMPLES, int(tokens / self.tokens))))

    def around(self) -> tuple[Examples, Examples | None]:
        """Return examples for the lines, and for the plane: the same ones where they can be afforded at so many points,
        else fewer, or None where too few can."""
        fewer = int(PLANE_TOKENS / self.tokens / _PLANE_POINTS)
        tokens = LINE_TOKENS + (PLANE_TOKENS if fewer < LEAST_EXAMPLES else 0)
        lines = self.examples(SURFACE_EXAMPLES, tokens // _LINE_POINTS)
        own = _PLANE_POINTS - len(PLANE_X) - len(PLANE_Y) + 1  # the other points lie on the lines
        if len(lines.encoded) * self.tokens * own <= PLANE_TOKENS:
            return lines, lines
        return lines, None if fewer < LEAST_EXAMPLES else self._take(fewer)

    def _take(self, count: int) -> Examples:
        split = self._split.take(count, 0)
        encoded = encode(split, self._task, self._tokenizer, self._config.max_length)
        size = min(self._config.eval_batch_size, max(4, -(-len(encoded) // 6)))  # few, but of one length: no padding
        return Examples(self._task, split, encoded, self._collate, size)
