"""One run as a frozen value: every option with its meaning and its allowed range, checked before anything is loaded.

The fields are the command line's flags and a configuration file's names (`with_` is written `with`). An option left
unset (None) is filled by `resolve` from the method's card, so what a run did is in its `config.yaml`, whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator, model_validator

from subnetune.core.errors import UsageError
from subnetune.core.schedule_names import SCHEDULES, Schedule
from subnetune.experiment.fields import File, Names, Options, Pieces, Trackers, Value, option
from subnetune.experiment.names import run_name

if TYPE_CHECKING:
    from subnetune.core.recipe import Recipe


class RunConfig(Options):
    """What a run does. See `from_values` for the errors."""

    model: str = option(
        "minilm", "`minilm` (the packaged encoder), a folder, or a Hub name.", "a name or folder", min_length=1
    )
    task: str | None = option(
        None, "A task by name, such as `rte`; or give --train-file.", "a task's name", min_length=1
    )
    data_dir: File | None = option(None, "The folder that holds the task's official download.", "a folder")
    train_file: File | None = option(
        None, "Own examples to train on: CSV, TSV, JSONL, parquet; tagged words: .conll, .iob2, .txt.", "a file"
    )
    dev_file: File | None = option(None, "Own examples to evaluate on.", "a file")
    text: Names | None = option(
        None,
        "Own files: the text column, or two separated by a comma.",
        "one or two columns",
        min_length=1,
        max_length=2,
    )
    label: str | None = option(None, "Own files: the label column.", "a column's name", min_length=1)
    regression: bool = option(False, "Own files: labels are numbers to predict, not classes.", "true or false")

    method: str = option("full", "A method by name; `subnetune methods` lists them.", "a method's name", min_length=1)
    with_: Pieces = option(
        (),
        "Add a piece to the method: NAME or NAME:OPTION=VALUE,OPTION=VALUE, such as l2-sp:weight=0.01; repeatable.",
        "names of pieces, with options such as l2-sp:weight=0.01",
        alias="with",
    )
    keep: float | None = option(None, "The fraction of entries that trains.", "a number in (0, 1]", gt=0, le=1)
    cycle: float | None = option(None, "A stage cycle's share of all steps.", "a number in (0, 1]", gt=0, le=1)
    peft_config: File | None = option(None, "With --method lora: an adapter_config.json of PEFT, any type.", "a file")
    options: dict[str, Value] = option({}, "Any other option of the method.", "names and values")

    lr: float | None = option(None, "The peak learning rate.", "a number above 0 and at most 10", gt=0, le=10)
    epochs: int | None = option(None, "Passes over the training examples.", "an integer of at least 1", ge=1)
    batch_size: int | None = option(None, "Examples per forward pass.", "an integer of at least 1", ge=1)
    eval_batch_size: int = option(64, "Examples per forward pass when evaluating.", "an integer of at least 1", ge=1)
    max_length: int = option(
        128, "Tokens per example; longer ones are cut.", "an integer from 4 to 1000000", ge=4, le=10**6
    )
    weight_decay: float | None = option(None, "Decoupled weight decay.", "a number in [0, 1]", ge=0, le=1)
    schedule: Schedule | None = option(
        None, "How the learning rate goes after the warmup.", " or ".join((", ".join(SCHEDULES[:-1]), SCHEDULES[-1]))
    )
    warmup: int | float | None = option(
        None,
        "Warmup: steps, or with a decimal point a share of all steps.",
        "steps from 0, or a share in [0.0, 1.0)",
        ge=0,
    )
    accumulate: int = option(1, "Batches per optimizer step.", "an integer of at least 1", ge=1)
    clip: float | None = option(
        None, "Largest norm of what trains; 0 turns clipping off.", "a number of at least 0", ge=0
    )
    bf16: bool = option(False, "Compute in bfloat16 where the device has it.", "true or false")
    engine: Literal["auto", "reference", "packed", "fused"] = option(
        "auto",
        "What takes the optimizer's steps: auto, reference, packed or fused.",
        "auto, reference, packed or fused",
    )
    gradients: Literal["dense", "lean", "selected"] = option(
        "dense", "What is kept of gradients: dense, lean or selected.", "dense, lean or selected"
    )
    max_steps: int | None = option(None, "Stop after so many optimizer steps.", "an integer of at least 1", ge=1)
    max_train: int | None = option(
        None, "Train on so many examples, drawn by --train-seed.", "an integer of at least 1", ge=1
    )
    max_eval: int | None = option(
        None, "Evaluate on the first so many examples; of a holdout on drawn ones.", "an integer of at least 1", ge=1
    )
    holdout: float | None = option(
        None, "Evaluate on this share of train, held out, instead of dev.", "a number in (0, 1)", gt=0, lt=1
    )
    train_seed: int = option(
        0, "Draws the examples of --max-train and --holdout.", "an integer from 0 to 2**32 - 1", ge=0, lt=2**32
    )
    seed: int = option(42, "Head, order, dropout and masks.", "an integer from 0 to 2**32 - 1", ge=0, lt=2**32)
    policy: Literal["last", "best"] = option(
        "last", "Which weights to keep: the last, or the best on dev.", "last or best"
    )
    eval_at: Literal["epoch", "end"] = option(
        "epoch", "Evaluate after every epoch, or at the end alone.", "epoch or end"
    )
    threads: int | None = option(None, "CPU threads for torch.", "an integer from 1 to 1024", ge=1, le=1024)

    save_steps: int | None = option(None, "Write a checkpoint every so many steps.", "an integer of at least 1", ge=1)
    resume: bool = option(False, "Go on from the newest complete checkpoint of --output.", "true or false")
    output: File | None = option(None, "The run's directory.", "a folder")
    track: Trackers = option(
        (),
        "Log to these as well, separated by commas: tensorboard, trackio, wandb, mlflow.",
        "tensorboard, trackio, wandb or mlflow",
    )
    delta: File | None = option(None, "A run's directory or a delta file to put on the model.", "a folder or a file")

    @field_validator("warmup")
    @classmethod
    def _a_share_is_below_one(cls, value: int | float | None) -> int | float | None:
        if isinstance(value, float) and value >= 1.0:
            raise ValueError("a number with a decimal point is a share of all steps; write an integer for steps")
        return value

    @model_validator(mode="after")
    def _one_source_of_examples(self) -> RunConfig:
        own = [name for name in ("train_file", "dev_file") if getattr(self, name) is not None]
        columns = [name for name in ("text", "label") if getattr(self, name) is not None]
        columns += ["regression"] if self.regression else []
        if self.task and (own or columns):
            raise ValueError(
                f"task {self.task!r} knows its own files and columns; leave out {', '.join(own + columns)}"
            )
        if self.own_words and columns:
            raise ValueError(f"files of tagged words have no columns to name; leave out {', '.join(columns)}")
        if own and self.text is None and not self.own_words:
            raise ValueError(
                "own files need the name of their text column: --text COLUMN, or --text FIRST,SECOND for pairs"
            )
        if columns and not own:
            raise ValueError(f"{', '.join(columns)} describe own files; give --train-file or --dev-file")
        if self.policy == "best" and self.eval_at == "end":
            raise ValueError("policy 'best' compares epochs; it needs eval_at 'epoch'")
        if self.holdout is not None and self.dev_file is not None:
            raise ValueError("holdout evaluates on a part of train; leave out dev_file")
        return self

    @property
    def own_words(self) -> bool:
        """Whether the run's own files hold tagged words, by their endings."""
        from subnetune.tasks.token_files import is_token_file

        files = [path for path in (self.train_file, self.dev_file) if path is not None]
        return self.text is None and any(map(is_token_file, files))


def field_names() -> dict[str, str]:
    """Map each name that a file may use to its attribute (they differ for `with`)."""
    return RunConfig.field_names()


def load_config(file: Path | None, flags: Mapping[str, object]) -> RunConfig:
    """Return the run that a configuration file and flags describe; flags win, `options` merge name by name.

    Raises:
        UsageError: the file or a value is not what it must be (see `read_yaml` and `RunConfig.from_values`).
    """
    return RunConfig.load(file, flags)


def resolve(config: RunConfig) -> RunConfig:
    """Return the run with every unset option filled from the method's card; resolving twice changes nothing.

    Raises:
        UsageError: an unknown task, method or piece, or an option that the method does not have or refuses.
    """
    from subnetune.methods import get
    from subnetune.tasks import find_task

    if config.task is not None:
        find_task(config.task)
    elif config.train_file is None and config.dev_file is None:
        raise UsageError("no task: give --task NAME, or --train-file and --dev-file with --text and --label")
    build_recipe(config)
    defaults = asdict(get(config.method).card.defaults)
    defaults["clip"] = defaults["clip"] or 0.0  # a card without clipping says None, which here would mean unset
    filled = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    if config.output is None:
        filled["output"] = Path("runs") / run_name(config)
    return RunConfig.model_validate({**dict(config), **filled})


def build_recipe(config: RunConfig) -> Recipe:
    """Return the recipe of the run's method with its options and added pieces. Raises UsageError as `resolve` does."""
    from subnetune.experiment.recipes import build_recipe

    return build_recipe(config)
