"""Evaluate a tuned model, unchanged, on the evaluation sets of other tasks: generalisation to other domains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from subnetune.core.errors import MissingDataError, UsageError
from subnetune.experiment.config import RunConfig
from subnetune.experiment.data import Collator
from subnetune.experiment.evaluate import encode_evaluation, measure
from subnetune.experiment.fit import Fit
from subnetune.experiment.result import Elsewhere, Evaluation
from subnetune.tasks import find_task, load_task
from subnetune.tasks.majority import majority_scores
from subnetune.tasks.types import Task

# Which examples stand for a set that is too large is no matter of the run's seeds: all runs are measured on the same.
SAMPLE_SEED = 0


def transfer_scores(
    model: nn.Module, tokenizer: Any, config: RunConfig, targets: Sequence[str], max_examples: int | None = None
) -> Elsewhere:
    """Return the metrics of `targets`' dev sets, for each target that was left out the reason, and majority levels.

    As published (METHODS: Child-Tuning's and DPS's out-of-domain tests): MNLI matched and mismatched, SNLI and SICK as
    they are by models of three classes; SciTail, HANS and RTE as entailment or not, QQP as duplicate where the model
    says entailment (`tasks.label_maps`); items without a gold label are left out; SICK's dev set is its trial set.
    HANS is its evaluation set, with the accuracy per heuristic. The majority level is that of the set's own most
    frequent class: the model was not trained on its shares.

    A result's key is the task's name, or `mnli/dev_matched` where a task has several evaluation splits. The task that
    the model was trained on is not evaluated a second time. `max_examples` of a split are drawn, stratified, by a
    fixed seed. Maximum length and batch size are the run's; mode, gradients and random state stay as they are.

    Left out, with the reason: a set whose files are absent, and one that no map leads to. Raises UsageError for an
    unknown target, DataError for a set that is there and malformed, NumericError for logits that are not finite.
    """
    collate = Collator(tokenizer, next(model.parameters()).device)
    found: Evaluation = {}
    levels: Evaluation = {}
    skipped: dict[str, str] = {}
    for task in other_tasks(config, targets):
        try:
            fit = Fit.across(model, task)
            data = load_task(task.name, config.data_dir, splits=("dev",))
        except (UsageError, MissingDataError) as error:
            skipped[task.name] = reason(error)
            continue
        if max_examples is not None:
            cut = {name: split.take(max_examples, SAMPLE_SEED) for name, split in data.evaluation.items()}
            data = replace(data, evaluation=cut)
        splits = encode_evaluation(data.evaluation, task, tokenizer, config.max_length)
        scores = measure(model, task, splits, collate, config.eval_batch_size, fit)
        found |= {result_key(task, name, len(scores)): metrics for name, metrics in scores.items()}
        levels |= {result_key(task, name, len(scores)): level for name, level in majority_scores(data).items()}
    return Elsewhere(found, skipped, levels)


def other_tasks(config: RunConfig, names: Sequence[str]) -> Iterator[Task]:
    """Yield the named tasks, each once, without the one that the run trains on. Raises UsageError for unknown ones."""
    seen = set() if config.task is None else {find_task(config.task).name}
    for name in names:
        task = find_task(name)
        if task.name not in seen:
            seen.add(task.name)
            yield task


def reason(error: Exception) -> str:
    """Return what an error says first: what is wrong, without the places that were tried or what to do about it."""
    return str(error).partition("\n")[0].partition(";")[0]


def said_together(transfer: dict[str, str], probes: dict[str, str]) -> dict[str, str]:
    """Return why sets were left out, by name, of both kinds; a set may be of both."""
    return {name: "; ".join(said[name] for said in (transfer, probes) if name in said) for name in transfer | probes}


def result_key(task: Task, split: str, splits: int) -> str:
    """Return the name of a result: the task's, with the split's where the task has several."""
    return task.name if splits == 1 else f"{task.name}/{split}"
