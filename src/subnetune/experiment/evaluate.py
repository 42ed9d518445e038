"""Measure a model on a task: by the loop while it trains, or later from base and delta, with the same bits."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnetune.core.errors import DataError, UsageError
from subnetune.core.files import atomic_write
from subnetune.delta import Delta, load
from subnetune.experiment.config import RunConfig
from subnetune.experiment.data import Collator, Encoded, encode, eval_batches
from subnetune.experiment.environment import set_threads
from subnetune.experiment.fit import Fit, tags_words
from subnetune.experiment.result import RunResult
from subnetune.experiment.rundir import RunDir
from subnetune.experiment.session import (
    adopt_run_options,
    delta_file,
    load_data,
    load_tokenizer,
    pick_device,
    say_dropped,
)
from subnetune.experiment.words import WORD_COLUMNS, predict_words, tag_words, word_rows
from subnetune.tasks.types import Split, Task

EvalSet = Mapping[str, tuple[Split, Encoded]]


def predict_logits(model: nn.Module, encoded: Encoded, collate: Collator, batch_size: int) -> Tensor:
    """Return the logits (examples, outputs) as float32 on the CPU, in file order.

    Runs in eval mode and in the model's own precision, whatever the training forward used; the mode is put back.
    """
    was_training = model.training
    model.eval()
    rows: list[Tensor | None] = [None] * len(encoded)
    with torch.no_grad():
        for indices in eval_batches(encoded, batch_size):
            batch = {key: value for key, value in collate(encoded, indices).items() if key != "labels"}
            logits = model(**batch).logits.float().cpu()  # (batch, outputs)
            for position, row in zip(indices, logits, strict=True):
                rows[position] = row
    model.train(was_training)
    return torch.stack([row for row in rows if row is not None])


def encode_evaluation(evaluation: Mapping[str, Split], task: Task, tokenizer: Any, max_length: int) -> EvalSet:
    """Tokenise every evaluation split. Raises DataError for one that is empty or has no labels to compare with."""
    for name, split in evaluation.items():
        if split.labels is None:
            raise DataError(f"task {task.name!r}: the split {name!r} has no labels; use predict for it")
    return {name: (split, encode(split, task, tokenizer, max_length)) for name, split in evaluation.items()}


def measure(
    model: nn.Module, task: Task, splits: EvalSet, collate: Collator, batch_size: int, fit: Fit | None = None
) -> dict[str, dict[str, float]]:
    """Return the task's metrics per split, the headline first in each. Raises NumericError for logits that are NaN.

    `fit` says how the outputs read as the task's, where they are not its classes in order.
    """
    from subnetune.tasks.metrics import compute_metrics

    found = {}
    for name, (split, encoded) in splits.items():
        assert split.labels is not None  # encode_evaluation has refused such splits
        if task.kind == "tokens":
            said = predict_words(model, encoded, collate, batch_size)
            tags = tag_words(said, encoded, fit or Fit(task.labels, task))
            found[name] = compute_metrics(task, tags, split.labels)
            continue
        logits = predict_logits(model, encoded, collate, batch_size)
        predictions = logits.numpy() if fit is None else fit.predictions(logits)
        found[name] = compute_metrics(task, predictions, split.labels, split.groups)
    return found


def evaluate(config: RunConfig) -> RunResult:
    """Measure a base model with a delta (a file or a run directory) on the task's evaluation splits.

    Gives bit-identical logits to the end of the training run when model, data, maximum length, evaluation batch size
    and threads are the same; a run directory lends its own values of the last three where they were not set.

    Raises CheckpointError for a delta that is damaged or of another base, DataError for data that do not fit,
    UsageError for a delta of another task (see `Fit.of`).
    """
    started = time.monotonic()
    delta, classes = _read_delta(config)
    config = adopt_run_options(config)
    set_threads(config.threads)
    device = pick_device()
    data = load_data(config, ("train", "dev") if config.holdout is not None else ("dev",), classes)
    say_dropped(data, lambda line: print(line, file=sys.stderr))
    _fit(delta, data.task)
    model, tokenizer = _tuned(config, delta, device)
    splits = encode_evaluation(data.evaluation, data.task, tokenizer, config.max_length)
    evaluation = measure(model, data.task, splits, Collator(tokenizer, device), config.eval_batch_size)
    return RunResult.of(
        evaluation,
        path=config.delta or Path(),
        trained=delta.info.trained,
        total=delta.info.total,
        seconds=round(time.monotonic() - started, 3),
        delta_bytes=delta_file(config).stat().st_size,
    )


def predict(config: RunConfig, destination: Path | None = None) -> int:
    """Write what the tuned model says about each example of the evaluation file: CSV rows in file order.

    Columns: `split`, `row` (0-based number of the example), and for classes `label` and one probability per class,
    for scores `score`. A three-way model on a task of entailment or not gives the task's label and its own three
    probabilities. Of tagged words there is a row per word, with `word` (its 0-based number in the example), `text`,
    `label` and one probability per tag (none for a word that no sub-word stands for: it counts as O). Goes to
    `destination`, or to standard output. Returns the number of rows.
    """
    delta, classes = _read_delta(config)
    config = adopt_run_options(config)
    set_threads(config.threads)
    device = pick_device()
    data = load_data(config, ("dev",) if config.task is not None else ("test",), classes)
    say_dropped(data, lambda line: print(line, file=sys.stderr))
    fit = _fit(delta, data.task)
    model, tokenizer = _tuned(config, delta, device)
    collate = Collator(tokenizer, device)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    of_words = data.task.kind == "tokens"
    columns = ("label", *fit.columns) if fit.columns else ("score",)
    writer.writerow((*WORD_COLUMNS, *fit.columns) if of_words else ("split", "row", *columns))
    count = 0
    for name, split in data.evaluation.items():
        encoded = encode(split, data.task, tokenizer, config.max_length)
        if of_words:
            said = predict_words(model, encoded, collate, config.eval_batch_size)
            for word in word_rows(name, split, said, encoded, fit):
                writer.writerow(word)
                count += 1
            continue
        logits = predict_logits(model, encoded, collate, config.eval_batch_size)
        shown = torch.softmax(logits, dim=-1) if fit.columns else logits  # (examples, outputs)
        for row, values in zip(split.ids, shown, strict=True):
            label = [fit.label(values)] if fit.columns else []
            writer.writerow([name, row, *label, *(f"{value:.6f}" for value in values.tolist())])
            count += 1
    if destination is None:
        sys.stdout.write(text.getvalue())
    else:
        atomic_write(destination, text.getvalue().encode())
    return count


def _read_delta(config: RunConfig) -> tuple[Delta, tuple[str, ...]]:
    """Return the delta that is asked for and the names of its classes, before anything large is loaded."""
    delta = Delta.load(delta_file(config))
    return delta, tuple((delta.info.labels or {}).values())


def _fit(delta: Delta, task: Task) -> Fit:
    """Return how the delta's predictions read as the task's. Raises UsageError where they cannot."""
    if tags_words(delta.info.task_class or "") != (task.kind == "tokens"):
        has, asks = ("words", "texts") if task.kind != "tokens" else ("texts", "words")
        raise UsageError(f"the delta labels {has}, task {task.name!r} asks for labels of {asks}; is it another task's?")
    regression = delta.info.problem_type == "regression"
    classes = () if regression else tuple((delta.info.labels or {}).values())
    if regression != (task.kind == "regression"):
        has = "scores" if regression else f"{len(classes)} classes"
        wants = "scores" if task.kind == "regression" else f"{task.outputs} classes"
        raise UsageError(f"the delta predicts {has}, task {task.name!r} has {wants}; is it another task's delta?")
    return Fit(classes, task) if regression else Fit.of(classes, task)


def _tuned(config: RunConfig, delta: Delta, device: torch.device) -> tuple[nn.Module, Any]:
    """Return the base with the delta applied, and its tokenizer."""
    folder = RunDir(config.delta).tokenizer if config.delta is not None else None
    return load(config.model, delta, device=device), load_tokenizer(config, folder)
