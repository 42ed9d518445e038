"""Fit a linear head for other tasks on the frozen tuned encoder: how much of what it knew is left, and found.

Differs from HyPe's version (ACL 2023, section 5.4) in: the head is fitted to its optimum by scikit-learn, at a fixed
strength of regularisation on standardised features; there it is trained step by step (learning rate 1e-3, 3
epochs, batch 16), and what it scores depends on those too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from subnetune.core.errors import MissingDataError, NumericError, UsageError
from subnetune.core.roles import role_names
from subnetune.core.structure import Structure
from subnetune.experiment.config import RunConfig
from subnetune.experiment.data import Collator, encode
from subnetune.experiment.evaluate import predict_logits
from subnetune.experiment.result import Elsewhere, Evaluation
from subnetune.experiment.transfer import SAMPLE_SEED, other_tasks, reason, result_key
from subnetune.tasks import DataWarning, load_task
from subnetune.tasks.majority import majority_scores
from subnetune.tasks.metrics import compute_metrics
from subnetune.tasks.types import Split, Task, TaskData

Values = NDArray[Any]
STRENGTH = 1.0  # inverse of the penalty on standardised features; ours, the same for every model
LONGEST_FIT = 5000  # iterations of L-BFGS; tens to hundreds are what it takes


def probe_scores(
    model: nn.Module, tokenizer: Any, config: RunConfig, tasks: Sequence[str], max_examples: int | None = None
) -> Elsewhere:
    """Return the metrics of `tasks`' dev sets by a linear head each, why tasks were left out, and majority levels.

    The head is a logistic regression, for scores a ridge regression, fitted on the task's training examples
    (`max_examples` of them at most, stratified, drawn by a fixed seed) and measured on all of dev by its metrics.
    Keys as in `transfer_scores`. The features are what the model's own head sees: see `Features`. They are taken at the
    run's maximum length and batch size; mode, gradients and random state stay as they are, and the same features give
    the same bits.

    Left out, with the reason: a task whose files are absent, that has no training examples, or only one class among
    them. Raises UsageError for an unknown task, one of words instead of texts, or a model without head, DataError for
    a set that is malformed, NumericError for features that are not finite.
    """
    found: Evaluation = {}
    levels: Evaluation = {}
    skipped: dict[str, str] = {}
    for task in other_tasks(config, tasks):
        check_probe(task)
        try:
            data = _examples(task, config)
        except MissingDataError as error:
            skipped[task.name] = f"as a probe: {reason(error)}"
            continue
        train = data.train if max_examples is None else data.train.take(max_examples, SAMPLE_SEED)
        if not train.labels or (task.kind == "classification" and len(set(train.labels)) < 2):
            what = "only one class among the" if train.labels else "no"
            skipped[task.name] = f"as a probe: {what} training examples"
            continue
        with Features(model) as features:
            known = _features(features, train, task, tokenizer, config)
            asked = {name: _features(features, s, task, tokenizer, config) for name, s in data.evaluation.items()}
        labels = [label for label in train.labels if not isinstance(label, list)]
        for name, answers in fit_and_predict(task, known, labels, asked).items():
            split = data.evaluation[name]
            assert split.labels is not None  # dev sets have labels
            key = result_key(task, name, len(asked))
            found[key] = compute_metrics(task, answers, split.labels, split.groups)
        always = majority_scores(replace(data, train=train))
        levels |= {result_key(task, name, len(asked)): level for name, level in always.items()}
    return Elsewhere(found, skipped, levels)


def check_probe(task: Task) -> None:
    """Raise UsageError for a task that no probe can be of."""
    if task.kind == "tokens":
        raise UsageError(
            f"{task.name} labels words, and a probe reads one feature vector of a whole text: name tasks of texts as "
            "probes; for words, evaluate by `transfer`"
        )


def fit_and_predict(
    task: Task, known: Values, labels: Sequence[float], asked: dict[str, Values]
) -> dict[str, NDArray[Any]]:
    """Return a linear head's predictions for each of `asked`, (examples, width): class ids, or scores (examples,).

    `known`: the training features (examples, width), `labels` their classes or scores. No randomness; one thread, so
    that the number of cores changes no digit.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    regression = task.kind == "regression"
    head = Ridge(alpha=1.0 / STRENGTH) if regression else LogisticRegression(C=STRENGTH, max_iter=LONGEST_FIT)
    with threadpool_limits(limits=1):
        fitted = make_pipeline(StandardScaler(), head).fit(known.astype(np.float64), np.asarray(labels))
        return {name: np.asarray(fitted.predict(values.astype(np.float64))) for name, values in asked.items()}


class Features(nn.Module):
    """A model that gives what its own head sees instead of what that says. Use it as a context; final.

    The first layer of `@head` (see `core.roles`) that is called, and what it is called with: of BERT and ALBERT the
    pooled output; of RoBERTa, ELECTRA, DistilBERT and DeBERTa, whose heads have layers of their own, the first token's
    last hidden state; of GPT-2, Llama and Qwen2, whose heads read every token, that of the last token that is no
    padding, which is the one that classifies; of T5 that of the end of the text; of a concat-pooling head the pooled
    vector. Raises UsageError for a model without a head.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        structure = Structure(model)
        names = role_names(structure, "@head")
        self.layers = [m for m in structure.modules() if any(n in names for _, n, _ in structure.owned_by(m))]
        if not self.layers:
            raise UsageError(f"{type(model).__name__} has no head whose features could be probed")
        self.model = model
        self._modes = {module: module.training for module in model.modules()}
        self._seen: list[Tensor] = []
        self.training = model.training
        self._hooks: list[Any] = []

    def __enter__(self) -> Features:
        self._hooks = [layer.register_forward_pre_hook(self._see) for layer in self.layers]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for module, mode in self._modes.items():
            module.training = mode

    def forward(self, **batch: Tensor) -> SimpleNamespace:
        """Return `logits`: the features (batch, width)."""
        self._seen.clear()
        self.model(**batch)
        first = self._seen[0]  # (batch, width), or (batch, length, width)
        self._seen.clear()
        return SimpleNamespace(logits=first if first.dim() == 2 else _last_tokens(first, batch["attention_mask"]))

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._seen.append(inputs[0].detach())


def _last_tokens(states: Tensor, attention: Tensor) -> Tensor:
    """Return (batch, width): of states (batch, length, width) the last position that `attention` (batch, length) has.

    Wherever the padding stands, the last 1 of the mask is the last token of the text.
    """
    places = attention.new_ones(attention.shape).cumsum(dim=1) * attention  # (batch, length), from 1; padding 0
    rows = attention.new_ones(len(attention)).cumsum(dim=0) - 1
    return states[rows, places.argmax(dim=1)]


def _features(features: Features, split: Split, task: Task, tokenizer: Any, config: RunConfig) -> Values:
    """Return the features of a split, (examples, width), float32. NumericError where one is not finite."""
    encoded = encode(split, task, tokenizer, config.max_length)
    collate = Collator(tokenizer, next(features.parameters()).device)
    values: Values = predict_logits(features, encoded, collate, config.eval_batch_size).numpy()
    if not np.isfinite(values).all():
        raise NumericError(f"{task.name}: {int((~np.isfinite(values)).sum())} features are not finite numbers")
    return values


def _examples(task: Task, config: RunConfig) -> TaskData:
    with warnings.catch_warnings():
        # That examples stand in train and dev is told where a task is trained on; here it is the same for all models.
        warnings.simplefilter("ignore", DataWarning)
        return load_task(task.name, config.data_dir)
