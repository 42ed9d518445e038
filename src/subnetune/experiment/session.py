"""What training, evaluation and prediction share: the device, the data of a run, its tokenizer, its delta."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subnetune.core.errors import CheckpointError, DataError, UsageError
from subnetune.experiment.config import RunConfig, load_config
from subnetune.experiment.rundir import RunDir
from subnetune.tasks.spans import invalid_tags
from subnetune.tasks.types import Split, Task, TaskData

# Options that change the bits of what a model says about an example.
_LENT = ("max_length", "eval_batch_size", "threads")


def pick_device() -> torch.device:
    """Return the device that Accelerate would train on."""
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device


def load_data(
    config: RunConfig, splits: Sequence[str] = ("train", "dev"), classes: tuple[str, ...] | None = None
) -> TaskData:
    """Return the run's task with its examples, after `holdout`, `max_train` and `max_eval`.

    `classes` names the classes of own files in order of their ids, where a model knows them already. Split "test"
    reads `dev_file` too, but its labels may be missing. Only ("train",) needs no examples to evaluate on.

    Raises UsageError where neither a task nor own files are named, DataError for what is missing or malformed.
    """
    from subnetune.tasks import FileSpec, load_task

    wanted = tuple(split for split in splits if config.holdout is None or split != "dev")
    if config.task is not None:
        data = load_task(config.task, config.data_dir, splits=wanted)
    elif config.train_file is None and config.dev_file is None:
        raise UsageError(
            "nothing to train on: name a task (--task rte) or your own file (--train-file, --text, --label)"
        )
    else:
        files = FileSpec(
            train=config.train_file,
            dev=config.dev_file,
            test=config.dev_file,
            text=config.text or ("text",),
            label=config.label or "label",
            regression=config.regression,
            labels=None if config.regression else classes,
        )
        data = load_task("own", files=files, splits=wanted)
    train, evaluation = data.train, dict(data.evaluation)
    if config.holdout is not None:
        train, held = train.holdout(config.holdout, config.train_seed)
        evaluation = {held.name: replace(held, dropped=0)}  # what was left out counts once, with train
    if config.max_train is not None and len(train):
        train = train.take(config.max_train, config.train_seed)
    if config.max_eval is not None:
        evaluation = {name: _some(split, config.max_eval, config) for name, split in evaluation.items()}
    if not evaluation and tuple(splits) != ("train",):
        raise DataError("there are no examples to evaluate on: give --dev-file, or --holdout with a share of train")
    return replace(data, train=train, evaluation=evaluation)


def _some(split: Split, count: int, config: RunConfig) -> Split:
    """Return the first `count` examples of an evaluation split; of held-out training data as many drawn ones.

    Training files are sorted (STS-B by genre, CoLA by source): the first ones would be of one kind.
    """
    if config.holdout is not None:
        return split.take(count, config.train_seed)
    return split.select(range(min(count, len(split))))


def dropped_items(data: TaskData) -> dict[str, int]:
    """Return per split how many items were left out of it, for splits where there are any."""
    splits = {"train": data.train, **data.evaluation}
    return {name: split.dropped for name, split in splits.items() if split.dropped}


def say_dropped(data: TaskData, say: Callable[[str], None]) -> None:
    """Say how many items were left out, a line per split: a score over fewer items is another score.

    Of tagged words also how many tags are not as IOB2 has them.
    """
    for name, count in dropped_items(data).items():
        say(f"{name}: {count} items are left out (no gold label, or a row cut short)")
    for name, split in {"train": data.train, **data.evaluation}.items():
        if count := invalid_tags(split, data.task):
            say(f"{name}: {count} tags I-X follow no B-X or I-X: each is read as the start of an entity")


def load_tokenizer(config: RunConfig, saved: Path | None = None) -> Any:
    """Return the tokenizer of the run directory (`saved`) where there is one, else that of the model.

    Raises DataError where the model's files hold none, UsageError where `max_length` is more than the model takes.
    """
    from transformers import AutoTokenizer

    from subnetune.delta.models import resolve_model

    source = saved if saved is not None and saved.is_dir() else resolve_model(config.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"no tokenizer for {config.model!r} ({reason}); put its files beside the model's") from error
    if config.max_length > tokenizer.model_max_length:
        raise UsageError(
            f"max_length {config.max_length} is more than the {tokenizer.model_max_length} tokens that "
            f"{config.model!r} takes; lower --max-length"
        )
    return tokenizer


def load_model(config: RunConfig, task: Task) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the pretrained model with a head for `task`, and the names of what loading initialised newly.

    A checkpoint that brings a head for the same labels keeps it (see `load_with_head`): its head is not new.
    """
    from subnetune.delta.models import load_with_head

    names = dict(enumerate(task.labels)) if task.labels else {0: "score"}
    if task.kind == "tokens":
        return load_with_head(config.model, "AutoModelForTokenClassification", names)
    kind = "single_label_classification" if task.labels else "regression"
    return load_with_head(config.model, "AutoModelForSequenceClassification", names, kind)


def delta_file(config: RunConfig) -> Path:
    """Return the delta file that `--delta` means: a file, or the one in a run directory."""
    if config.delta is None:
        raise UsageError("which delta? give --delta with a run directory or a delta file")
    if config.delta.is_dir():
        file = RunDir(config.delta).delta
        if not file.is_file():
            raise CheckpointError(f"{config.delta} holds no {file.name}; is its run finished?")
        return file
    if not config.delta.is_file():
        raise CheckpointError(f"{config.delta}: no such delta file or run directory")
    return config.delta


def adopt_run_options(config: RunConfig) -> RunConfig:
    """Return the configuration with the maximum length, evaluation batch size and threads of the run in `delta`.

    Only where the caller left them unset; what differs from the default is said on stderr.
    """
    if config.delta is None or not (run := RunDir(config.delta)).config.is_file():
        return config
    trained = load_config(run.config, {})
    lent = {
        name: getattr(trained, name)
        for name in _LENT
        if name not in config.model_fields_set and getattr(trained, name) != getattr(config, name)
    }
    for name, value in lent.items():
        print(f"{name} is {value}, as in {run.config}", file=sys.stderr)
    return config.model_copy(update=lent)


def check_config_unchanged(run: RunDir, config: RunConfig) -> None:
    """Raise UsageError that lists every option that differs from the run's `config.yaml` and matters for its result."""
    free = {"resume", "output", "save_steps", "track", "data_dir", "train_file", "dev_file"}  # data are known by hash
    before = load_config(run.config, {}).values()
    if before["engine"] == "auto":
        free.add("engine")  # the checkpoint knows which one that was (`check_engine`)
    check_same_options(run.path, before, json.loads(json.dumps(config.values())), free)


def check_same_options(
    path: Path, before: Mapping[str, object], now: Mapping[str, object], free: AbstractSet[str]
) -> None:
    """Raise UsageError that lists where `now` differs from the run in `path`, but for the options in `free`."""
    changed = [
        f"{name}: the run has {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*before, *now} - free)
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise UsageError(
            f"{path} was started with other options, so it cannot be resumed with these:\n  "
            + "\n  ".join(changed)
            + "\nGive the same options, or choose another --output"
        )
