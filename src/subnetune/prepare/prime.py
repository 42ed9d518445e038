"""Prime a model for the fine-tuning that it will get: meta-learning whose inner loop trains what that method trains.

The stage of Gheini et al. (Findings of ACL 2023, arXiv 2205.12453), between pretraining and parameter-efficient
fine-tuning. No code was released; what the abstract leaves open is ours, and docs/priming.md says what that is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from subnetune.core.errors import UsageError
from subnetune.core.recipe import Recipe, Scope, check_amount, check_choice
from subnetune.core.types import Setting
from subnetune.prepare.priming.algorithms import ALGORITHMS
from subnetune.prepare.priming.checks import check_prime
from subnetune.prepare.priming.primer import Primer

HEADS = ("shared", "fresh", "matched")
_WHOLE = ("steps", "task_batch", "inner_steps", "query")
_POSITIVE = ("lr", "inner_lr", "rates_lr", "pull")


@dataclass(frozen=True)
class Prime:
    """Take `steps` outer steps over the Tuning's `tasks` with these names; the weights that result are the anchor.

    inner: the recipe that fine-tuning will have. Its scope, masks, rates by group and adapter are what the inner loop
        has; adapters that the model lacks are there for the priming alone, drawn anew for every task.
    outer: what the outer loop may move; "*" is every tensor but those of adapters.
    algorithm: "fomaml", "maml" (through the inner steps), "reptile", "imaml" (pull: of its inner loop to the parent).
    head: "shared" by the tasks and moved by both loops; "fresh", drawn anew for every task and left as it was; or
        "matched", shared with the loss over the task's own `classes` (ids, a tuple for each task) alone.
    task_batch: tasks in an outer step. lr falls linearly to 0 where schedule is "linear".
    inner_steps, inner_lr: plain gradient steps on `support` batches in turn (None: one for each step), at rates that
        are "fixed" or "learned" (one a tensor, by Adam at rates_lr). query: batches that the outer loss is the mean of.
    dropout: whether dropout acts in either loop. clip: largest norm of the outer gradient; None: unlimited.
    """

    tasks: tuple[str, ...]
    inner: Recipe
    outer: Scope = Scope()  # noqa: RUF009 - a frozen value
    algorithm: str = "fomaml"
    head: str = "shared"
    classes: tuple[tuple[int, ...], ...] = ()
    steps: int = 500
    task_batch: int = 4
    lr: float = 2e-5
    schedule: str = "linear"
    weight_decay: float = 0.0
    clip: float | None = 1.0
    inner_steps: int = 5
    inner_lr: float = 0.01
    inner_rates: str = "fixed"
    rates_lr: float = 0.01
    support: int | None = None
    query: int = 1
    pull: float = 1.0
    dropout: bool = False
    needs: ClassVar[tuple[str, ...]] = ("tasks",)

    def __post_init__(self) -> None:
        for name in _WHOLE:
            value, least = getattr(self, name), 0 if name == "inner_steps" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UsageError(f"Prime: {name} must be a whole number >= {least}, got {value!r}")
        for name in (*_POSITIVE, "weight_decay"):
            check_amount("Prime", name, getattr(self, name))
        for name, choices in (("algorithm", (*ALGORITHMS,)), ("head", HEADS), ("schedule", ("linear", "constant"))):
            check_choice("Prime", name, getattr(self, name), choices)
        check_choice("Prime", "inner_rates", self.inner_rates, ("fixed", "learned"))
        check_prime(self)

    def __call__(self, setting: Setting) -> None:
        """Prime the model in place. Raises UsageError and DataError before the first step, NumericError in one."""
        with Primer(self, setting) as primer:
            while primer.index < self.steps:
                primer.step()
