"""A priming as a frozen value: the fields are the flags of `subnetune prime` and the names of a file's options.

What the field has in common with a training run means the same and has the same limits. The defaults of the two loops
are those of `Prime`; the paper's could not be found.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Literal

from pydantic import field_validator, model_validator

from subnetune.experiment.config import RunConfig
from subnetune.experiment.fields import File, Names, Options, Pieces, Trackers, Value, option

FIRST_ORDER = ("fomaml", "reptile")


def _same(name: str, meaning: str = "") -> Any:
    """Return the field of a training run, under another help text where `meaning` is one."""
    field = deepcopy(RunConfig.model_fields[name])
    field.description = meaning or field.description
    return field


class PrimeConfig(Options):
    """What a priming does. See `from_values` for the errors."""

    model: str = _same("model")
    tasks: Names = option((), "The tasks to prime on, separated by commas; of one kind.", "names of tasks")
    data_dir: File | None = _same("data_dir", "The folder that holds the tasks' official downloads.")
    max_length: int = _same("max_length")
    max_train: int | None = _same("max_train", "Take so many examples of each task, drawn by --train-seed.")
    train_seed: int = _same("train_seed", "Draws the examples of --max-train.")

    for_: str | None = option(
        None,
        "The method that the model is primed for: what it trains, the inner loop trains.",
        "a method's name",
        alias="for",
        min_length=1,
    )
    with_: Pieces = _same("with_")
    keep: float | None = _same("keep")
    peft_config: File | None = _same("peft_config", "With --for lora: an adapter_config.json of PEFT, any type.")
    options: dict[str, Value] = _same("options")

    algorithm: Literal["fomaml", "maml", "reptile", "imaml"] = option(
        "fomaml", "The outer gradient: fomaml, maml, reptile or imaml.", "fomaml, maml, reptile or imaml"
    )
    head: Literal["shared", "fresh", "matched"] = option(
        "shared",
        "One head for all tasks; fresh, a new one for every task, not kept; or matched, over each task's own labels.",
        "shared, fresh or matched",
    )
    outer: Names = option(
        ("*",), "What the outer loop may move: globs or roles, separated by commas.", "globs or roles", min_length=1
    )
    freeze: Names = option((), "What the outer loop leaves alone, of that.", "globs or roles")
    steps: int = option(500, "Outer steps.", "an integer of at least 1", ge=1)
    task_batch: int = option(4, "Tasks per outer step.", "an integer of at least 1", ge=1)
    lr: float = option(2e-5, "The outer learning rate (AdamW).", "a number above 0 and at most 10", gt=0, le=10)
    schedule: Literal["linear", "constant"] = option(
        "linear", "Whether the outer rate falls to 0 or stays: linear or constant.", "linear or constant"
    )
    weight_decay: float = option(0.0, "Decoupled weight decay of the outer loop.", "a number in [0, 1]", ge=0, le=1)
    clip: float = option(
        1.0, "Largest norm of the outer gradient; 0 turns clipping off.", "a number of at least 0", ge=0
    )
    query: int = option(1, "Batches that an outer loss is the mean of.", "an integer of at least 1", ge=1)

    inner_steps: int = option(
        5, "Gradient steps of the inner loop; 0 (fomaml) is joint training.", "an integer of at least 0", ge=0
    )
    inner_lr: float = option(0.01, "The inner rate (plain gradient steps).", "a number above 0", gt=0)
    inner_rates: Literal["fixed", "learned"] = option(
        "fixed", "Inner rates as given, or one per tensor, learned: fixed or learned.", "fixed or learned"
    )
    rates_lr: float = option(0.01, "The rate at which inner rates are learned (Adam).", "a number above 0", gt=0)
    support: int | None = option(
        None, "Batches that inner steps take in turn. Default: one for each step.", "an integer of at least 1", ge=1
    )
    pull: float = option(1.0, "imaml: how strongly inner steps are pulled to the start.", "a number above 0", gt=0)
    dropout: bool = option(False, "Leave dropout on in both loops.", "true or false")

    batch_size: int = option(16, "Examples per batch.", "an integer of at least 1", ge=1)
    bf16: bool = _same("bf16")
    checkpointing: bool = option(
        False, "Recompute layers in the backward pass (gradient checkpointing): less memory.", "true or false"
    )
    seed: int = _same("seed", "Head, adapters, episodes, dropout and masks.")
    output: File | None = _same("output", "The folder that becomes the primed model.")
    resume: bool = _same("resume")
    save_steps: int | None = _same("save_steps", "Write a checkpoint every so many outer steps.")
    threads: int | None = _same("threads")
    track: Trackers = _same("track")

    @field_validator("tasks", "outer", "freeze")
    @classmethod
    def _each_is_a_name(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name for name in value):
            raise ValueError("an empty name stands there")
        return value

    @model_validator(mode="after")
    def _options_go_together(self) -> PrimeConfig:
        if self.algorithm not in FIRST_ORDER:
            for name, why in (("bf16", "the precision of float32"), ("checkpointing", "the graph that it gives up")):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} is for first-order algorithms ({', '.join(FIRST_ORDER)}): {self.algorithm} "
                        f"differentiates twice and needs {why}; leave out --{name} or take --algorithm fomaml"
                    )
        if self.pull != 1.0 and self.algorithm != "imaml":
            raise ValueError(f"pull belongs to algorithm imaml, and this is {self.algorithm}; leave it out")
        if self.rates_lr != 0.01 and self.inner_rates != "learned":
            raise ValueError("rates_lr belongs to inner_rates learned, and they are fixed; leave it out")
        return self

    def as_run(self, task: str | None = None) -> RunConfig:
        """Return the training run that has this priming's model, method and examples (of `task`)."""
        names = ("model", "data_dir", "max_length", "max_train", "train_seed", "with_", "keep", "peft_config")
        values = {name: getattr(self, name) for name in (*names, "options", "seed", "batch_size")}
        return RunConfig.model_validate({**values, "task": task, "method": self.for_})
