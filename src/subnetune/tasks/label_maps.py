"""What the answers of a model of natural language inference mean as the classes of other tasks.

The published maps: SciTail and QQP as in Child-Tuning's out-of-domain test (arXiv 2109.05687; told by HyPe, ACL 2023,
appendix C), RTE and SciTail as in the code of DPS (arXiv 2211.01642), HANS as its authors read three-way models
(arXiv 1902.01007). Everywhere `entailment` means the one class and all other answers the other one.

Differs from the published map in: for QQP the papers turn the gold label, "not duplicate", into contradiction, and do
not say what an answer of neutral counts as. Here it counts as contradiction does, as it does in SciTail and RTE.
"""

from __future__ import annotations

from typing import NamedTuple

from subnetune.tasks.types import Task

# The names that inference tasks have for what follows and for what does not.
ENTAILED = frozenset(("entailment", "entails"))
NOT_ENTAILED = frozenset(("neutral", "contradiction", "not_entailment", "non-entailment"))


class Reading(NamedTuple):
    """The class of a task that `entailment` is read as, and the one that every other answer is read as."""

    entailed: str
    otherwise: str


# Tasks that ask for something else than inference, and can be read as inference all the same.
OTHER_QUESTIONS: dict[str, Reading] = {
    "qqp": Reading(entailed="duplicate", otherwise="not_duplicate"),
}


def inference_reading(task: Task) -> Reading | None:
    """Return how answers of inference read as the two classes of `task`, or None where no map is published."""
    return Reading(*task.labels) if task.entailment_or_not else OTHER_QUESTIONS.get(task.name)


def is_inference(classes: tuple[str, ...]) -> bool:
    """Whether these are a model's classes of inference, two or three, entailment first."""
    return len(classes) in (2, 3) and classes[0] in ENTAILED and set(classes[1:]) <= NOT_ENTAILED
